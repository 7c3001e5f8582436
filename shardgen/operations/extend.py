"""Extend: add a block to the plan for photographs that were added to the folders."""

from __future__ import annotations

from dataclasses import replace

from shardgen.domain.plan import Plan
from shardgen.domain.remarks import Remark
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.domain.wording import typed
from shardgen.errors import InputMissing, ManifestMismatch, PlanConflict
from shardgen.manifest.urls import has_own_index, is_bucket
from shardgen.operations.plan import Planned, draft_plan, put_plan, refuse_absurd
from shardgen.recipes.base import Folders, PlanEvents
from shardgen.settings.run_directory import RunDirectory

_SHOWN = 20  # differences


def extend(
    run: RunDirectory,
    given: Folders,
    *,
    events: PlanEvents | None = None,
    on_step: OnStep = ignore_step,
) -> Planned:
    """Let the plan grow by a block of all sources that it does not know; twice is harmless.

    What was planned keeps number, batch, shard, name and bytes, and what is stored stays so. The result has
    no changes when nothing is new. Raises PlanConflict when planned sources are gone or changed, or the
    settings are; ManifestMismatch on a shared folder or in a bucket; ManifestBusy while a worker holds a live
    lease.
    """
    planned = run.plan()
    if has_own_index(run.url):
        where = "in a bucket" if is_bucket(run.url) else "on a shared folder"
        raise ManifestMismatch(
            f"{run.named}: a plan {where} cannot grow: machines would see that at different times",
            hint=run.for_another if run.is_begun else "shardgen plan RUN_DIR, since no worker has joined yet",
        )
    folders, kind = run.folders(given), run.settings.kind
    drafted, draft = draft_plan(run, folders, events=events)
    here = run.recipe(planned)
    arranged = kind.arrange(here, draft)
    grown = replace(planned, blocks=arranged.blocks)
    # Without the network's weights at hand the draft has a stand-in; the plan knows which they were.
    document = planned.recipe if draft.lacks is not None else drafted.recipe
    kept = replace(grown, recipe=document, blocks=grown.blocks[: len(planned.blocks)])
    if kept != planned:
        changed = here.differences(run.recipe(kept, arranged.files))
        more = f"; and {len(changed) - _SHOWN:,} more" if changed[_SHOWN:] else ""
        raise PlanConflict(
            f"{run.path}: only new photographs can be added, but: {'; '.join(changed[:_SHOWN])}{more}",
            hint=f"put the planned files back, then extend again; or {run.for_another}",
            problems=tuple(changed),
        )
    refuse_absurd(run, grown)
    estimate = kind.estimate(run.recipe(grown, arranged.files), folders, at_hand=draft.at_hand)
    on_step(PlanStep.CHECKED)
    files = {file.name for file in run.recipe(grown).files}
    new = {name: data for name, data in arranged.files.items() if name in files}
    put = put_plan(run, grown, files=new, grows=True, on_step=on_step)
    return Planned(
        plan=grown,
        draft=replace(arranged, lacks=None),
        estimate=estimate,
        is_new=False,
        changes=put.changes,
    )


def unplanned(run: RunDirectory, plan: Plan, given: Folders) -> list[Remark]:
    """Sources in this machine's folders that the plan does not know, and the command that takes them.

    Nothing is read but the folders' lists, so that `run` and `merge` can afford to ask.
    """
    try:
        names = run.recipe(plan).unknown_sources(run.folders(given))
    except InputMissing:  # a machine that only merges needs no photographs
        return []
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, rest = name.partition("/")
        by_folder.setdefault(folder, []).append(rest)
    named = typed(run.named)
    if not run.is_begun:
        hint = f"shardgen plan {named} takes them"
    elif has_own_index(run.url):
        where = "in a bucket" if is_bucket(run.url) else "on a shared folder"
        hint = f"a run {where} does not grow: {run.for_another}"
    else:
        hint = f"shardgen extend {named} adds them"
    return [
        Remark(folder=folder, reason="not in the plan, so not used", hint=hint, names=tuple(found))
        for folder, found in by_folder.items()
    ]

"""Plan: check every source, estimate what will be made, write the plan and create its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from shardgen.coordination.artifact_folder import refuse_unusable_artifacts
from shardgen.coordination.base import PutPlan
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import Plan
from shardgen.domain.remarks import Remark
from shardgen.domain.sample import member_name
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, ShardgenError
from shardgen.operations.forecast import Forecast
from shardgen.recipes.base import Draft, Folders, PlanEvents, Recipe, RecipeKind, SizeEstimate
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import planning_lock, remove_unnamed, write_beside
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.sources.checking import refuse_problems
from shardgen.storage.files import is_folder

_ZIP_RECORD_BYTES = 30 + 46  # a local header and a directory entry, without the name twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan on disk with its manifest; `is_new` is False when it was there already.

    `changes` has one line per change if it replaced another plan. It is not on disk if its draft lacks
    something; then its fingerprint means nothing. `forecast` is set if it was measured.
    """

    plan: Plan
    draft: Draft
    estimate: SizeEstimate
    is_new: bool
    changes: tuple[str, ...] = ()
    forecast: Forecast | None = None

    def __repr__(self) -> str:
        """One line, as a notebook shows it: the plan has a line for each photograph."""
        state = "new" if self.is_new else "unchanged"
        return f"<Planned: {self.plan.samples} samples, {state}, {len(self.warnings)} warnings>"

    @property
    def warnings(self) -> tuple[Remark, ...]:
        """What is odd about the photographs, and may be meant so."""
        return self.draft.warnings

    @property
    def sample_bytes(self) -> float:
        """A sample's share of the final zip, as estimated."""
        return self.bytes_in_zip(self.estimate.outputs)

    def bytes_in_zip(self, outputs: Mapping[str, float]) -> float:
        """A sample's share of the final zip: its files of these bytes, their entries, its rows of labels."""
        names = (
            member_name(output, SampleIndex(0), digits=self.plan.name_digits) for output in self.plan.outputs
        )
        entries = sum(_ZIP_RECORD_BYTES + 3 * len(name) for name in names)
        return sum(outputs.values()) + entries + 2 * self.estimate.labels


def make_plan(
    run: RunDirectory,
    given: Folders,
    *,
    events: PlanEvents | None = None,
    on_step: OnStep = ignore_step,
    on_unwritten: Callable[[Planned], None] = lambda _planned: None,
) -> Planned:
    """Plan the run directory; twice is harmless.

    Until something is made, changed settings and photographs make a plan that takes the place of the one
    here. Raises SourcesRefused with every problem at once, PlanConflict when the plan here stays and is
    another, or the manifest of existing artifacts is gone; ManifestBusy while a worker holds a live lease.
    What the draft lacks (a download that failed) is raised, too, after `on_unwritten` got all that is known
    without it.
    """
    folders, settings = run.folders(given), run.settings
    events = events or PlanEvents()
    current = run.current_plan
    if current is not None and run.is_begun:
        run.check_settings(current)  # before every photograph is read
    run.check_outputs()
    refuse_unusable_artifacts(run)
    plan, draft = draft_plan(run, folders, events=events)
    events.doing("encoding some samples, to see how large they are")
    if draft.lacks is not None:
        estimate = settings.kind.estimate(run.recipe(plan, draft.files), folders, at_hand=draft.at_hand)
        on_unwritten(Planned(plan=plan, draft=draft, estimate=estimate, is_new=current is None))
        raise draft.lacks
    if current is not None:
        plan, draft = _in_blocks_of(run.recipe(current), plan, draft, settings.kind)
    estimate = settings.kind.estimate(run.recipe(plan, draft.files), folders, at_hand=draft.at_hand)
    on_step(PlanStep.CHECKED)
    put = put_plan(run, plan, files=draft.files, on_step=on_step)
    return Planned(plan=plan, draft=draft, estimate=estimate, is_new=put.is_new, changes=put.changes)


def _in_blocks_of(current: Recipe, drafted: Plan, draft: Draft, kind: RecipeKind) -> tuple[Plan, Draft]:
    """The current plan if its blocks hold just these sources; a draft has them in one block."""
    if len(current.plan.blocks) == 1:
        return drafted, draft
    arranged = kind.arrange(current, draft)
    plan = replace(drafted, blocks=arranged.blocks)
    return (plan, arranged) if plan == current.plan else (drafted, draft)


def put_plan(
    run: RunDirectory,
    plan: Plan,
    *,
    files: Mapping[str, bytes] | None = None,
    grows: bool = False,
    on_step: OnStep = ignore_step,
) -> PutPlan:
    """Make `plan` the run's, durably, whatever a killed command has left; see `OpenedRun.put_plan`.

    `files` are what it names and is not here yet: they are durable before anything names them. One command at
    a time: raises ManifestBusy when another one needs longer than half a minute.
    """
    with planning_lock(run.path):
        write_beside(run.path, files or {})
        on_step(PlanStep.FILES_WRITTEN)
        try:
            put = open_run(run.planned(plan)).put_plan(grows=grows, on_step=on_step)
            if put.before in (None, plan):
                return put
            changes = run.recipe(put.before).differences(run.recipe(plan))
            return replace(put, changes=tuple(changes))
        finally:
            with suppress(ShardgenError):  # the next command finds them, too
                remove_unnamed(run.path)


def draft_plan(
    run: RunDirectory, folders: Folders, *, events: PlanEvents | None = None
) -> tuple[Plan, Draft]:
    """Check every source and plan in memory; nothing is written. Raises SourcesRefused, InvalidSettings.

    Where the draft lacks something (a download that failed) the plan has a stand-in for it.
    """
    settings = run.settings
    draft = settings.kind.draft(settings.tables, folders, run.local, events=events or PlanEvents())
    plan = Plan(
        recipe=draft.document,
        outputs=draft.document.outputs,
        shards=settings.shards_plan,
        blocks=draft.blocks,
    )
    refuse_absurd(run, plan)
    return plan, draft


def refuse_lost_sources(run: RunDirectory, plan: Plan, given: Folders) -> None:
    """Say before workers start which sources of the plan are plainly not there; none is read.

    Raises PlanConflict naming the first ones, InputMissing for a whole folder.
    """
    folders = run.folders(given)
    for kind, folder in folders.items():
        if not is_folder(folder):
            raise InputMissing(
                f"{folder}: the folder of {kind} is not there",
                hint=f"give this machine's folder with --{kind}",
            )
    try:
        refuse_problems(run.recipe(plan).source_problems(folders))
    except PlanConflict as error:
        if not run.is_begun:
            error.hint = (
                f"shardgen plan RUN_DIR plans without them, since nothing is made yet; or {error.hint}"
            )
        raise


def refuse_absurd(run: RunDirectory, plan: Plan) -> None:
    """Raise InvalidSettings for a plan that no run could be of."""
    # The recipe's word first: it names the setting.
    problem = recipe_of(plan).problem() or plan_problem(plan)
    if problem is not None:
        raise InvalidSettings(
            f"{run.path / SETTINGS}: this plan is impossible: {problem}",
            hint="change that in shardgen.toml, or use fewer sources",
        )

"""Plan: check every source, estimate what will be made, write the plan and create its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import Plan, differences
from shardgen.domain.sample import member_name
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.errors import InvalidSettings, PlanConflict
from shardgen.recipes.base import Draft, Folders, PlanEvents, SizeEstimate
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import read_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS

_ZIP_RECORD_BYTES = 30 + 46  # a local header and a directory entry, without the name twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan on disk with its manifest; `is_new` is False when it was there already.

    It is not on disk when its draft lacks something; then its fingerprint means nothing.
    """

    plan: Plan
    draft: Draft
    estimate: SizeEstimate
    is_new: bool

    @property
    def sample_bytes(self) -> float:
        """A sample's share of the final zip: its files, their entries, its row of labels."""
        names = (
            member_name(output, SampleIndex(0), digits=self.plan.name_digits) for output in self.plan.outputs
        )
        entries = sum(_ZIP_RECORD_BYTES + 2 * len(name) for name in names)
        return sum(self.estimate.outputs.values()) + entries + self.estimate.labels


def make_plan(
    run: RunDirectory,
    given: Folders,
    *,
    events: PlanEvents | None = None,
    on_step: OnStep = ignore_step,
    on_unwritten: Callable[[Planned], None] = lambda _planned: None,
) -> Planned:
    """Plan the run directory; twice is harmless.

    `plan.json` is durable before the manifest exists. Raises SourcesRefused with every problem at once,
    PlanConflict when another plan is here or the manifest of existing artifacts is gone. What the draft lacks
    (a download that failed) is raised, too, after `on_unwritten` got all that is known without it.
    """
    folders, settings = run.folders(given), run.settings
    existing = run.plan_here()
    if existing is not None:
        run.check_settings(existing)
    run.check_outputs()
    plan, draft = draft_plan(run, folders, events=events)
    if draft.lacks is not None:
        estimate = settings.kind.estimate(recipe_of(plan), folders)
        on_unwritten(Planned(plan=plan, draft=draft, estimate=estimate, is_new=existing is None))
        raise draft.lacks
    if existing is not None and existing != plan:
        raise PlanConflict(
            f"{run.path}: not what was planned here: {'; '.join(differences(existing, plan)[:20])}",
            hint="put the planned files back, or use a new directory for the other plan",
        )
    estimate = settings.kind.estimate(recipe_of(plan), folders)
    on_step(PlanStep.CHECKED)
    opened = open_run(run.planned(plan))
    opened.write_plan()
    _refuse_race(run, plan)
    on_step(PlanStep.PLAN_WRITTEN)
    is_new = opened.ensure_manifest()
    on_step(PlanStep.MANIFEST_CREATED)
    return Planned(plan=plan, draft=draft, estimate=estimate, is_new=is_new)


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
    _refuse_absurd(run, plan)
    return plan, draft


def _refuse_absurd(run: RunDirectory, plan: Plan) -> None:
    # The recipe's word first: it names the setting.
    problem = recipe_of(plan).problem() or plan_problem(plan)
    if problem is not None:
        raise InvalidSettings(
            f"{run.path / SETTINGS}: such a plan cannot be made: {problem}",
            hint="change that in shardgen.toml, or use fewer sources",
        )


def _refuse_race(run: RunDirectory, plan: Plan) -> None:
    """Another process may have planned here since we looked; its plan stands."""
    written = read_plan(run.path)
    if written is not None and written != plan:
        raise PlanConflict(
            f"{run.path}: planned by another process just now: {'; '.join(differences(written, plan)[:20])}",
            hint="use a new directory for the other plan",
        )

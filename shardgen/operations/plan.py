"""Plan: check every source, estimate what will be made, write the plan and create its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardgen.coordination.open import open_run
from shardgen.depth.estimator import check_input_size
from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import Depth, Plan, differences
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.errors import InvalidSettings, PlanConflict
from shardgen.machine.cores import usable_cores
from shardgen.recipes.composites.composer import Composer, source_reader
from shardgen.recipes.composites.estimate import Estimate, estimate_sizes
from shardgen.recipes.composites.network import OnDownload, find_weights, planned_weights
from shardgen.settings.plan_file import read_plan
from shardgen.settings.run_directory import GivenFolders, RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.sources.scanning import Inventory, SourceFolders, scan


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan on disk with its manifest; `is_new` is False when it was there already."""

    plan: Plan
    inventory: Inventory
    estimate: Estimate
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEvents:
    """Who hears of files checked, of bytes downloaded, of durable steps."""

    on_file: Callable[[str], None] = lambda _name: None
    on_download: OnDownload = lambda _done, _total: None
    on_step: OnStep = ignore_step


def make_plan(run: RunDirectory, given: GivenFolders, *, events: PlanEvents | None = None) -> Planned:
    """Plan the run directory; twice is harmless.

    `plan.json` is durable before the manifest exists. Raises SourcesRefused with every problem at once,
    PlanConflict when another plan is here or the manifest of existing artifacts is gone.
    """
    events = events or PlanEvents()
    folders = SourceFolders(foregrounds=run.foregrounds(given), backgrounds=run.backgrounds(given))
    existing = run.plan_here()
    if existing is not None:
        run.check_settings(existing)
    run.check_places()
    settings = run.settings
    # Photographs first: what is wrong with them is the user's to mend, with or without a network.
    reader = source_reader(settings.compose.canvas)
    inventory = scan(folders, settings.sources.mask, reader, threads=usable_cores(), on_file=events.on_file)
    weights = find_weights(run.network, on_download=events.on_download)
    check_input_size(weights.topology, settings.depth.input)
    plan = Plan(
        sources=inventory.sources,
        compose=settings.compose_plan,
        depth=Depth(
            model=settings.depth.model,
            weights=planned_weights(run.network.name, weights),
            input=settings.depth.input,
            upsampling=settings.depth.upsampling,
            precision=settings.depth.precision,
            encoding=settings.depth.encoding,
        ),
        output=settings.output_plan,
        shards=settings.shards_plan,
    )
    _refuse_absurd(run, plan)
    if existing is not None and existing != plan:
        raise PlanConflict(
            f"{run.path}: not what was planned here: {'; '.join(differences(existing, plan)[:20])}",
            hint="put the planned files back, or use a new directory for the other plan",
        )
    estimate = estimate_sizes(plan, Composer(plan, folders.foregrounds, folders.backgrounds))
    events.on_step(PlanStep.CHECKED)
    opened = open_run(run.planned(plan))
    opened.write_plan()
    _refuse_race(run, plan)
    events.on_step(PlanStep.PLAN_WRITTEN)
    is_new = opened.ensure_manifest()
    events.on_step(PlanStep.MANIFEST_CREATED)
    return Planned(plan=plan, inventory=inventory, estimate=estimate, is_new=is_new)


def _refuse_absurd(run: RunDirectory, plan: Plan) -> None:
    problem = plan_problem(plan)
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

"""Plan: check every source, estimate what will be made, write the plan and create its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardgen.coordination.folder.files import DiskFolder
from shardgen.coordination.open import ensure_manifest
from shardgen.depth.estimator import check_input_size
from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import Plan, differences
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.errors import InvalidSettings, PlanConflict
from shardgen.machine.cores import usable_cores
from shardgen.recipes.composites.composer import Composer
from shardgen.recipes.composites.estimate import Estimate, estimate_sizes
from shardgen.recipes.composites.network import OnDownload, find_weights, planned_weights
from shardgen.settings.plan_file import FILE_NAME, read_plan
from shardgen.settings.run_directory import GivenFolders, RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.sources.scanning import Inventory, SourceFolders, scan
from shardgen.storage.atomic import publish_file
from shardgen.storage.files import storage_error


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
    run.check_outputs()
    settings = run.settings
    # Photographs first: what is wrong with them is the user's to mend, with or without a network.
    inventory = scan(
        folders,
        settings.sources.mask,
        settings.compose.canvas,
        threads=usable_cores(),
        on_file=events.on_file,
    )
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
    _write_plan(run, plan)
    _refuse_race(run, plan)
    events.on_step(PlanStep.PLAN_WRITTEN)
    is_new = ensure_manifest(run.planned(plan), plan)
    events.on_step(PlanStep.MANIFEST_CREATED)
    return Planned(plan=plan, inventory=inventory, estimate=estimate, is_new=is_new)


def _write_plan(run: RunDirectory, plan: Plan) -> None:
    if not run.is_shared_folder:
        publish_file(run.path / FILE_NAME, plan.canonical_json)
        return
    try:
        DiskFolder(run.path).write(FILE_NAME, plan.canonical_json)
    except FileExistsError:
        return  # whose plan it is, is looked at next
    except OSError as error:
        raise storage_error(error, run.path / FILE_NAME) from error


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

"""Plan: check every source, estimate what will be made, write the plan and create its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.store import ArtifactStore, publish_file
from shardgen.coordination.folder.files import DiskFolder
from shardgen.depth.estimator import check_input_size
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import Depth, Plan, differences
from shardgen.domain.receipt import ImageKind
from shardgen.domain.sample import member_name
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.errors import InvalidSettings, PlanConflict, SampleError
from shardgen.imaging.outputs import encode_sample
from shardgen.machine.cores import usable_cores
from shardgen.manifest.manifest import create_manifest
from shardgen.recipes.composites.composer import ComposedSample, Composer, source_reader
from shardgen.recipes.composites.network import OnDownload, find_weights, planned_weights
from shardgen.settings.plan_file import FILE_NAME, read_plan
from shardgen.settings.run_directory import GivenFolders, RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.sources.scanning import Inventory, SourceFolders, scan
from shardgen.storage.files import storage_error

_PROBES = 24  # samples encoded for the estimate; their sizes vary by a tenth or two
_ZIP_RECORD_BYTES = 30 + 46  # a local header and a directory entry, without the name twice
_LABEL_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes per sample as stored, from samples that were really encoded; depth is guessed from them."""

    fgbg_bytes: float
    mask_bytes: float
    depth_bytes: float
    container_bytes: float

    @property
    def sample_bytes(self) -> float:
        """All of a sample's share of the final zip."""
        return self.fgbg_bytes + self.mask_bytes + self.depth_bytes + self.container_bytes


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
    existing = read_plan(run.path)
    if existing is not None:
        run.check_settings(existing)
    run.check_places()
    settings = run.settings
    # Photographs first: what is wrong with them is the user's to mend, with or without a network.
    reader = source_reader(settings.compose.canvas)
    inventory = scan(folders, settings.sources.mask, reader, threads=usable_cores(), on_file=events.on_file)
    weights = find_weights(run, on_download=events.on_download)
    check_input_size(weights.topology, settings.depth.input)
    plan = Plan(
        sources=inventory.sources,
        compose=settings.compose_plan,
        depth=Depth(
            model=settings.depth.model,
            weights=planned_weights(run, weights),
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
    is_new = ensure_manifest(run, plan)
    events.on_step(PlanStep.MANIFEST_CREATED)
    return Planned(plan=plan, inventory=inventory, estimate=estimate, is_new=is_new)


def _write_plan(run: RunDirectory, plan: Plan) -> None:
    if not run.is_shared_folder:
        publish_file(run.path / FILE_NAME, plan.canonical_json)
        return
    with suppress(FileExistsError):
        try:
            DiskFolder(run.path).write(FILE_NAME, plan.canonical_json)
        except FileExistsError:
            raise
        except OSError as error:
            raise storage_error(error, run.path / FILE_NAME) from error


def ensure_manifest(run: RunDirectory, plan: Plan) -> bool:
    """Create or upgrade the manifest of a written plan. Returns whether it was new.

    Raises PlanConflict when it is gone although artifacts exist.
    """
    artifacts_exist = any(True for _ in ArtifactStore(run.artifacts).names())
    return create_manifest(run.place, plan, artifacts_exist=artifacts_exist)


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


def spread_samples(sample_count: int, wanted: int) -> list[SampleIndex]:
    """At most `wanted` samples, evenly spread over the plan, ascending."""
    count = min(sample_count, wanted)
    return [SampleIndex((2 * place + 1) * sample_count // (2 * count)) for place in range(count)]


def estimate_sizes(plan: Plan, composer: Composer) -> Estimate:
    """Encode a few samples spread over the plan, with their blurred brightness in the place of depth."""
    sizes = dict.fromkeys(ImageKind, 0)
    count = 0
    for composed in _composed(composer, spread_samples(plan.samples, _PROBES)):
        encoded = encode_sample(composed.canvas, _stand_in(composed), plan.output, plan.depth.encoding)
        for kind in ImageKind:
            sizes[kind] += len(encoded.images[kind])
        count += 1
    names = (member_name(k, SampleIndex(0), sample_count=plan.samples, suffix="jpg") for k in ImageKind)
    container = sum(_ZIP_RECORD_BYTES + 2 * len(name) for name in names) + _LABEL_BYTES
    return Estimate(
        fgbg_bytes=sizes[ImageKind.FGBG] / max(count, 1),
        mask_bytes=sizes[ImageKind.MASK] / max(count, 1),
        depth_bytes=sizes[ImageKind.DEPTH] / max(count, 1),
        container_bytes=float(container),
    )


def _composed(composer: Composer, samples: list[SampleIndex]) -> Iterator[ComposedSample]:
    for sample in samples:
        try:
            yield composer.compose(sample)
        except SampleError:
            continue


def _stand_in(composed: ComposedSample) -> NDArray[np.float32]:
    """Brightness averaged over blocks of 8x8 and drawn large again, 0.01-1.0: about as smooth as depth."""
    grey = composed.network_input.astype(np.float32).mean(axis=2) / 255
    height, width = (side // 8 * 8 for side in grey.shape)
    blocks = grey[:height, :width].reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    return np.clip(np.kron(blocks, np.ones((4, 4), np.float32)), 0.01, 1.0).astype(np.float32)

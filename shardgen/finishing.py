"""Finish a run directory: merge its artifacts into the zip, and verify either; brings the decoder along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shardgen.artifacts.files import DiskFiles, refuse_unusable_folder
from shardgen.artifacts.output import refuse_foreign_output
from shardgen.artifacts.store import ArtifactStore
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind, KindSums
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.imaging.codec import decode_encoded
from shardgen.imaging.outputs import sums_of
from shardgen.imaging.sheet import SheetSample, contact_sheet
from shardgen.merging import Images, MakeContactSheet, MergeInputs, MergeResult, OnProgress, merge
from shardgen.recognising import adopt_folder, is_recognised
from shardgen.recorded import opened_records
from shardgen.requeueing import RequeueChoice, Requeued, requeue, requeue_batches
from shardgen.rundir import RunDirectory
from shardgen.verifying import Finding, Verification, verify_run, verify_zip

ZIP_NAME = "dataset.zip"


def sheet_maker(plan: Plan) -> MakeContactSheet:
    """How the contact sheet of this plan's encoded samples is drawn, as PNG bytes."""
    size = plan.output.size

    def draw(samples: Sequence[tuple[int, Images]]) -> bytes:
        return contact_sheet(
            [
                SheetSample(
                    number=number,
                    fgbg=decode_encoded(images[ImageKind.FGBG], channels=3, size=size),  # type: ignore[arg-type]
                    mask=decode_encoded(images[ImageKind.MASK], channels=1, size=size),  # type: ignore[arg-type]
                    depth=decode_encoded(images[ImageKind.DEPTH], channels=1, size=size),
                )
                for number, images in samples
            ],
            depth_is_random=plan.depth.weights.is_random,
        )

    return draw


def merge_run(
    run: RunDirectory,
    output: Path | None,
    *,
    allow_dead_letters: bool,
    on_progress: OnProgress = lambda _done, _planned: None,
    on_step: OnStep = ignore_step,
) -> MergeResult:
    """Merge a run directory into `output`, or `RUN_DIR/dataset.zip`. Errors as `merging.merge`.

    Raises PlanConflict, too, when the run's workers write to another artifact folder.
    """
    plan = run.plan()
    with opened_records(run, plan, refuse_other=True) as recorded:
        inputs = MergeInputs(
            plan=plan,
            source=recorded.source,
            store=recorded.store,
            make_contact_sheet=sheet_maker(plan),
            allow_dead_letters=allow_dead_letters,
        )
        return merge(inputs, output or run.path / ZIP_NAME, on_progress=on_progress, on_step=on_step)


def refuse_output(run: RunDirectory, plan: Plan, output: Path | None) -> None:
    """Say before hours of work, not after them, that the zip could not be written there.

    Raises InputMissing for a folder that cannot be written, PlanConflict for a file that is not this plan's.
    """
    path = output or run.path / ZIP_NAME
    refuse_unusable_folder(path.parent, makes=0, otherwise="choose another folder with -o")
    refuse_foreign_output(path, plan.fingerprint, files=DiskFiles())


def image_sums(kind: ImageKind, data: bytes, size: tuple[int, int]) -> KindSums:
    """Decode one stored image of (width, height) pixels and add them up. Raises SampleError."""
    return sums_of(kind, decode_encoded(data, channels=kind.channels, size=size))


def check_zip(
    path: Path, *, decode: bool, on_progress: OnProgress = lambda _done, _planned: None
) -> Verification:
    """Verify a finished zip against itself; with `decode` every pixel is counted again."""
    return verify_zip(path, image_sums=image_sums if decode else None, on_progress=on_progress)


def check_run(run: RunDirectory, *, on_progress: OnProgress = lambda _done, _planned: None) -> Verification:
    """Verify every artifact of a run directory against its receipt; also whether the folder is the run's."""
    plan = run.plan()
    if run.is_shared_folder:
        with opened_records(run, plan) as recorded:
            return verify_run(plan, recorded.source, recorded.store, on_progress=on_progress)
    store = ArtifactStore(run.artifacts)
    with run.manifest(plan, read_only=True) as manifest:
        found = verify_run(plan, manifest, store, on_progress=on_progress)
        if is_recognised(store, manifest):
            return found
    stranger = Finding(subject=str(store.root), fact="is not the folder that this run's workers write to")
    return replace(found, findings=(stranger, *found.findings))


def put_back(run: RunDirectory, batches: Sequence[BatchIndex]) -> Requeued:
    """Requeue batches that were found bad; what is left is whole here, so this becomes the run's folder."""
    if run.is_shared_folder:
        return requeue(run, RequeueChoice(batches=tuple(batches)))
    plan = run.plan()
    store = ArtifactStore(run.artifacts)
    with run.manifest(plan) as manifest:
        done = requeue_batches(plan, manifest, store, batches)
        adopt_folder(store, manifest)
    return done

"""Finish a run directory: merge its artifacts into the zip, and verify either; brings the decoder along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shardgen.artifacts.store import ArtifactStore
from shardgen.coordination.artifact_folder import adopt_folder, is_recognised
from shardgen.coordination.recorded import opened_records
from shardgen.dataset.merge import Images, MakeContactSheet, MergeInputs, MergeResult, OnProgress, merge
from shardgen.dataset.output import refuse_foreign_output
from shardgen.dataset.verify import Finding, Verification, verify_run, verify_zip
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind, KindSums
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ReceiptConflict, RunIncomplete
from shardgen.imaging.codec import decode_encoded
from shardgen.imaging.outputs import sums_of
from shardgen.imaging.sheet import SheetSample, contact_sheet
from shardgen.manifest.manifest import Manifest
from shardgen.operations.requeue import RequeueChoice, Requeued, requeue, requeue_batches
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import DiskFiles, refuse_unusable_folder

ZIP_NAME = "dataset.zip"
_DAMAGE_SECONDS = 10.0  # nobody can commit meanwhile, and everybody else waits 30 s for that


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

    Raises PlanConflict, too, when the run's workers write to another artifact folder, and ManifestCorrupt
    when samples are missing because the manifest contradicts itself: then no worker would make them.
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
        try:
            return merge(inputs, output or run.path / ZIP_NAME, on_progress=on_progress, on_step=on_step)
        except (RunIncomplete, ReceiptConflict):
            if isinstance(recorded.source, Manifest):
                recorded.source.refuse_contradictions()
            raise


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
    """Verify a run directory: its manifest against itself and the plan, every artifact against its receipt.

    Also whether the folder is the run's. Raises ArtifactCorrupt for a link in the place of a shard's folder.
    """
    plan = run.plan()
    if run.is_shared_folder:
        with opened_records(run, plan) as recorded:
            found = verify_run(plan, recorded.source, recorded.store, on_progress=on_progress)
        if not run.place.backend.is_there():  # this machine has not worked on it
            return found
        with run.manifest(plan, read_only=True) as manifest:
            return _with_manifest(manifest, lambda: found)
    store = ArtifactStore(run.artifacts)
    store.refuse_links()
    with run.manifest(plan, read_only=True) as manifest:
        found = _with_manifest(manifest, lambda: verify_run(plan, manifest, store, on_progress=on_progress))
        if found.is_damaged or is_recognised(store, manifest):
            return found
    stranger = Finding(subject=str(store.root), fact="is not the folder that this run's workers write to")
    return replace(found, findings=(stranger, *found.findings))


def _with_manifest(manifest: Manifest, verify: Callable[[], Verification]) -> Verification:
    """Look at the manifest first; of a damaged one nothing is believed, so nothing more is compared."""
    damage = manifest.damage(seconds=_DAMAGE_SECONDS)
    remarks = (
        ()
        if damage.is_complete
        else (f"looked for damage in {manifest.shown} for {_DAMAGE_SECONDS:g} s only",)
    )
    if damage.facts:
        wrong = (Finding(subject=manifest.shown, fact=fact, in_manifest=True) for fact in damage.facts)
        return Verification(samples=0, findings=tuple(wrong), is_damaged=True, remarks=remarks)
    contradictions = tuple(
        Finding(subject=one.subject, fact=one.fact, in_manifest=True)
        for one in manifest.audit().contradictions
    )
    found = verify()
    return replace(found, findings=contradictions + found.findings, remarks=remarks)


def put_back(run: RunDirectory, batches: Sequence[BatchIndex]) -> Requeued:
    """Put the manifest's records right, then requeue batches that were found bad.

    What is left is whole in this artifact folder, so this becomes the run's.
    """
    plan = run.plan()
    mended = 0
    if not run.is_shared_folder or run.place.backend.is_there():
        with run.manifest(plan) as manifest:
            mended = manifest.mend()
    if run.is_shared_folder:
        return replace(requeue(run, RequeueChoice(batches=tuple(batches))), mended=mended)
    store = ArtifactStore(run.artifacts)
    with run.manifest(plan) as manifest:
        done = requeue_batches(plan, manifest, store, batches)
        adopt_folder(store, manifest)
    return replace(done, mended=mended)

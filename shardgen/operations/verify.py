"""Verify a run directory against its record, or a zip against itself; put bad batches back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shardgen.artifacts.check import OnProgress
from shardgen.coordination.artifact_folder import is_recognised
from shardgen.coordination.open import open_directory, open_run
from shardgen.dataset.verify import Finding, Verification, verify_run, verify_zip
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.domain.wording import counted, typed
from shardgen.errors import ArtifactCorrupt, CorruptionError, InputMissing, ManifestCorrupt, OperatorError
from shardgen.manifest.port import Operator
from shardgen.manifest.tables import REBUILD
from shardgen.manifest.urls import is_meant_as_bucket, refuse_mistyped_url
from shardgen.operations.requeue import Requeued, requeued
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import is_file, is_there

_DAMAGE_SECONDS = 10.0  # nobody can commit meanwhile, and everybody else waits 30 s for that


def open_subject(subject: Path | str) -> RunDirectory | Path:
    """Open what is named: a run directory or its bucket, or a finished zip, which stays a path.

    Raises InputMissing for neither, or StorageFailed; and as `open_directory` does.
    """
    if is_meant_as_bucket(str(subject)):
        return open_directory(subject)
    path = Path(subject)
    if not is_there(path):
        refuse_mistyped_url(str(subject))
        raise InputMissing(f"{subject}: there is no such run directory or zip", hint="check the name")
    return path if is_file(path) else open_directory(path)


def check(
    subject: RunDirectory | Path,
    *,
    quick: bool = False,
    on_progress: OnProgress = lambda _done, _planned: None,
) -> Verification:
    """Verify a run directory against its record, or a zip against itself.

    Of a zip `quick` decodes no image, so the statistics are not computed again.
    """
    if isinstance(subject, Path):
        return verify_zip(subject, decode=not quick, on_progress=on_progress)
    return check_run(subject, on_progress=on_progress)


def check_run(run: RunDirectory, *, on_progress: OnProgress = lambda _done, _planned: None) -> Verification:
    """Verify a run directory: its manifest against itself and the plan, every artifact against its receipt.

    And the files that the plan names beside it.

    Also whether the folder is the run's. Raises ArtifactCorrupt for a link in the place of a shard's folder.
    """
    opened = open_run(run)
    lost = tuple(_lost_files(run, opened.plan))

    def verify() -> Verification:
        with opened.records() as recorded:
            return verify_run(opened.plan, recorded.source, recorded.store, on_progress=on_progress)

    with opened.own_records() as own:
        if own.store is not None:
            own.store.refuse_unreadable()
        if own.manifest is None:  # this machine has not worked on it
            found = verify()
            return replace(found, findings=(*lost, *found.findings))
        found = _with_manifest(own.manifest.operator, verify)
        found = replace(found, findings=(*lost, *found.findings))
        if found.is_damaged or own.store is None or is_recognised(own.store, own.manifest.folder):
            return found
    stranger = Finding(subject=own.store.shown, fact="is not the folder that this run's workers write to")
    return replace(found, findings=(stranger, *found.findings))


def _lost_files(run: RunDirectory, plan: Plan) -> Iterator[Finding]:
    """What the plan names beside it and is not there; no batch is to blame."""
    recipe = run.recipe(plan)
    for file in recipe.files:
        try:
            recipe.beside(file)
        except (CorruptionError, OperatorError) as error:
            subject = str(run.path / file.name)
            yield Finding(subject=subject, fact=str(error).removeprefix(f"{subject}: "))


def _with_manifest(operator: Operator, verify: Callable[[], Verification]) -> Verification:
    """Look at the manifest first; of a damaged one nothing is believed, so nothing more is compared."""
    damage = operator.damage(seconds=_DAMAGE_SECONDS)
    remarks = () if damage.is_complete else (damage.remark(operator.shown, _DAMAGE_SECONDS),)
    if damage.facts:
        wrong = (Finding(subject=operator.shown, fact=fact, in_manifest=True) for fact in damage.facts)
        return Verification(samples=0, findings=tuple(wrong), is_damaged=True, remarks=remarks)
    contradictions = tuple(
        Finding(subject=one.subject, fact=one.fact, in_manifest=True)
        for one in operator.audit().contradictions
    )
    found = verify()
    return replace(found, findings=contradictions + found.findings, remarks=remarks)


def put_back(run: RunDirectory, batches: Sequence[BatchIndex]) -> Requeued:
    """Put the manifest's records right, then requeue batches that were found bad."""
    opened = open_run(run)
    undone, mended = opened.put_back(batches)
    return requeued(opened.plan, undone, mended=mended)


def what_is_wrong(
    subject: Path | str, found: Verification, requeued: Requeued | None
) -> CorruptionError | None:
    """ManifestCorrupt or ArtifactCorrupt with what to do now; None if nothing was wrong."""
    if not found.findings:
        return None
    name = typed(subject)
    if requeued is not None:
        hint = f"make what is pending, then merge: shardgen run {name}"
    elif found.is_damaged:
        hint = REBUILD
    elif is_meant_as_bucket(str(subject)) or Path(subject).is_dir():
        hint = f"shardgen verify {name} --requeue puts exactly the bad batches back, and the manifest right"
    elif found.samples:
        hint = f"its run directory can make it again: shardgen verify DIR, then shardgen merge DIR -o {name}"
    else:
        hint = "name a run directory, or a zip that `shardgen merge` wrote"
    kind = ManifestCorrupt if all(one.in_manifest for one in found.findings) else ArtifactCorrupt
    return kind(f"{subject}: {counted(len(found.findings), 'finding')}", hint=hint)

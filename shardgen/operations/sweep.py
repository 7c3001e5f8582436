"""Sweep: find the files that no receipt names and no lease could still publish, and remove them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from shardgen.artifacts.archive import read_artifact
from shardgen.artifacts.store import ArtifactStore, FoundFile, Listing
from shardgen.coordination.artifact_folder import open_store
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.domain.steps import OnStep, SweepStep, ignore_step
from shardgen.errors import ArtifactCorrupt, StorageFailed
from shardgen.manifest.backend import StillAlone
from shardgen.manifest.port import Manifest
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import abandoned_files, remove_abandoned

_DAMAGE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A file that nothing will ever use; `is_pending` when a batch of it has no receipt."""

    path: str
    size_bytes: int
    is_pending: bool


@dataclass(slots=True, kw_only=True)
class Swept:
    """What was found: orphans, what killed merges and backups left, files still in use, and what is not ours.

    `strangers` are also files that cannot be shown to be ours; `remarks` say what was not looked at.
    """

    orphans: list[Orphan] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def sweep(run: RunDirectory, *, remove: bool, on_step: OnStep = ignore_step) -> Swept:
    """Find orphans, and with `remove` remove them, durably. Raises InputMissing without a manifest.

    Raises ManifestBusy beside a rebuild, and when it could not keep others away to the end; ManifestCorrupt
    when the manifest is damaged or contradicts itself.
    """
    opened = open_run(run)
    plan, alone = opened.plan, opened.to_sweep()
    store = open_store(run)
    with ExitStack() as stack:
        still_alone: StillAlone | None = None
        if remove:
            # A manifest rebuilt between our look and the removal could name what we remove.
            still_alone = stack.enter_context(alone())
        manifest = stack.enter_context(run.manifest(plan, read_only=True))
        damage = manifest.operator.damage(seconds=_DAMAGE_SECONDS)  # what lost its receipt would look unused
        damage.refuse(manifest.shown)
        manifest.operator.refuse_contradictions()
        swept = find_orphans(plan, manifest, store)
        if not damage.is_complete:  # all receipts were read, and as many are there as the counters say
            swept.remarks.append(damage.remark(manifest.shown, _DAMAGE_SECONDS))
        swept.unfinished = abandoned_files(run.path)
        on_step(SweepStep.LISTED)
        if still_alone is not None:
            paths = _asking_before_each(still_alone, [orphan.path for orphan in swept.orphans])
            store.remove(paths, on_removed=lambda: on_step(SweepStep.REMOVED))
            for path in swept.unfinished:
                remove_abandoned(path)
            on_step(SweepStep.SYNCED)
    return swept


def _asking_before_each(still_alone: StillAlone, paths: Iterable[str]) -> Iterator[str]:
    """On a server the lock ends with its session, and then a rebuild may begin that takes these files."""
    for path in paths:
        still_alone()
        yield path


def find_orphans(plan: Plan, manifest: Manifest, store: ArtifactStore) -> Swept:
    """List the files, then ask who may still record, then read the receipts: this order makes it safe.

    A file that was there before the manifest was asked, and that it then rules out, can never be recorded any
    more. If it was recorded, that was before, so the receipts read afterwards name it.
    """
    listing = store.listing(plan.layout)
    may_still_count = manifest.leases.may_still_count()
    swept = Swept(strangers=list(listing.strangers))
    unrecorded, recorded_batches = _without_receipt(listing, manifest)
    workers = {worker[-8:] for worker in manifest.workers.known()}
    for found in unrecorded:
        name = found.name
        slice_ = name.slice_in(plan.layout)
        if slice_ is None or may_still_count(
            name.shard, slice_, fence=name.fence, worker=name.worker, batches=name.batches
        ):
            swept.live.append(found.path)
        elif not _is_ours(plan, store, found, workers):
            swept.strangers.append(found.path)
        else:
            is_pending = not recorded_batches.issuperset(name.batches)
            size = store.size(found.path)
            if size is not None:
                swept.orphans.append(Orphan(path=found.path, size_bytes=size, is_pending=is_pending))
    return swept


def _without_receipt(listing: Listing, manifest: Manifest) -> tuple[Sequence[FoundFile], set[BatchIndex]]:
    """The files that no receipt names, and which batches have a receipt."""
    recorded, batches = set[str](), set[BatchIndex]()
    for batch, artifact in manifest.receipts.artifacts():
        recorded.add(artifact)
        batches.add(batch)
    return [found for found in listing.files if found.path not in recorded], batches


def _is_ours(plan: Plan, store: ArtifactStore, found: FoundFile, workers: Collection[str]) -> bool:
    """Whether it is of this plan; of a file that does not say so, whether this run knows its worker.

    Two runs may share one artifact folder: what reads as nothing here may be half written by the other.
    """
    try:
        data = store.read_unrecorded(found.path)
    except ArtifactCorrupt:  # no regular file
        return False
    except StorageFailed as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return True  # gone, and so nobody's
        if isinstance(error.__cause__, PermissionError):
            return found.name.worker in workers
        raise
    try:
        _, receipt = read_artifact(data, name=found.path)
    except ArtifactCorrupt:
        return found.name.worker in workers
    return receipt.fingerprint == plan.fingerprint_of(receipt.batches[0].batch)

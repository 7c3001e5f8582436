"""The smallest backend: a folder that all see at once. A file claims a slice, artifacts are the record."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shardgen.artifacts.check import examine
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.marks import read_marks
from shardgen.artifacts.names import ArtifactName
from shardgen.coordination.artifact_folder import claim_folder
from shardgen.coordination.base import Coordinator, OnLook, OpenedRun, OwnRecords, Recorded, Seat
from shardgen.coordination.report import Report, make_report
from shardgen.domain.claims import Claim, SliceId, winning_order
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.receipt import DeadLetter, Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.steps import OnStep, RequeueStep, ignore_step
from shardgen.domain.worker import WorkerIdentity, WorkerReport
from shardgen.errors import ArtifactCorrupt
from shardgen.machine.processes import gone
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import publish_file

URL = "files:"
_ASK_AGAIN_SECONDS = 0.5  # to ask is to list two folders


class Files:
    """What lies in the run directory: artifacts, and claims `SHARD-SLICE.fFENCE`, emptied when they end."""

    def __init__(self, run: RunDirectory) -> None:
        self.plan = run.plan()
        self.store = FolderStore(run.artifacts)
        self._claims = run.path / "claims"
        self._claims.mkdir(exist_ok=True)
        self._examined: dict[ArtifactName, list[Receipt]] = {}

    def path(self, slice_id: SliceId, fence: int) -> Path:
        return self._claims / f"{slice_id[0]}-{slice_id[1]}.f{fence}"

    def fence(self, slice_id: SliceId) -> Fence:
        """The highest that was claimed; 0 for none."""
        claims = self._claims.glob(f"{slice_id[0]}-{slice_id[1]}.f*")
        return Fence(max((int(claim.suffix[2:]) for claim in claims), default=0))

    def is_held(self, slice_id: SliceId, policy: LeasePolicy) -> bool:
        """Whether the worker of the last claim shows life: it touches the file at every beat."""
        claim = self.path(slice_id, self.fence(slice_id))
        if not claim.exists() or not (written := claim.read_text(encoding="utf-8")):
            return False
        is_fresh = time.time() - claim.stat().st_mtime < policy.duration.total_seconds()
        return is_fresh and not gone([WorkerIdentity(**json.loads(written))])

    def winners(self) -> dict[BatchIndex, Receipt]:
        """Of each batch the highest whole fence that was not undone, as a rebuild takes it."""
        for name in self.store.names():
            if name not in self._examined:
                self._examined[name] = []
                with suppress(ArtifactCorrupt):
                    self._examined[name] = examine(self.plan, name, self.store.read_unrecorded(name))
        undone, found = read_marks(self.plan, self.store), dict[BatchIndex, Receipt]()
        for name in sorted(self._examined, key=lambda one: winning_order(one.fence, one.worker, one.random)):
            for receipt in self._examined[name]:
                if not undone.includes(receipt.record.batch, receipt.fence):
                    found.setdefault(receipt.record.batch, receipt)
        return dict(sorted(found.items()))

    def update(self, manifest: Manifest, lease: Lease | None = None) -> None:
        """Let this machine's index know what others have made and undone."""
        manifest.index.forget_undone(read_marks(self.plan, self.store).up_to)
        manifest.index.adopt(list(self.winners().values()), lease)


class FilesCoordinator(Coordinator):
    """One worker's part."""

    def __init__(self, files: Files, manifest: Manifest, seat: Seat) -> None:
        super().__init__(manifest, files.store, seat)
        self._own = manifest
        self._files = files
        self._claim: Path | None = None
        self._is_given = False

    def join(self, on_look: OnLook) -> None:
        on_look("the artifact folder")
        claim_folder(self.store, self.manifest.folder)
        self.manifest.workers.register(self.seat.identity)

    def lease(self, policy: LeasePolicy) -> Lease | NoLease:
        self._files.update(self._own)
        layout, index = self._files.plan.layout, self._own.index
        shards = range(layout.shard_count) if self.seat.shard is None else [self.seat.shard]
        over = {one: state for one, state in index.unavailable().items() if state is not SliceState.LEASED}
        leased = 0
        for shard in map(ShardIndex, shards):
            for slice_id in ((shard, SliceIndex(slice_)) for slice_ in range(layout.slice_count(shard))):
                if slice_id in over:
                    continue
                granted = None if self._files.is_held(slice_id, policy) else self._take(slice_id, policy)
                if granted is not None:
                    return granted
                leased += 1
        return NoLease(leased=leased, blocked=sum(state is SliceState.BLOCKED for state in over.values()))

    def _take(self, slice_id: SliceId, policy: LeasePolicy) -> Lease | None:
        """Claim it under the next fence; None when another was quicker."""
        identity, fence = self.seat.identity, Fence(self._files.fence(slice_id) + 1)
        claim = self._files.path(slice_id, fence)
        if not publish_file(claim, json.dumps(asdict(identity)).encode()):
            return None
        word = Claim(shard=slice_id[0], slice=slice_id[1], fence=fence, worker=identity.id)
        granted = self._own.index.lease_claimed(identity.id, policy, word, gone=self.ended())
        if isinstance(granted, NoLease):
            os.truncate(claim, 0)
            return None
        self._claim, self._is_given = claim, False
        return granted

    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex]:
        if self._is_given:
            return []
        self._is_given = True
        self._files.update(self._own, lease)  # the last holder may have made more since we looked
        if self._own.index.unavailable().get((lease.shard, lease.slice)) is SliceState.DONE:
            return []
        return self.manifest.receipts.pending_batches(lease)

    def release(self, lease: Lease) -> bool:
        was_held = self.manifest.leases.release(lease)
        self._end()
        return was_held

    def _end(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            os.truncate(claim, 0)

    def seconds_for_another(self, batch_seconds: float) -> float:
        return batch_seconds

    def seconds_to_ask_again(self, policy: LeasePolicy) -> float:
        return min(policy.heartbeat.total_seconds(), _ASK_AGAIN_SECONDS)

    def beat(self, report: WorkerReport) -> None:
        if (claim := self._claim) is not None:
            os.utime(claim)
        self.manifest.workers.beat(self.seat.identity.id, report)

    @property
    def is_missed(self) -> bool:
        return self._claim is not None

    def leave(self, last: WorkerReport) -> None:
        self._end()
        self.say_last(last)


@dataclass(frozen=True, slots=True)
class Winners:
    """A ReceiptSource."""

    found: list[Receipt]

    def receipts(self) -> Iterator[Receipt]:
        return iter(self.found)

    def dead_letters(self) -> Iterator[DeadLetter]:
        return (letter for receipt in self.found for letter in receipt.record.dead_letters)


class FilesRun(OpenedRun):
    """What commands ask."""

    def ensure_manifest(self) -> bool:
        """Artifacts may be others': an index that is new beside them is no loss."""
        return create_manifest(self.run.database, self.plan)

    def coordinator(self, seat: Seat) -> FilesCoordinator:
        self.ensure_manifest()
        return FilesCoordinator(Files(self.run), self.run.database_manifest(self.plan), seat)

    def report(self) -> Report:
        self.ensure_manifest()
        with self.run.database_manifest(self.plan) as manifest:
            Files(self.run).update(manifest)
            return make_report(self.run, self.plan, manifest.overview())

    @contextmanager
    def records(self) -> Iterator[Recorded]:
        files = Files(self.run)
        yield Recorded(source=Winners(list(files.winners().values())), store=files.store)

    @contextmanager
    def own_records(self) -> Iterator[OwnRecords]:
        self.ensure_manifest()
        with self.run.database_manifest(self.plan, read_only=True) as manifest:
            yield OwnRecords(manifest=manifest, store=FolderStore(self.run.artifacts))

    def undo(
        self, batches: Sequence[BatchIndex], *, dead_letters: bool = False, on_step: OnStep = ignore_step
    ) -> list[BatchIndex]:
        files = Files(self.run)
        found = files.winners()
        letters = [batch for batch, receipt in found.items() if receipt.record.dead_letters]
        undone = sorted(found.keys() & set(letters if dead_letters else batches))
        marks = defaultdict[Fence, list[BatchIndex]](list)
        for batch in undone:
            marks[files.fence((found[batch].shard, found[batch].slice))].append(batch)
        for fence, marked in marks.items():
            document = {"fingerprint": self.plan.fingerprint, "fence": fence, "batches": marked}
            files.store.publish_requeued(fence, json.dumps(document).encode())
        on_step(RequeueStep.MARKED)
        return undone

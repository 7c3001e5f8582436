"""A run whose record is a database that all workers share: SQLite or PostgreSQL."""

from __future__ import annotations

import hashlib
import json
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import groupby

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.store import ArtifactStore
from shardgen.coordination.artifact_folder import adopt_folder, claim_folder, open_store, refuse_other_folder
from shardgen.coordination.base import (
    Coordinator,
    OnLook,
    OpenedRun,
    OwnRecords,
    PutPlan,
    Recorded,
    Seat,
    refused_plan,
)
from shardgen.coordination.report import Report, make_report
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.steps import OnStep, PlanStep, RequeueStep, ignore_step
from shardgen.domain.worker import WorkerReport
from shardgen.errors import ManifestMismatch, ShardgenError
from shardgen.machine.processes import gone, host_id
from shardgen.manifest.backend import Backend, StillAlone
from shardgen.manifest.manifest import read_stored_plan
from shardgen.manifest.operator import Marks
from shardgen.manifest.port import Manifest
from shardgen.manifest.replanning import replace_plan
from shardgen.manifest.schema import StoredPlan, foreign_plan, lost_manifest
from shardgen.manifest.slices import contradictory
from shardgen.manifest.sqlite import SqliteFile
from shardgen.settings.plan_file import MAX_BYTES, NEXT, read_plan
from shardgen.storage.bounded import read_regular
from shardgen.storage.files import is_there, storing

_ASK_AGAIN_SECONDS = 3.0  # while others hold all that is left: an end must not look like a hang


class ManifestCoordinator(Coordinator, ABC):
    """One worker's part in a manifest that all workers share."""

    def __init__(self, manifest: Manifest, store: ArtifactStore, seat: Seat) -> None:
        super().__init__(manifest, store, seat)
        self._held: Lease | None = None
        self._given: Lease | None = None  # whose batches were all given out

    def join(self, on_look: OnLook) -> None:
        """Claim the artifact folder, then be listed."""
        on_look("the artifact folder")
        claim_folder(self.store, self.manifest.folder)
        self.manifest.workers.register(self.seat.identity)

    def lease(self, policy: LeasePolicy) -> Lease | NoLease:
        """From the manifest, which decides."""
        worker, shard = self.seat.identity.id, self.seat.shard
        granted = self.manifest.leases.lease(worker, policy, shard=shard, gone=self.ended())
        self._held = granted if isinstance(granted, Lease) else None
        return granted

    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex]:
        """The whole slice at once."""
        del batch_seconds
        if self._given == lease:
            return []
        batches = self.manifest.receipts.pending_batches(lease)
        if not batches:  # given back it would be leased again and again, and never be done
            where = f"shard {lease.shard} slice {lease.slice}"
            raise contradictory(where, "is not done, but all its batches have receipts")
        self._given = lease
        return batches

    def release(self, lease: Lease) -> bool:
        """Its last receipt has ended it, unless an operator has put a batch back meanwhile."""
        was_held = self.manifest.leases.release(lease)
        self._held = None
        return was_held

    def seconds_for_another(self, batch_seconds: float) -> float:
        """A batch's."""
        return batch_seconds

    def beat(self, report: WorkerReport) -> None:
        """In the worker's row."""
        self.manifest.workers.beat(self.seat.identity.id, report)

    @property
    def is_missed(self) -> bool:
        """While a slice is leased: every batch is visible as soon as it is recorded."""
        return self._held is not None

    def leave(self, last: WorkerReport) -> None:
        """In the worker's row."""
        self._held = None
        self.say_last(last)


class ManifestRun(OpenedRun, ABC):
    """A run whose manifest is the record, and is the same for all machines."""

    def report(self) -> Report:
        """As the manifest counts."""
        with self.run.manifest(self.plan, read_only=True) as manifest:
            return make_report(self.run, self.plan, manifest.overview())

    @contextmanager
    def records(self) -> Iterator[Recorded]:
        """The manifest's receipts, and the artifact folder."""
        with self.run.manifest(self.plan, read_only=True) as manifest:
            store = open_store(self.run)
            yield Recorded(source=manifest.receipts, store=store, manifest=manifest)

    @contextmanager
    def own_records(self) -> Iterator[OwnRecords]:
        """The same for all machines."""
        with self.run.manifest(self.plan, read_only=True) as manifest:
            yield OwnRecords(manifest=manifest, store=open_store(self.run))

    def undo(
        self, batches: Sequence[BatchIndex], *, dead_letters: bool = False, on_step: OnStep = ignore_step
    ) -> list[BatchIndex]:
        """In one transaction. Raises ManifestBusy while a worker holds one of the slices."""
        store = open_store(self.run)
        with self.run.manifest(self.plan) as manifest:
            refuse_other_folder(store, manifest.folder)  # marks must lie where a rebuild will look for them
            wanted = manifest.receipts.batches_with_dead_letters() if dead_letters else batches
            return undo_marked(self.plan, manifest, store, wanted, on_step=on_step)

    def put_back(self, batches: Sequence[BatchIndex]) -> tuple[list[BatchIndex], int]:
        """What is left is whole in this artifact folder, so this becomes the run's."""
        store = open_store(self.run)
        with self.run.manifest(self.plan) as manifest:
            mended = manifest.operator.mend()
            store.make_identity()  # the marks need a folder, which may be lost
            undone = undo_marked(self.plan, manifest, store, batches)
            adopt_folder(store, manifest.folder)
        return undone, mended


class DatabaseCoordinator(ManifestCoordinator):
    """One worker's part in a database."""

    def seconds_to_ask_again(self, policy: LeasePolicy) -> float:
        """Soon: to ask costs a statement."""
        return min(policy.heartbeat.total_seconds(), _ASK_AGAIN_SECONDS)

    def seconds_between_overviews(self, policy: LeasePolicy) -> float:
        """A few: it is one statement."""
        return min(policy.heartbeat.total_seconds(), _ASK_AGAIN_SECONDS)

    @property
    def may_plan_anew(self) -> bool:
        """While there is no receipt."""
        return not self.manifest.receipts.are_there()


class DatabaseRun(ManifestRun):
    """A run whose manifest is the record, and whose artifact folder all workers write to."""

    @property
    def why_one_machine(self) -> str:
        """A SQLite file is locked by one machine's kernel."""
        is_file = isinstance(self.run.database.backend, SqliteFile)
        return "a SQLite manifest is for one machine" if is_file else ""

    def claim_artifacts(self) -> str | None:
        """Unless they are in a bucket, which has one name everywhere."""
        store = open_store(self.run)
        if not isinstance(store, FolderStore):
            return None
        with self.run.manifest(self.plan) as manifest:
            claim_folder(store, manifest.folder)
        return store.identity()

    def put_plan(self, *, grows: bool = False, on_step: OnStep = ignore_step) -> PutPlan:
        """The manifest's plan counts, and changes in one transaction, between `plan.json.next` and its name.

        What a killed command has left is settled first. A file that the manifest does not know is not
        replaced.
        """
        run, path = self.run, self.run.path
        stored = read_stored_plan(run.database)
        self._settle_next(stored)
        here = read_plan(path)
        if stored is None:
            if here not in (None, self.plan):
                if any(True for _ in open_store(run).names()):
                    raise lost_manifest(run.database.backend.shown)
                self.write_next(on_step)
                self.rename_next(on_step)
            return PutPlan(before=here, is_new=self._begin(on_step))
        if here is not None and here.fingerprint not in {stored.fingerprint, *stored.earlier}:
            raise foreign_plan(run.database.backend.shown, stored.fingerprint, here)
        before = run.parse_stored(stored)
        if before == self.plan:
            if here not in (None, before):
                self.write_next(on_step)
                self.rename_next(on_step)
            return PutPlan(before=before, is_new=self._begin(on_step))
        if stored.has_receipts and not grows:
            raise refused_plan(run, before, self.plan)
        self._free_slices_of_the_ended(before)
        self.write_next(on_step)
        try:
            replace_plan(run.database, before.fingerprint, self.plan, grows=grows)
        except ShardgenError:
            with suppress(ShardgenError):  # of a server that is away the next command will know more
                self._settle_next(read_stored_plan(run.database))
            raise
        on_step(PlanStep.ROWS_REPLACED)
        self.rename_next(on_step)
        return PutPlan(before=before, is_new=False)

    def _free_slices_of_the_ended(self, before: Plan) -> None:
        """A lease outlives a worker that was killed; on this host it is known to have ended."""
        # An older manifest is upgraded with the change; there the lease runs out.
        with suppress(ManifestMismatch), self.run.manifest(before) as manifest:
            ended = gone(manifest.workers.alive_on_host(host_id()))
            manifest.leases.free_slices_of(ended, self.run.settings.lease_policy)

    def _settle_next(self, stored: StoredPlan | None) -> None:
        """A `plan.json.next` that the manifest holds gets its name; any other never counted."""
        following = self.run.path / NEXT
        if not is_there(following):
            return
        with storing(following):
            data = read_regular(following, limit=MAX_BYTES)
        if stored is not None and hashlib.sha256(data).hexdigest() == stored.fingerprint:
            self.rename_next(ignore_step)
        else:
            self.remove_next()

    def coordinator(self, seat: Seat) -> DatabaseCoordinator:
        """Open the manifest."""
        return DatabaseCoordinator(self.run.manifest(self.plan), open_store(self.run), seat)

    def to_sweep(self) -> Callable[[], AbstractContextManager[StillAlone]]:
        """The manifest's lock, if there is a manifest."""
        backend = self.run.database.backend
        return lambda: backend.alone() if backend.is_there() else nullcontext(lambda: None)

    def to_back_up(self) -> Backend:
        """The manifest's."""
        return self.run.database.backend


def undo_marked(
    plan: Plan,
    manifest: Manifest,
    store: ArtifactStore,
    batches: Sequence[BatchIndex],
    *,
    on_step: OnStep = ignore_step,
) -> list[BatchIndex]:
    """Undo the receipts of these batches; those without one are left as they are. Returns the others.

    The mark `artifacts/requeued/<fence>-<random>.json` is durable before a row changes, so that a later
    rebuild does not bring the undone artifacts back. It stays when the change then fails: whether a commit
    that failed has happened is not always known, and a mark too many costs work, one too few brings back what
    was undone. Raises ManifestBusy while a worker holds one of the slices.
    """
    recorded = manifest.receipts.recorded_among(batches)
    if not recorded:
        return []

    def mark(marks: Marks) -> None:
        for fence, marked in marks.items():
            # By block, so that they count, too, for a plan from before a later block was added.
            for fingerprint, group in groupby(sorted(marked), plan.fingerprint_of):
                document = {"fingerprint": fingerprint, "fence": fence, "batches": list(group)}
                store.publish_requeued(
                    fence, json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
                )
        on_step(RequeueStep.MARKED)

    manifest.operator.undo_receipts(recorded, mark=mark)
    on_step(RequeueStep.ROWS_CHANGED)
    return recorded

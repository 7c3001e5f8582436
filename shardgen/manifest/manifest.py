"""The manifest of one run: each method is one short transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import Self

from sqlalchemy import Connection, select, update

from shardgen.domain.claims import Claim, SliceId
from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.domain.overview import Overview
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactRef, DeadLetter, Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.suspicion import Suspicion
from shardgen.domain.worker import WorkerIdentity, WorkerReport
from shardgen.errors import ManifestCorrupt
from shardgen.manifest import (
    consistency,
    leases,
    lookups,
    receipts,
    schema,
    shared,
    suspicion,
    workers,
)
from shardgen.manifest.backend import Access, Body, Damage, Happened, Result
from shardgen.manifest.consistency import Audit, Contradiction
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.leases import Holder, LeaseRequest, NoLease
from shardgen.manifest.overview import read_overview
from shardgen.manifest.slices import from_seconds
from shardgen.manifest.tables import REBUILD, RUN

_PAGE = 2_000  # rows read between two chances for a writer to commit

Clock = Callable[[], datetime]
Marks = dict[Fence, list[BatchIndex]]


def create_manifest(url: DatabaseUrl, plan: Plan, *, artifacts_exist: bool = False) -> bool:
    """Create or upgrade the manifest of a plan; twice is harmless. Returns whether it was new.

    Raises PlanConflict when it would be new although artifacts of an earlier one exist: a lost manifest must
    not look like a fresh start.
    """
    with closing(url.backend.open(Access.CREATE)) as database:

        def create(connection: Connection) -> bool:
            database.hold_for_upgrade(connection)
            return schema.create_or_upgrade(
                connection, plan, where=database.shown, artifacts_exist=artifacts_exist
            )

        return database.transact(create)


def read_stored_plan(url: DatabaseUrl) -> str:
    """The plan's canonical JSON as the manifest keeps it: for a machine that has only `shardgen.toml`."""
    with closing(url.backend.open(Access.READ)) as database:

        def read(connection: Connection) -> str:
            schema.check_revision(connection, where=database.shown)
            return str(connection.execute(select(RUN.c.plan)).scalar_one())

        return database.transact(read, reading=True)


class Manifest:
    """One run's manifest. Thread-safe; never carried over a fork. Close it, or use it in a `with`.

    `clock` replaces the database's own, which leases expire by.
    """

    def __init__(
        self, url: DatabaseUrl, plan: Plan, *, read_only: bool = False, clock: Clock | None = None
    ) -> None:
        self._plan = plan
        self._layout = plan.layout
        self._clock = clock
        self._database = url.backend.open(Access.READ if read_only else Access.WRITE)
        try:
            self._read(self._check)
        except BaseException:
            self.close()
            raise

    def _check(self, connection: Connection) -> None:
        schema.check_revision(connection, where=self._database.shown)
        found = connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none()
        if found is None:
            raise ManifestCorrupt(f"{self._database.shown}: names no plan", hint=REBUILD)
        if found != self._plan.fingerprint:
            raise schema.other_plan(self._database.shown, found, self._plan.fingerprint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._database.close()

    @property
    def shown(self) -> str:
        """For messages: the file, or the server and the database."""
        return self._database.shown

    def now(self) -> datetime:
        """The manifest's clock: the one that leases expire by."""
        return self._read(self._now)

    def _now(self, connection: Connection) -> datetime:
        return from_seconds(self._database.now(connection)) if self._clock is None else self._clock()

    def _read(self, body: Body[Result]) -> Result:
        return self._database.transact(body, reading=True)

    def _write(self, body: Body[Result], happened: Happened[Result] | None = None) -> Result:
        """`body` must be harmless when it is done twice, or else `happened` tell that it was done."""
        return self._database.transact(body, happened=happened)

    # workers

    def register(self, identity: WorkerIdentity) -> None:
        """Add a worker that starts."""
        self._write(lambda connection: workers.register(connection, identity, self._now(connection)))

    def beat(self, worker: WorkerId, report: WorkerReport) -> None:
        """Write down what a worker says of itself; after an end, which is final, nothing."""
        self._write(lambda connection: workers.beat(connection, worker, report, self._now(connection)))

    def set_device(self, worker: WorkerId, device: str) -> None:
        """Say which device a worker found."""
        self._write(lambda connection: workers.set_device(connection, worker, device))

    def alive_on_host(self, host: str) -> list[WorkerIdentity]:
        """The workers of one host that have not said that they ended."""
        return self._read(lambda connection: workers.alive_on_host(connection, host))

    def agreed_micro_batch(self, device_model: str, proposed: int) -> int:
        """The micro-batch of this device model: the first worker's proposal, kept for all later ones."""
        return self._write(lambda connection: workers.agreed_micro_batch(connection, device_model, proposed))

    def shrunk_micro_batch(self, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out on this device model; None: it never did."""
        return self._read(lambda connection: workers.shrunk_micro_batch(connection, device_model))

    def shrink_micro_batch(self, device_model: str, micro_batch: int) -> None:
        """Remember that this device model has no memory for more."""
        self._write(lambda connection: workers.shrink_micro_batch(connection, device_model, micro_batch))

    # the artifact folder

    def artifact_folder(self) -> str | None:
        """The identity of the folder that workers write to; None while none has started."""
        return self._read(_artifact_folder)

    def claim_artifact_folder(self, identity: str) -> str:
        """Make a folder the run's if it has none yet; returns the identity of the one that it has."""

        def claim(connection: Connection) -> str:
            nobodys = RUN.c.artifact_folder.is_(None)
            connection.execute(update(RUN).where(nobodys).values(artifact_folder=identity))
            return _artifact_folder(connection) or identity

        return self._write(claim)

    def replace_artifact_folder(self, identity: str) -> None:
        """Make a folder the run's, whichever it had."""
        replacing = update(RUN).values(artifact_folder=identity)
        self._write(lambda connection: connection.execute(replacing).rowcount)

    # leases

    def lease(
        self,
        worker: WorkerId,
        policy: LeasePolicy,
        *,
        shard: ShardIndex | None = None,
        gone: Collection[WorkerId] = (),
    ) -> Lease | NoLease:
        """Grant one slice, in one transaction, under a new fence; `gone` workers' slices are free.

        `shard` narrows to one shard.
        """
        leases.check_shard(self._layout, shard)

        def take(connection: Connection) -> Lease | NoLease:
            now = self._now(connection)
            request = LeaseRequest(worker=worker, now=now, policy=policy, shard=shard, gone=gone)
            return leases.lease_slice(connection, self._layout, request)

        return self._write(take, lookups.is_granted)

    def lease_claimed(
        self, worker: WorkerId, policy: LeasePolicy, claim: Claim, *, gone: Collection[WorkerId] = ()
    ) -> Lease | NoLease:
        """Grant the slice of a claim in a shared folder, if no other worker of this machine holds it."""

        def take(connection: Connection) -> Lease | NoLease:
            request = LeaseRequest(
                worker=worker,
                now=self._now(connection),
                policy=policy,
                shard=claim.shard,
                slice=claim.slice,
                least_fence=claim.fence,
                gone=gone,
            )
            return shared.lease_claimed(connection, self._layout, request)

        return self._write(take, lookups.is_granted)

    def renew(self, lease: Lease, policy: LeasePolicy) -> None:
        """Extend a lease. Raises LeaseLost."""
        self._write(
            lambda connection: leases.renew(
                connection, lease, expires_at=self._now(connection) + policy.duration
            )
        )

    def release(self, lease: Lease) -> bool:
        """Give a slice back unfinished; no death. Returns False when it was not held any more."""
        return self._write(
            lambda connection: leases.release(connection, lease),
            lambda connection, _: lookups.has_ended(connection, lease),
        )

    def fail(self, lease: Lease, failure: str, policy: LeasePolicy) -> bool:
        """Give a slice back that failed for no sample's fault; returns whether it is blocked. LeaseLost."""
        return self._write(
            lambda connection: leases.fail(connection, lease, failure, max_attempts=policy.max_attempts),
            lambda connection, _: lookups.has_ended(connection, lease),
        )

    def block(self, lease: Lease, reason: str) -> None:
        """Give a slice back that an operator must look at first. Raises LeaseLost."""
        self._write(
            lambda connection: leases.block(connection, lease, reason),
            lambda connection, _: lookups.has_ended(connection, lease),
        )

    def free_slices_of(
        self, gone: Collection[WorkerId], policy: LeasePolicy, *, innocent: Collection[WorkerId] = ()
    ) -> int:
        """Free what ended processes held, at once; no death of those that are `innocent`. How many slices."""
        return self._write(
            lambda connection: leases.free_slices_of(
                connection, gone, innocent=innocent, max_attempts=policy.max_attempts
            ),
            lambda connection, slices: lookups.are_free(connection, gone, slices),
        )

    # suspect mode

    def suspicion(self, lease: Lease) -> Suspicion:
        """What earlier attempts at the leased slice left. Raises LeaseLost."""
        return self._read(lambda connection: suspicion.read_suspicion(connection, lease))

    def note_batch(self, lease: Lease, batch: BatchIndex) -> None:
        """From now on a death falls on this batch. Raises LeaseLost."""
        self._write(lambda connection: suspicion.note_batch(connection, lease, batch))

    def note_sample(self, lease: Lease, sample: SampleIndex) -> None:
        """From now on a death falls on this sample alone. Raises LeaseLost."""
        self._write(lambda connection: suspicion.note_sample(connection, lease, sample))

    def note_pass(self, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
        """The noted sample survived; returns the samples that are given up by that. Raises LeaseLost."""
        return self._write(
            lambda connection: suspicion.note_pass(connection, lease, sample, made=made),
            lambda connection, dead: lookups.are_given_up(connection, lease, dead),
        )

    # receipts

    def pending_batches(self, lease: Lease) -> list[BatchIndex]:
        """The slice's batches without a receipt, in order. Raises LeaseLost."""
        return self._read(lambda connection: receipts.pending_batches(connection, self._layout, lease))

    def record(self, lease: Lease, receipt: Receipt) -> bool:
        """Record a finished batch; returns whether it was the slice's last. Raises LeaseLost."""
        return self._write(
            lambda connection: receipts.record_batch(connection, self._layout, lease, receipt),
            lambda connection, _: lookups.is_recorded(connection, receipt),
        )

    def receipts(self) -> Iterator[Receipt]:
        """All receipts in batch order; every page is a transaction of its own."""
        start = BatchIndex(0)
        while True:
            page = self._read(partial(receipts.read_page, start=start, limit=_PAGE))
            yield from page
            if len(page) < _PAGE:
                return
            start = BatchIndex(page[-1].record.batch + 1)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters in sample order, with their details."""
        start = SampleIndex(0)
        while True:
            page = self._read(partial(receipts.read_dead_letters, start=start, limit=_PAGE))
            yield from page
            if len(page) < _PAGE:
                return
            start = SampleIndex(page[-1].sample + 1)

    # a machine's own index of a shared folder

    def adopt(self, receipts: Sequence[Receipt], lease: Lease | None = None) -> set[BatchIndex]:
        """Take receipts of what others have published; slices that are held here, but `lease`, are left.

        Returns those of the batches that have a receipt here now.
        """
        return self._write(lambda connection: shared.adopt(connection, self._layout, receipts, lease))

    def forget_undone(self, undone: Mapping[BatchIndex, Fence]) -> int:
        """Delete receipts up to these fences, where nobody here holds the slice. Returns how many."""
        return self._write(lambda connection: shared.forget_undone(connection, self._layout, undone))

    def unpublished(self) -> list[BatchIndex]:
        """The recorded batches that lie on this machine's disk only, in order."""
        return self._read(shared.unpublished)

    def receipts_of(self, batches: range) -> list[Receipt]:
        """The receipts of consecutive batches, in order."""
        page = self._read(partial(receipts.read_page, start=BatchIndex(batches.start), limit=len(batches)))
        return [receipt for receipt in page if receipt.record.batch in batches]

    def note_published(self, batches: Sequence[BatchIndex], ref: ArtifactRef) -> None:
        """From now on these batches' receipts name a published artifact."""
        self._write(lambda connection: shared.note_published(connection, batches, ref))

    def fence_here(self, slice_id: SliceId) -> Fence:
        """The highest fence that this machine has granted of a slice; 0 for none."""
        return self._read(lambda connection: shared.fence_here(connection, slice_id))

    def unavailable(self) -> dict[SliceId, SliceState]:
        """The slices that are leased (and renewed), done or blocked on this machine, with that state."""
        return self._read(lambda connection: shared.unavailable(connection, self._now(connection)))

    # whether it can be believed

    def damage(self, *, seconds: float) -> Damage:
        """What the database finds wrong with its own file, in so many seconds at most."""
        return self._database.damage(seconds=seconds)

    def audit(self, *, seconds: float | None = None) -> Audit:
        """Compare counters, slices, receipts, dead letters and the plan; ends early when the time is over."""
        layout = self._layout
        looks: list[Body[list[Contradiction]]] = [
            lambda connection: consistency.find_strays(connection, layout),
            *(
                partial(consistency.find_contradictions, layout=layout, shards=page)
                for page in consistency.pages(layout)
            ),
            lambda connection: consistency.find_miscounted_provenances(connection, layout, refuse_late),
        ]
        began = time.monotonic()

        def refuse_late() -> None:
            if seconds is not None and time.monotonic() - began > seconds:
                raise TimeoutError

        found: list[Contradiction] = []
        try:
            for look in looks:
                refuse_late()
                found += self._read(look)
        except TimeoutError:
            return Audit(contradictions=tuple(found), is_complete=False)
        return Audit(contradictions=tuple(found))

    def refuse_contradictions(self, *, seconds: float | None = None) -> None:
        """Raise ManifestCorrupt when its records contradict each other or the plan."""
        self.audit(seconds=seconds).refuse(self.shown)

    def mend(self) -> int:
        """Make counters and slices what the receipts say; the plan's alone stay. Returns how many were wrong.

        Workers may be at work. Shard by shard: after a death in between it is done again.
        """
        layout = self._layout
        mended = self._write(lambda connection: consistency.remove_stray_receipts(connection, layout))
        for page in consistency.pages(layout):
            mended += self._write(partial(consistency.mend, layout=layout, shards=page))
        mended += self._write(lambda connection: consistency.remove_stray_shards(connection, layout))
        return mended + self._write(partial(consistency.recount_provenances, layout=layout))

    # what an operator reads and undoes

    def leased_slices(self) -> list[Holder]:
        """Who holds which slice under which fence; those whose lease has expired may still write."""
        return self._read(leases.read_holders)

    def recorded_artifacts(self) -> Iterator[tuple[BatchIndex, str]]:
        """Every recorded batch with its artifact's name, in order; every page is a transaction of its own."""
        start = BatchIndex(0)
        while True:
            page = self._read(partial(receipts.read_artifacts, start=start, limit=_PAGE))
            yield from page
            if len(page) < _PAGE:
                return
            start = BatchIndex(page[-1][0] + 1)

    def known_workers(self) -> set[WorkerId]:
        """Those that hold a slice, have a receipt, or have a row: of ended ones it goes after a day."""
        return self._read(workers.known)

    def overview(self) -> Overview:
        """The state of the run, in O(shards + workers)."""
        return self._read(lambda connection: read_overview(connection, self._now(connection)))

    def batches_with_dead_letters(self) -> list[BatchIndex]:
        """The batches that a `requeue --dead-letters` undoes."""
        return self._read(receipts.batches_with_dead_letters)

    def recorded_among(self, batches: Sequence[BatchIndex]) -> list[BatchIndex]:
        """Those of the batches that have a receipt, in order."""
        return self._read(lambda connection: receipts.recorded_among(connection, batches))

    def undo_receipts(self, batches: Sequence[BatchIndex], *, mark: Callable[[Marks], None]) -> int:
        """Delete these receipts; their batches are pending again. Returns how many there were.

        `mark` is called with the batches by the fence up to which attempts at them do not count. What it
        writes must be durable when it returns: it runs inside the transaction, after the last check and
        before any change. So there is no change without its mark; a death in between, or a commit that fails,
        leaves a mark without its change. A slice whose holder has expired is taken from it. Raises
        ManifestBusy while a worker holds one of them.
        """

        def undo(connection: Connection) -> int:
            now = self._now(connection)
            marks: Marks = {}
            for batch in batches:
                shard, slice_ = self._layout.shard_of_batch(batch), self._layout.slice_of_batch(batch)
                fence = leases.fence_of_unheld_slice(connection, shard, slice_, now=now)
                marks.setdefault(fence, []).append(batch)
            mark(marks)
            return receipts.delete_receipts(connection, self._layout, batches)

        return self._write(
            undo, lambda connection, count: count > 0 and not receipts.recorded_among(connection, batches)
        )

    def unblock(self) -> int:
        """Open every blocked slice again, its deaths forgotten. Returns how many."""
        return self._write(leases.unblock, lookups.are_unblocked)


def _artifact_folder(connection: Connection) -> str | None:
    found: str | None = connection.execute(select(RUN.c.artifact_folder)).scalar_one()
    return found

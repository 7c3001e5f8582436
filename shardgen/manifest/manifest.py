"""The manifest of one run: each method is one short transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from sqlalchemy import Connection, Engine, select, union, update

from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.domain.overview import Overview
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, Receipt
from shardgen.domain.suspicion import Suspicion
from shardgen.domain.worker import WorkerIdentity, WorkerReport
from shardgen.errors import InvalidSettings, ShardgenError, StorageFailed
from shardgen.manifest import leases, receipts, schema, suspicion, workers
from shardgen.manifest.engine import (
    finish_interrupted_commit,
    is_stale_journal,
    open_engine,
    parse_url,
    sqlite_path,
    transaction,
)
from shardgen.manifest.filesystem import refuse_untrusted
from shardgen.manifest.instants import utc_now
from shardgen.manifest.leases import LeaseRequest, NoLease
from shardgen.manifest.overview import read_overview
from shardgen.manifest.slices import move
from shardgen.manifest.tables import DEAD_LETTER, RECEIPT, RUN, SLICE, WORKER

_PAGE = 2_000  # rows read between two chances for a writer to commit

Clock = Callable[[], datetime]
Marks = dict[Fence, list[BatchIndex]]
Holder = tuple[ShardIndex, SliceIndex, Fence, WorkerId]
"""A leased slice, the fence of its grant, and who got it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a manifest is: the URL of the settings, and the run directory that relative names start from."""

    url: str
    run_dir: Path

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return sqlite_path(parse_url(self.url), self.run_dir)


def create_manifest(place: Place, plan: Plan, *, artifacts_exist: bool = False) -> bool:
    """Create or upgrade the manifest of a plan; twice is harmless. Returns whether it was new.

    Raises PlanConflict when it would be new although artifacts of an earlier one exist: a lost manifest must
    not look like a fresh start.
    """
    try:
        place.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(
            f"{place.path.parent}: cannot be made ({error.strerror})",
            hint="check [manifest] url in shardgen.toml and the folder's permissions",
        ) from error
    refuse_untrusted(place.path)
    engine = open_engine(place.path, create=True)
    try:
        return schema.create_or_upgrade(engine, plan, artifacts_exist=artifacts_exist)
    finally:
        engine.dispose()


def read_stored_plan(place: Place) -> str:
    """The plan's canonical JSON as the manifest keeps it: for a machine that has only `shardgen.toml`."""
    engine = _readable_engine(place.path)
    try:
        with transaction(engine) as connection:
            return str(connection.execute(select(RUN.c.plan)).scalar_one())
    finally:
        engine.dispose()


def _readable_engine(path: Path) -> Engine:
    """A read-only engine on a checked manifest, after rolling back what a killed writer left."""
    engine = open_engine(path, read_only=True)
    try:
        with transaction(engine) as connection:
            schema.check_revision(connection, engine)
    except ShardgenError as error:
        engine.dispose()
        if not is_stale_journal(error):
            raise
        finish_interrupted_commit(path)
        engine = open_engine(path, read_only=True)
        with transaction(engine) as connection:
            schema.check_revision(connection, engine)
    return engine


class Manifest:
    """One run's manifest. Thread-safe; never carried over a fork. Close it, or use it in a `with`."""

    def __init__(self, place: Place, plan: Plan, *, read_only: bool = False, clock: Clock = utc_now) -> None:
        self._path = place.path
        self._plan = plan
        self._layout = plan.layout
        self._clock = clock
        if read_only:
            self._engine = _readable_engine(self._path)
        else:
            refuse_untrusted(self._path)
            self._engine = open_engine(self._path)
            with transaction(self._engine) as connection:
                schema.check_revision(connection, self._engine)
        with transaction(self._engine) as connection:
            found = connection.execute(select(RUN.c.fingerprint)).scalar_one()
        if found != plan.fingerprint:
            self.close()
            raise schema.other_plan(self._engine, found, plan.fingerprint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    def now(self) -> datetime:
        """The manifest's clock: the one that leases expire by."""
        return self._clock()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with transaction(self._engine) as connection:
                yield connection
        except ShardgenError as error:
            if not is_stale_journal(error):
                raise
            finish_interrupted_commit(self._path)
            raise

    # workers

    def register(self, identity: WorkerIdentity) -> None:
        """Add a worker that starts."""
        with self._transaction() as connection:
            workers.register(connection, identity, self.now())

    def beat(self, worker: WorkerId, report: WorkerReport) -> None:
        """Write down what a worker says of itself."""
        with self._transaction() as connection:
            workers.beat(connection, worker, report, self.now())

    def set_device(self, worker: WorkerId, device: str) -> None:
        """Say which device a worker found."""
        with self._transaction() as connection:
            workers.set_device(connection, worker, device)

    def alive_on_host(self, host: str) -> list[WorkerIdentity]:
        """The workers of one host that have not said that they ended."""
        with self._transaction() as connection:
            return workers.alive_on_host(connection, host)

    def agreed_micro_batch(self, device_model: str, proposed: int) -> int:
        """The micro-batch of this device model: the first worker's proposal, kept for all later ones."""
        with self._transaction() as connection:
            return workers.agreed_micro_batch(connection, device_model, proposed)

    def shrunk_micro_batch(self, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out on this device model; None: it never did."""
        with self._transaction() as connection:
            return workers.shrunk_micro_batch(connection, device_model)

    def shrink_micro_batch(self, device_model: str, micro_batch: int) -> None:
        """Remember that this device model has no memory for more."""
        with self._transaction() as connection:
            workers.shrink_micro_batch(connection, device_model, micro_batch)

    # leases

    def lease(
        self,
        worker: WorkerId,
        policy: LeasePolicy,
        *,
        shard: ShardIndex | None = None,
        gone: Collection[WorkerId] = (),
    ) -> Lease | NoLease:
        """Grant one slice, in one transaction, under a new fence; `gone` workers' slices are free."""
        if shard is not None and not 0 <= shard < self._layout.shard_count:
            raise InvalidSettings(
                f"shard {shard}: the plan's shards are 0 to {self._layout.shard_count - 1}",
                hint="shardgen status RUN_DIR lists them",
            )
        with self._transaction() as connection:
            request = LeaseRequest(worker=worker, now=self.now(), policy=policy, shard=shard, gone=gone)
            return leases.lease_slice(connection, self._layout, request)

    def renew(self, lease: Lease, policy: LeasePolicy) -> None:
        """Extend a lease. Raises LeaseLost."""
        with self._transaction() as connection:
            leases.renew(connection, lease, expires_at=self.now() + policy.duration)

    def release(self, lease: Lease) -> bool:
        """Give a slice back unfinished; no death. Returns False when it was not held any more."""
        with self._transaction() as connection:
            return leases.release(connection, lease)

    def fail(self, lease: Lease, failure: str, policy: LeasePolicy) -> bool:
        """Give a slice back that failed for no sample's fault; returns whether it is blocked. LeaseLost."""
        with self._transaction() as connection:
            return leases.fail(connection, lease, failure, max_attempts=policy.max_attempts)

    def block(self, lease: Lease, reason: str) -> None:
        """Give a slice back that an operator must look at first. Raises LeaseLost."""
        with self._transaction() as connection:
            leases.block(connection, lease, reason)

    def free_slices_of(
        self, gone: Collection[WorkerId], policy: LeasePolicy, *, innocent: Collection[WorkerId] = ()
    ) -> int:
        """Free what ended processes held, at once; no death of those that are `innocent`. How many slices."""
        with self._transaction() as connection:
            return leases.free_slices_of(
                connection, gone, innocent=innocent, max_attempts=policy.max_attempts
            )

    # suspect mode

    def suspicion(self, lease: Lease) -> Suspicion:
        """What earlier attempts at the leased slice left. Raises LeaseLost."""
        with self._transaction() as connection:
            return suspicion.read_suspicion(connection, lease)

    def note_batch(self, lease: Lease, batch: BatchIndex) -> None:
        """From now on a death falls on this batch. Raises LeaseLost."""
        with self._transaction() as connection:
            suspicion.note_batch(connection, lease, batch)

    def note_sample(self, lease: Lease, sample: SampleIndex) -> None:
        """From now on a death falls on this sample alone. Raises LeaseLost."""
        with self._transaction() as connection:
            suspicion.note_sample(connection, lease, sample)

    def note_pass(self, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
        """The noted sample survived; returns the samples that are given up by that. Raises LeaseLost."""
        with self._transaction() as connection:
            return suspicion.note_pass(connection, lease, sample, made=made)

    # receipts

    def pending_batches(self, lease: Lease) -> list[BatchIndex]:
        """The slice's batches without a receipt, in order. Raises LeaseLost."""
        with self._transaction() as connection:
            return receipts.pending_batches(connection, self._layout, lease)

    def record(self, lease: Lease, receipt: Receipt) -> bool:
        """Record a finished batch; returns whether it was the slice's last. Raises LeaseLost."""
        with self._transaction() as connection:
            return receipts.record_batch(connection, self._layout, lease, receipt)

    def receipts(self) -> Iterator[Receipt]:
        """All receipts in batch order; every page is a transaction of its own."""
        start = BatchIndex(0)
        while True:
            with self._transaction() as connection:
                page = receipts.read_page(connection, start=start, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            start = BatchIndex(page[-1].record.batch + 1)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters in sample order, with their details."""
        start = SampleIndex(0)
        while True:
            with self._transaction() as connection:
                page = receipts.read_dead_letters(connection, start=start, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            start = SampleIndex(page[-1].sample + 1)

    # what an operator reads and undoes

    def leased_slices(self) -> list[Holder]:
        """Who holds which slice under which fence; those whose lease has expired may still write."""
        with self._transaction() as connection:
            held = select(SLICE.c.shard, SLICE.c.slice, SLICE.c.fence, SLICE.c.worker)
            rows = connection.execute(held.where(SLICE.c.state == "leased"))
            return [
                (ShardIndex(shard), SliceIndex(slice_), Fence(fence), WorkerId(worker))
                for shard, slice_, fence, worker in rows
            ]

    def recorded_artifacts(self) -> Iterator[tuple[BatchIndex, str]]:
        """Every recorded batch with its artifact's name, in order; every page is a transaction of its own."""
        start = -1
        while True:
            query = select(RECEIPT.c.batch, RECEIPT.c.artifact).where(RECEIPT.c.batch > start)
            with self._transaction() as connection:
                page = connection.execute(query.order_by(RECEIPT.c.batch).limit(_PAGE)).all()
            yield from ((BatchIndex(batch), artifact) for batch, artifact in page)
            if len(page) < _PAGE:
                return
            start = page[-1].batch

    def known_workers(self) -> set[WorkerId]:
        """Those that hold a slice, have a receipt, or have a row: of ended ones it goes after a day."""
        columns = (WORKER.c.id, SLICE.c.worker, RECEIPT.c.worker)
        with self._transaction() as connection:
            rows = connection.execute(union(*(select(column) for column in columns))).scalars()
            return {WorkerId(worker) for worker in rows if worker is not None}

    def overview(self) -> Overview:
        """The state of the run, in O(shards + workers)."""
        with self._transaction() as connection:
            return read_overview(connection, self.now())

    def batches_with_dead_letters(self) -> list[BatchIndex]:
        """The batches that a `requeue --dead-letters` undoes."""
        with self._transaction() as connection:
            found = connection.execute(select(DEAD_LETTER.c.batch).distinct().order_by(DEAD_LETTER.c.batch))
            return [BatchIndex(batch) for batch in found.scalars()]

    def recorded_among(self, batches: Sequence[BatchIndex]) -> list[BatchIndex]:
        """Those of the batches that have a receipt, in order."""
        with self._transaction() as connection:
            return [
                batch
                for batch in sorted(set(batches))
                if connection.execute(select(RECEIPT.c.batch).where(RECEIPT.c.batch == batch)).first()
            ]

    def undo_receipts(self, batches: Sequence[BatchIndex], *, mark: Callable[[Marks], None]) -> int:
        """Delete these receipts; their batches are pending again. Returns how many there were.

        `mark` is called with the batches by the fence up to which attempts at them do not count. What it
        writes must be durable when it returns: it runs inside the transaction, after the last check and
        before any change. So there is no change without its mark; a death in between, or a commit that fails,
        leaves a mark without its change. A slice whose holder has expired is taken from it. Raises
        ManifestBusy while a worker holds one of them.
        """
        with self._transaction() as connection:
            marks: Marks = {}
            for batch in batches:
                shard, slice_ = self._layout.shard_of_batch(batch), self._layout.slice_of_batch(batch)
                fence = leases.fence_of_unheld_slice(connection, shard, slice_, now=self.now())
                marks.setdefault(fence, []).append(batch)
            mark(marks)
            return receipts.delete_receipts(connection, self._layout, batches)

    def unblock(self) -> int:
        """Open every blocked slice again, its deaths forgotten. Returns how many."""
        with self._transaction() as connection:
            blocked = connection.execute(
                update(SLICE)
                .where(SLICE.c.state == "blocked")
                .values(state="open", reason=None, suspect_batch=None, deaths=0)
                .returning(SLICE.c.shard, SLICE.c.slice)
            )
            slices = [(ShardIndex(shard), SliceIndex(slice_)) for shard, slice_ in blocked]
            for shard, slice_ in slices:
                move(connection, shard, {"blocked": -1, "open": 1})
                suspicion.forget_slice(connection, shard, slice_)
            return len(slices)

"""The manifest of a run in a bucket: what a database decides in one transaction, decided by versions of rows.

A change of a slice's row is made by the same SQL as in a database, on a copy of the row in a small SQLite
file of this process. What comes of it becomes the row's next version in the bucket, unless another process
was quicker; then it never happened here either.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, select, update

from shardgen.artifacts.store import ArtifactReader
from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.protocol import ReceiptKey, VersionKey
from shardgen.coordination.bucket.rows import (
    SignOfLife,
    Version,
    decoded,
    drop,
    dump,
    encoded,
    load,
    object_name,
    parse_receipt,
    receipt_bytes,
    version_bytes,
)
from shardgen.coordination.bucket.view import BucketView, sign_key
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.overview import BlockedSlice, Overview, ShardState, SliceCounts
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, Provenance, Receipt
from shardgen.domain.slice_state import Event, SliceState
from shardgen.domain.worker import (
    ENDED_STATES,
    LISTED_AFTER_END,
    WorkerIdentity,
    WorkerReport,
    WorkerRow,
    WorkerState,
)
from shardgen.errors import CorruptionError, ManifestBusy, ManifestCorrupt, ReceiptConflict, ShardgenError
from shardgen.machine.processes import gone as processes_gone
from shardgen.manifest.backend import Damage
from shardgen.manifest.consistency import Audit
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.leases import (
    Holder,
    LeaseRequest,
    Leases,
    MayStillCount,
    block,
    check_shard,
    fail,
    free_slices_of,
    lease_slice,
    release,
)
from shardgen.manifest.leases import unblock as unblock_all
from shardgen.manifest.manifest import ArtifactFolder, Manifest, create_manifest
from shardgen.manifest.operator import Marks, Operator
from shardgen.manifest.overview import BLOCKED_LISTED
from shardgen.manifest.receipts import Receipts
from shardgen.manifest.session import Clock, Session
from shardgen.manifest.shared import adopt
from shardgen.manifest.slices import held, lease_lost, lock_slice, to_seconds, transition
from shardgen.manifest.suspicion import Suspicions
from shardgen.manifest.tables import SHARD, SLICE, WORKER
from shardgen.manifest.workers import MicroBatches, Workers

_READERS = 32  # requests at once, where many objects are read
_PASSES = 3  # over the slices, when others were quicker at every one
_LOOK_SECONDS = 5.0  # between two looks of whoever asks for the state again and again
_FIRST_BEAT_SECONDS = 10.0  # between two signs of life, until the lease's policy is known
_FAR = 4e9  # UTC seconds since 1970
_NEVER = datetime.fromtimestamp(_FAR, UTC)

Found = TypeVar("Found")


class _Rolled(Exception):
    def __init__(self, result: object, version: Version) -> None:
        super().__init__()
        self.result = result
        self.version = version


class _Life:
    """What one worker of this process says of itself, and when (monotonic) it was last written."""

    def __init__(self, identity: WorkerIdentity, *, wall: float, monotonic: float) -> None:
        self.sign = SignOfLife(
            worker=identity.id,
            host=identity.host,
            pid=identity.pid,
            process_started=identity.process_started,
            device=identity.device,
            started_at=wall,
            beat=0,
            state=WorkerState.STARTING,
        )
        self.progressed_at = monotonic
        self.written_at = float("-inf")
        self.lock = threading.Lock()


class _Desk:
    """What all parts of one opened manifest share."""

    def __init__(self, plan: Plan, objects: Objects, session: Session, clock: Clock | None) -> None:
        self.plan = plan
        self.layout = plan.layout
        self.objects = objects
        self.session = session
        self._clock = clock
        self.view = BucketView(plan, objects, monotonic=self.monotonic)
        self.lives: dict[WorkerId, _Life] = {}
        self.beat_seconds = _FIRST_BEAT_SECONDS
        self.silent_seconds = 120.0
        self._unsettled: dict[str, bytes] = {}

    def monotonic(self) -> float:
        """What silence is measured by."""
        return time.monotonic() if self._clock is None else self._clock().timestamp()

    def now(self) -> datetime:
        """For people, and where a clock is only a guess."""
        return datetime.now(UTC) if self._clock is None else self._clock()

    # versions of rows

    def row(self, slice_id: SliceId) -> Version | None:
        """A slice's latest version, with what its holder has noted since; None for one of another plan."""
        version = self.view.version(slice_id)
        if version is None or version.fingerprint != self.plan.fingerprint:
            return None
        number = self.view.latest[slice_id]
        if (slice_id, number) not in self.view.notes:
            return version
        key = str(VersionKey(slice_id=slice_id, number=number, is_note=True))
        return decoded(Version, key, self.objects.read(key))

    def change(
        self, slice_id: SliceId, number: int, event: Event, body: Callable[[Connection], Found]
    ) -> tuple[Found, Version] | None:
        """Let what `body` makes of the row be its next version; None, and nothing changed, if it is not.

        `number` is the version to create. The change is tried, created in the bucket, and then made here.
        """
        key = VersionKey(slice_id=slice_id, number=number)

        def attempt(connection: Connection) -> None:
            result = body(connection)
            now = to_seconds(self.now())
            raise _Rolled(result, dump(connection, self.plan, slice_id, event.value, now=now))

        try:
            self.session.write(attempt)
        except _Rolled as rolled:
            version = rolled.version
        else:
            raise AssertionError  # it always raises
        if not self._create(str(key), version_bytes(version)):
            self.view.note_version(slice_id, number)
            return None
        result = self.session.write(body)
        self.view.knows(slice_id, number, version)
        return result, version

    def _create(self, key: str, data: bytes) -> bool:
        """Create it; after a failure that left it open whether it is there, only the same bytes again."""
        data = self._unsettled.setdefault(key, data)
        is_made = self.objects.create(key, data)
        del self._unsettled[key]
        return is_made

    def note(self, lease: Lease) -> None:
        """Write down what the holder of a suspect slice makes now, before it does."""
        slice_id = lease.shard, lease.slice
        now = to_seconds(self.now())
        version = self.session.read(lambda one: dump(one, self.plan, slice_id, "note", now=now))
        key = VersionKey(slice_id=slice_id, number=lease.fence, is_note=True)
        self.objects.write(str(key), encoded(version))
        self.view.notes.add((slice_id, lease.fence))

    def is_held(self, lease: Lease) -> bool:
        """Whether the row here is still this grant's."""
        query = select(SLICE.c.fence).where(held(lease))
        return self.session.read(lambda one: one.execute(query).first()) is not None

    def count_finished(self, connection: Connection) -> None:
        """Let the shards' counters say what the view has seen of the whole run."""
        for shard in map(ShardIndex, range(self.layout.shard_count)):
            dead = self.view.dead[shard]
            values = {"stored": self.view.samples[shard] - dead, "dead": dead}
            connection.execute(update(SHARD).where(SHARD.c.shard == shard).values(values))

    # signs of life

    def show_life(self, worker: WorkerId, *, gap: float = 0.0) -> None:
        """Write a worker's sign of life, unless that was done within so many seconds."""
        life = self.lives.get(worker)
        if life is None:
            return
        with life.lock:
            now = self.monotonic()
            if now - life.written_at < gap:
                return
            quiet = max(0.0, now - life.progressed_at)
            life.sign = life.sign.model_copy(
                update={"beat": life.sign.beat + 1, "seconds_since_progress": round(quiet, 1)}
            )
            name = object_name(worker)
            e_tag = self.objects.write(sign_key(name), encoded(life.sign))
            self.view.has_sign(name, life.sign, e_tag, now=self.now())
            life.written_at = now

    def say_of(self, worker: WorkerId, **changes: object) -> None:
        """Write what is known of a worker that cannot say it itself; the first word of its end stands."""
        sign = self.identity_of(worker)
        if sign is None or sign.state in ENDED_STATES:
            return
        sign = sign.model_copy(update=changes | {"beat": sign.beat + 1})
        if worker in self.lives:
            self.lives[worker].sign = sign
        name = object_name(worker)
        self.view.has_sign(name, sign, self.objects.write(sign_key(name), encoded(sign)), now=self.now())

    def identity_of(self, worker: str) -> SignOfLife | None:
        """What a worker has said of itself; None when it never has."""
        with suppress(ShardgenError):
            return self.view.sign_of(object_name(worker))
        return None

    def know_worker(self, connection: Connection, worker: str | None) -> None:
        """Let the row of a worker elsewhere say what it says of itself, for whoever judges its end."""
        sign = None if worker is None else self.identity_of(worker)
        if sign is None:
            return
        known = select(WORKER.c.id).where(WORKER.c.id == worker)
        if connection.execute(known).first() is None:
            seconds = to_seconds(self.now())
            connection.execute(
                WORKER.insert().values(
                    id=sign.worker,
                    host=sign.host,
                    pid=sign.pid,
                    process_started=sign.process_started,
                    device=sign.device,
                    state=sign.state.value,
                    started_at=sign.started_at,
                    last_beat_at=seconds,
                    last_progress_at=seconds,
                    samples_done=sign.samples_done,
                    samples_per_second=sign.samples_per_second,
                    note=sign.note,
                )
            )
        values = {"state": sign.state.value, "note": sign.note}
        connection.execute(update(WORKER).where(WORKER.c.id == worker).values(values))

    def has_stopped(self, worker: str) -> bool:
        """Whether it said its last word, after which it holds nothing."""
        sign = self.identity_of(worker)
        return sign is not None and sign.state is WorkerState.STOPPED

    # receipts

    def read_receipts(self, keys: Sequence[ReceiptKey]) -> Iterator[Receipt]:
        """Read receipts, many at a time, in the order of the keys."""

        def read(key: ReceiptKey) -> Receipt:
            data = self.objects.read(str(key))
            return parse_receipt(self.plan, str(key), data, batch=key.batch, fence=key.fence)

        if len(keys) < 2:
            yield from map(read, keys)
            return
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(keys), 8 * _READERS):
                yield from pool.map(read, keys[start : start + 8 * _READERS])


class BucketLeases(Leases):
    """Who holds which slice, by the latest versions."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk

    def lease(
        self,
        worker: WorkerId,
        policy: LeasePolicy,
        *,
        shard: ShardIndex | None = None,
        gone: Collection[WorkerId] = (),
    ) -> Lease | NoLease:
        """Claim one slice: a free one, else a silent or gone worker's, else one that nobody has begun.

        Of each kind the lowest; where another was quicker, one farther on, farther each time.
        """
        desk = self._desk
        check_shard(desk.layout, shard)
        desk.beat_seconds = policy.heartbeat.total_seconds()
        desk.silent_seconds = policy.duration.total_seconds()
        for _ in range(_PASSES):
            desk.view.look()
            candidates, nothing = self._candidates(worker, policy, shard, gone)
            lost = blocked = 0
            while candidates:
                skipped = random.randrange(min(len(candidates), 2**lost))  # noqa: S311 - no secret
                slice_id = candidates.pop(skipped)
                granted = self._claim(slice_id, worker, policy, gone)
                if isinstance(granted, Lease):
                    return granted
                if granted is None:
                    lost += 1
                else:
                    blocked += granted.blocked
            if not lost:
                break
        # What others were quicker at they hold now; who is told that nothing is leased ends.
        return NoLease(leased=nothing.leased + lost, blocked=nothing.blocked + blocked)

    def _candidates(
        self, worker: WorkerId, policy: LeasePolicy, shard: ShardIndex | None, gone: Collection[WorkerId]
    ) -> tuple[list[SliceId], NoLease]:
        """The slices to try, in this order; and what there is else."""
        desk, view = self._desk, self._desk.view
        free, silent, new = list[SliceId](), list[SliceId](), list[SliceId]()
        leased = blocked = 0
        for slice_id in view.slices(shard):
            if view.is_done(slice_id):
                continue
            version = view.version(slice_id)
            if version is None or version.fingerprint != desk.plan.fingerprint:
                new.append(slice_id)
                continue
            is_leased = version.state is SliceState.LEASED
            is_own = self._is_unknown_claim(slice_id, version, worker)
            is_silent = is_leased and (
                is_own or self._is_free_of(slice_id, version.worker or "", policy, gone)
            )
            if protocol.may_claim(version.state, is_silent=is_silent):
                (silent if is_leased and not is_own else free).append(slice_id)
            elif is_leased:
                leased += 1
            else:
                blocked += 1
        return free + silent + new, NoLease(leased=leased, blocked=blocked)

    def _is_unknown_claim(self, slice_id: SliceId, version: Version, worker: WorkerId) -> bool:
        """Whether it is the worker's own claim, of which it does not know: the reply was lost for good."""
        is_own = version.state is SliceState.LEASED and version.worker == worker
        return is_own and not self._desk.is_held(_grant(slice_id, version))

    def _is_free_of(
        self, slice_id: SliceId, holder: str, policy: LeasePolicy, gone: Collection[WorkerId]
    ) -> bool:
        """Whether the holder of a slice is known to have ended, or is silent."""
        desk = self._desk
        if holder in gone or desk.has_stopped(holder):
            return True
        return desk.view.is_silent(slice_id, object_name(holder), policy.duration.total_seconds())

    def _claim(
        self, slice_id: SliceId, worker: WorkerId, policy: LeasePolicy, gone: Collection[WorkerId]
    ) -> Lease | NoLease | None:
        """Create the next version: a grant, or the end of one attempt too many; None: another was quicker."""
        desk, view = self._desk, self._desk.view
        row = desk.row(slice_id)
        if row is not None and self._is_unknown_claim(slice_id, row, worker):
            return self._take(self._own(slice_id, row, policy))
        number = protocol.next_version(view.latest.get(slice_id, 0))

        def decide(connection: Connection) -> Lease | NoLease:
            desk.count_finished(connection)
            load(connection, desk.layout, slice_id, row, expires_at=0.0)
            holder = None if row is None else row.worker
            desk.know_worker(connection, holder)
            if holder is not None and desk.has_stopped(
                holder
            ):  # it gave the slice back, and could not say so
                transition(connection, Event.WITHDRAW, lock_slice(connection, *slice_id))
            request = LeaseRequest(
                worker=worker,
                now=self.session.now(connection),
                policy=policy,
                shard=slice_id[0],
                slice=slice_id[1],
                least_fence=number,
                gone=gone,
            )
            return lease_slice(connection, desk.layout, request)

        changed = desk.change(slice_id, number, Event.GRANT, decide)
        if changed is None:
            return None
        granted, _ = changed
        if isinstance(granted, NoLease):
            return NoLease(leased=0, blocked=1)
        return self._take(granted)

    def _own(self, slice_id: SliceId, row: Version, policy: LeasePolicy) -> Lease:
        """A grant of this worker that it did not get to know."""
        lease = _grant(slice_id, row, expires_at=self._desk.now() + policy.duration)
        seconds = to_seconds(lease.expires_at)
        self.session.write(
            lambda connection: load(connection, self._desk.layout, slice_id, row, expires_at=seconds)
        )
        return lease

    def _take(self, lease: Lease) -> Lease | NoLease:
        """After the claim: learn which batches have receipts. If all have, there is nothing to hold."""
        desk, slice_id = self._desk, (lease.shard, lease.slice)
        desk.view.look_at(slice_id)
        batches = desk.layout.slice_batch_range(*slice_id)
        keys = [desk.view.winners[one] for one in map(BatchIndex, batches) if one in desk.view.winners]
        found = list(desk.read_receipts(keys))
        self.session.write(lambda connection: adopt(connection, desk.layout, found, lease))
        return lease if desk.is_held(lease) else NoLease(leased=0, blocked=0)

    def renew(self, lease: Lease, policy: LeasePolicy) -> None:
        """Look whether a later version is there, and show life. Raises LeaseLost."""
        desk, slice_id = self._desk, (lease.shard, lease.slice)
        super().renew(lease, policy)
        following = protocol.next_version(lease.fence)
        if desk.objects.size(str(VersionKey(slice_id=slice_id, number=following))) is not None:
            desk.view.note_version(slice_id, following)
            self.session.write(lambda connection: drop(connection, slice_id))
            raise lease_lost(lease)
        desk.beat_seconds = policy.heartbeat.total_seconds()
        desk.show_life(lease.worker, gap=desk.beat_seconds / 2)
        desk.view.hears_of(slice_id)

    def release(self, lease: Lease) -> bool:
        """Give a slice back unfinished; no death. Returns False when it was not held any more."""
        return self._end(lease, Event.RELEASE, lambda connection: release(connection, lease)) or False

    def fail(self, lease: Lease, failure: str, policy: LeasePolicy) -> bool:
        """Give a slice back that failed for no sample's fault; returns whether it is blocked. LeaseLost."""
        most = policy.max_attempts
        found = self._end(
            lease, Event.FAIL, lambda connection: fail(connection, lease, failure, max_attempts=most)
        )
        if found is None:
            raise lease_lost(lease)
        return found

    def block(self, lease: Lease, reason: str) -> None:
        """Give a slice back that an operator must look at first. Raises LeaseLost."""

        def blocked(connection: Connection) -> bool:
            block(connection, lease, reason)
            return True

        if self._end(lease, Event.BLOCK, blocked) is None:
            raise lease_lost(lease)

    def _end(self, lease: Lease, event: Event, body: Callable[[Connection], bool]) -> bool | None:
        """End a grant by the version after it; None when it has ended already."""
        desk = self._desk
        if not desk.is_held(lease):
            return None
        slice_id = lease.shard, lease.slice
        changed = desk.change(slice_id, protocol.next_version(lease.fence), event, body)
        if changed is None:
            self.session.write(lambda connection: drop(connection, slice_id))
            return None
        return changed[0]

    def free_slices_of(
        self, gone: Collection[WorkerId], policy: LeasePolicy, *, innocent: Collection[WorkerId] = ()
    ) -> int:
        """Free what ended processes held, at once; no death of those that are `innocent`. How many slices."""
        desk = self._desk
        if not gone:
            return 0
        desk.view.look()
        freed = 0
        for slice_id, version in list(desk.view.holders()):
            worker = WorkerId(version.worker or "")
            if worker in gone:
                freed += self._free(slice_id, worker, policy, innocent)
        for worker in gone:
            self._bury(worker)
        return freed

    def _free(
        self, slice_id: SliceId, worker: WorkerId, policy: LeasePolicy, innocent: Collection[WorkerId]
    ) -> bool:
        desk = self._desk
        row = desk.row(slice_id)

        def end(connection: Connection) -> int:
            load(connection, desk.layout, slice_id, row, expires_at=_FAR)
            desk.know_worker(connection, worker)
            return free_slices_of(connection, [worker], innocent=innocent, max_attempts=policy.max_attempts)

        event = Event.WITHDRAW if worker in innocent else Event.DIE
        number = protocol.next_version(desk.view.latest[slice_id])
        return desk.change(slice_id, number, event, end) is not None

    def _bury(self, worker: WorkerId) -> None:
        """Say of a worker of this host, whose process is gone, that it has ended."""
        self._desk.say_of(worker, state=WorkerState.DEAD, samples_per_second=0.0)

    def may_still_count(self) -> MayStillCount:
        """Which attempts could still be recorded and count: by the receipts that are there, no holder."""
        view = self._desk.view
        view.look(anew=True)

        def may_count(
            shard: ShardIndex, slice_: SliceIndex, *, fence: Fence, worker: str, batches: range
        ) -> bool:
            del shard, slice_, worker
            return any(
                protocol.may_still_count(
                    fence,
                    best=view.winners[batch].fence if batch in view.winners else None,
                    undone=view.undone.get(batch),
                )
                for batch in map(BatchIndex, batches)
            )

        return may_count

    def holders(self) -> list[Holder]:
        """Who holds which slice under which fence, silent or not."""
        self._desk.view.look()
        return [
            (slice_id[0], slice_id[1], Fence(version.fence), WorkerId(version.worker or ""))
            for slice_id, version in self._desk.view.holders()
        ]


def _grant(slice_id: SliceId, version: Version, *, expires_at: datetime = _NEVER) -> Lease:
    """The lease that a version grants."""
    return Lease(
        shard=slice_id[0],
        slice=slice_id[1],
        worker=WorkerId(version.worker or ""),
        fence=Fence(version.fence),
        expires_at=expires_at,
    )


class BucketReceipts(Receipts):
    """What is done: receipts are objects of their own."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk
        self._unnoted: list[Receipt] = []

    def record(self, lease: Lease, receipt: Receipt) -> bool:
        """Create the receipt; returns whether it was the slice's last.

        Raises LeaseLost when it is known here that the slice was taken over. Until that is known a receipt
        may still be created: its fence is lower than the successor's, so it never outranks one of those.
        """
        desk = self._desk
        if receipt in self._unnoted:  # all but that is done
            desk.note(lease)
            self._unnoted.remove(receipt)
            return False
        if not desk.is_held(lease):
            raise lease_lost(lease)
        key = ReceiptKey(batch=receipt.record.batch, fence=lease.fence, dead=len(receipt.record.dead_letters))
        if not desk.objects.create(str(key), receipt_bytes(desk.plan, receipt)):
            raise ReceiptConflict(
                f"{desk.objects.shown}/{key}: has other bytes already",
                hint="shardgen verify RUN_DIR tells which bytes are right",
            )
        is_last = super().record(lease, receipt)
        desk.view.take(key)
        life = desk.lives.get(lease.worker)
        if life is not None:
            made = Counter(life.sign.made) + Counter({receipt.record.provenance.text: 1})
            life.sign = life.sign.model_copy(update={"made": dict(made)})
        if desk.view.is_noted((lease.shard, lease.slice), lease.fence) and not is_last:
            self._unnoted.append(receipt)
            desk.note(lease)
            self._unnoted.remove(receipt)
        return is_last

    def receipts(self) -> Iterator[Receipt]:
        """All receipts that count, in batch order, as they are now."""
        desk = self._desk
        desk.view.look(anew=True)
        yield from desk.read_receipts([desk.view.winners[batch] for batch in sorted(desk.view.winners)])

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters in sample order, with their details."""
        desk = self._desk
        desk.view.look(anew=True)
        keys = [one for _, one in sorted(desk.view.winners.items()) if one.dead]
        for receipt in desk.read_receipts(keys):
            yield from sorted(receipt.record.dead_letters, key=lambda one: one.sample)

    def artifacts(self) -> Iterator[tuple[BatchIndex, str]]:
        """Every recorded batch with its artifact's name, in order."""
        for receipt in self.receipts():
            yield receipt.record.batch, receipt.artifact.name

    def receipts_of(self, batches: range) -> list[Receipt]:
        """The receipts of consecutive batches, in order."""
        winners = self._looked()
        return list(
            self._desk.read_receipts([winners[one] for one in map(BatchIndex, batches) if one in winners])
        )

    def batches_with_dead_letters(self) -> list[BatchIndex]:
        """The batches that a `requeue --dead-letters` undoes, in order."""
        return sorted(batch for batch, one in self._looked().items() if one.dead)

    def are_there(self) -> bool:
        """Whether anything is done."""
        return bool(self._looked())

    def recorded_among(self, batches: Sequence[BatchIndex]) -> list[BatchIndex]:
        """Those of the batches that have a receipt, in order."""
        return sorted(self._looked().keys() & set(batches))

    def _looked(self) -> Mapping[BatchIndex, ReceiptKey]:
        self._desk.view.look()
        return self._desk.view.winners


class BucketSuspicions(Suspicions):
    """What suspect mode notes: in the bucket before the work that it announces."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk

    def note_batch(self, lease: Lease, batch: BatchIndex) -> None:
        """From now on a death falls on this batch. Raises LeaseLost."""
        Suspicions.note_batch(self, lease, batch)
        self._desk.note(lease)

    def note_sample(self, lease: Lease, sample: SampleIndex) -> None:
        """From now on a death falls on this sample alone. Raises LeaseLost."""
        Suspicions.note_sample(self, lease, sample)
        self._desk.note(lease)

    def note_pass(self, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
        """The noted sample survived; returns the samples that are given up by that. Raises LeaseLost."""
        given_up = super().note_pass(lease, sample, made=made)
        self._desk.note(lease)
        return given_up


class BucketWorkers(Workers):
    """Signs of life, an object for each worker."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk

    def register(self, identity: WorkerIdentity) -> None:
        """Write the first sign of life; twice is harmless."""
        desk = self._desk
        Workers.register(self, identity)
        if identity.id not in desk.lives:
            desk.lives[identity.id] = _Life(identity, wall=to_seconds(desk.now()), monotonic=desk.monotonic())
        desk.show_life(identity.id)

    def beat(self, worker: WorkerId, report: WorkerReport) -> None:
        """Write what a worker says of itself: each change of state at once, the rest at most each heartbeat.

        The first word of its end stands.
        """
        desk = self._desk
        Workers.beat(self, worker, report)
        life = desk.lives.get(worker)
        if life is None:
            desk.say_of(worker, state=report.state, note=report.note)
            return
        if life.sign.state in ENDED_STATES:
            return
        is_news = life.sign.state is not report.state
        if report.progressed:
            life.progressed_at = desk.monotonic()
        life.sign = life.sign.model_copy(
            update={
                "state": report.state,
                "samples_done": report.samples_done,
                "samples_per_second": report.samples_per_second,
                "note": report.note,
            }
        )
        desk.show_life(worker, gap=0.0 if is_news else desk.beat_seconds)

    def set_device(self, worker: WorkerId, device: str) -> None:
        """Say which device a worker found."""
        desk = self._desk
        Workers.set_device(self, worker, device)
        life = desk.lives.get(worker)
        if life is not None:
            life.sign = life.sign.model_copy(update={"device": device})

    def alive_on_host(self, host: str) -> list[WorkerIdentity]:
        """The workers of one host that have not said that they ended, or hold a slice all the same."""
        view = self._desk.view
        view.look_for_signs()
        holders = {version.worker for _, version in view.holders()}
        found = []
        for name in sorted(view.signs):
            sign = view.sign_of(name, anew=False)  # the host of a worker never changes
            if sign is None or sign.host != host:
                continue
            sign = view.sign_of(name)
            if sign is not None and (sign.state not in ENDED_STATES or sign.worker in holders):
                found.append(sign.identity)
        return found

    def known(self) -> set[WorkerId]:
        """Those that have shown a sign of life."""
        view = self._desk.view
        view.look_for_signs()
        signs = [view.sign_of(name, anew=False) for name in view.signs]
        return {WorkerId(sign.worker) for sign in signs if sign is not None}


class BucketMicroBatches(MicroBatches):
    """How many images the network takes at once on each model of device: versions, the highest counts."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk

    def agreed(self, device_model: str, proposed: int) -> int:
        """The micro-batch of this device model: the first worker's proposal, kept for all later ones."""
        while True:
            number, micro_batch, _ = self._latest(device_model)
            if number:
                return micro_batch
            if self._create(device_model, 1, proposed, None):
                return proposed

    def shrunk(self, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out on this device model; None: it never did."""
        return self._latest(device_model)[2]

    def shrink(self, device_model: str, micro_batch: int) -> None:
        """Remember that this device model has no memory for more."""
        while True:
            number, agreed, shrunk = self._latest(device_model)
            least = micro_batch if shrunk is None else min(shrunk, micro_batch)
            smaller = min(agreed, micro_batch) if number else micro_batch
            if (smaller, least) == (agreed, shrunk) or self._create(device_model, number + 1, smaller, least):
                return

    def _latest(self, device_model: str) -> tuple[int, int, int | None]:
        folder = self._folder(device_model)
        listed = self._desk.objects.listed(folder)
        if not listed:
            return 0, 0, None
        data = self._desk.objects.read(listed[-1].key)
        found = json.loads(data or b"{}")
        return len(listed), int(found["micro_batch"]), found["shrunk_to"]

    def _create(self, device_model: str, number: int, micro_batch: int, shrunk_to: int | None) -> bool:
        document = {"device_model": device_model, "micro_batch": micro_batch, "shrunk_to": shrunk_to}
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        return self._desk.objects.create(f"{self._folder(device_model)}/{number:08d}.json", data)

    @staticmethod
    def _folder(device_model: str) -> str:
        name = hashlib.sha256(device_model.encode()).hexdigest()[:16]
        return f"{protocol.MICRO_BATCHES}/{name}"


class BucketFolder(ArtifactFolder):
    """Artifacts lie under the same prefix, so there is nothing to mistake: the first identity stands."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk
        self._key = f"{protocol.ARTIFACTS}/folder-id"

    def identity(self) -> str | None:
        """Its identity; None while no worker has started."""
        data = self._desk.objects.read(self._key)
        return None if data is None else data.decode("ascii", errors="replace").strip()

    def claim(self, identity: str) -> str:
        """Make it the run's if none is; returns the one that is."""
        self._desk.objects.create(self._key, f"{identity}\n".encode())
        return self.identity() or identity

    def replace(self, identity: str) -> None:
        """Nothing to do: the record and the artifacts are one."""


class BucketOperator(Operator):
    """What an operator undoes: versions of rows, then a mark."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__(desk.session)
        self._desk = desk

    @property
    def shown(self) -> str:
        """The url."""
        return self._desk.objects.shown

    def damage(self, *, seconds: float) -> Damage:
        """A store watches its own bytes."""
        del seconds
        return Damage(is_looked_for=False)

    def audit(self, *, seconds: float | None = None) -> Audit:
        """There are no counters that could contradict anything."""
        del seconds
        return Audit(contradictions=())

    def mend(self) -> int:
        """There is nothing to put right."""
        return 0

    def undo_receipts(self, batches: Sequence[BatchIndex], *, mark: Callable[[Marks], None]) -> int:
        """Undo these batches' receipts: a new version of each slice, then the mark. How many there were.

        The version comes first: whoever claims after it has a higher fence than the mark undoes. A death in
        between leaves a slice that is free, and nothing undone. Raises ManifestBusy while a worker holds one
        of the slices.
        """
        desk = self._desk
        desk.view.look()
        recorded = [batch for batch in sorted(batches) if batch in desk.view.winners]
        places = {
            batch: (desk.layout.shard_of_batch(batch), desk.layout.slice_of_batch(batch))
            for batch in recorded
        }
        fences: dict[SliceId, Fence] = {}
        for slice_id in sorted(set(places.values())):
            self._refuse_live(slice_id)
        for slice_id in sorted(set(places.values())):
            fences[slice_id] = self._fence_off(slice_id)
        marks: Marks = {}
        for batch in recorded:
            marks.setdefault(fences[places[batch]], []).append(batch)
        if marks:
            mark(marks)
            desk.view.look()
        return len(recorded)

    def _refuse_live(self, slice_id: SliceId) -> None:
        """Raise ManifestBusy when a worker seems to hold a slice that is not done: by the store's clock."""
        desk, view = self._desk, self._desk.view
        version = view.version(slice_id)
        if view.is_done(slice_id) or version is None or version.state is not SliceState.LEASED:
            return
        worker = version.worker or ""
        sign = desk.identity_of(worker)
        last = version.written_at
        if sign is not None:
            if sign.state in ENDED_STATES or processes_gone([sign.identity]):
                return
            last = max(last, to_seconds(view.signs[object_name(worker)].modified))
        age = to_seconds(desk.now()) - last
        if age < desk.silent_seconds:
            raise ManifestBusy(
                f"shard {slice_id[0]} slice {slice_id[1]}: worker {worker} holds it, and showed life "
                f"{max(0.0, age):.0f} s ago",
                hint="stop that worker (or wait until it has finished the slice), then run the command again",
            )

    def _fence_off(self, slice_id: SliceId) -> Fence:
        desk = self._desk
        row = desk.row(slice_id)
        number = protocol.next_version(desk.view.latest.get(slice_id, 0))

        def withdraw(connection: Connection) -> None:
            load(connection, desk.layout, slice_id, row, expires_at=_FAR)
            if row is not None and row.state is SliceState.LEASED:
                transition(connection, Event.WITHDRAW, lock_slice(connection, *slice_id))

        if desk.change(slice_id, number, Event.UNDO, withdraw) is None:
            raise ManifestBusy(
                f"shard {slice_id[0]} slice {slice_id[1]}: a worker claimed it in this moment",
                hint="wait until it has finished the slice, then run the command again",
            )
        return Fence(number)

    def unblock(self) -> int:
        """Open every blocked slice again, its deaths forgotten. Returns how many."""
        desk = self._desk
        desk.view.look()
        opened = 0
        for slice_id in desk.view.begun():
            row = desk.row(slice_id)
            if row is None or row.state is not SliceState.BLOCKED:
                continue

            def unblock(connection: Connection, slice_id: SliceId = slice_id, row: Version = row) -> int:
                load(connection, desk.layout, slice_id, row, expires_at=_FAR)
                return unblock_all(connection)

            number = protocol.next_version(desk.view.latest[slice_id])
            opened += desk.change(slice_id, number, Event.UNBLOCK, unblock) is not None
        return opened


class BucketManifest(Manifest):
    """The manifest of a run in a bucket. Thread-safe; never carried over a fork. Close it."""

    def __init__(
        self, objects: Objects, plan: Plan, *, clock: Clock | None = None, policy: LeasePolicy | None = None
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="shardgen-", ignore_cleanup_errors=True)
        try:
            url = DatabaseUrl(url="sqlite:///rows.sqlite", run_dir=Path(self._scratch.name))
            create_manifest(url, plan)
            super().__init__(url, plan, clock=clock)
        except BaseException:
            self._scratch.cleanup()
            raise
        self._desk = desk = _Desk(plan, objects, self._session, clock)
        if policy is not None:
            desk.beat_seconds = policy.heartbeat.total_seconds()
            desk.silent_seconds = policy.duration.total_seconds()
        self.objects = objects
        self.workers = BucketWorkers(desk)
        self.micro_batches = BucketMicroBatches(desk)
        self.folder = BucketFolder(desk)
        self.leases = BucketLeases(desk)
        self.suspicion = BucketSuspicions(desk)
        self.receipts = BucketReceipts(desk)
        self.operator = BucketOperator(desk)

    def close(self) -> None:
        """Remove this process's copies."""
        super().close()
        self._scratch.cleanup()

    @property
    def shown(self) -> str:
        """The url."""
        desk = getattr(self, "_desk", None)
        return super().shown if desk is None else desk.objects.shown

    def now(self) -> datetime:
        """This machine's clock: only shown, and never what a lease ends by."""
        return self._desk.now()

    def restore(self, receipts: Iterable[Receipt], store: ArtifactReader) -> None:
        """Let whole artifacts have their receipts, and no other receipt outrank those; twice is harmless.

        Workers may be at work: a receipt is removed only if what it names is read now and is not whole. Of a
        slice whose row is damaged another version says that it is open.
        """
        desk = self._desk
        desk.view.look(anew=True)
        whole = {receipt.record.batch: receipt for receipt in receipts}
        for batch, key in sorted(desk.view.winners.items()):
            if (found := whole.get(batch)) is None or found.fence < key.fence:
                self._remove_unless_whole(key, store)
        for batch, receipt in whole.items():
            key = ReceiptKey(batch=batch, fence=receipt.fence, dead=len(receipt.record.dead_letters))
            if desk.view.winners.get(batch) != key:
                desk.objects.create(str(key), receipt_bytes(desk.plan, receipt))
        for slice_id in desk.view.begun():
            try:
                desk.row(slice_id)
            except ManifestCorrupt:
                self._reopen(slice_id)

    def _remove_unless_whole(self, key: ReceiptKey, store: ArtifactReader) -> None:
        desk = self._desk
        try:
            data = desk.objects.read(str(key))
            store.read(parse_receipt(desk.plan, str(key), data, batch=key.batch, fence=key.fence).artifact)
        except (ManifestCorrupt, CorruptionError):
            desk.objects.remove([str(key)])

    def _reopen(self, slice_id: SliceId) -> None:
        desk = self._desk
        number = protocol.next_version(desk.view.latest[slice_id])
        desk.change(
            slice_id,
            number,
            Event.RESTORE,
            lambda connection: load(connection, desk.layout, slice_id, None, expires_at=_FAR),
        )

    def overview(self) -> Overview:
        """The state of the run, in O(shards + workers) objects and the pages of names."""
        desk, view = self._desk, self._desk.view
        if desk.monotonic() - view.looked_at >= _LOOK_SECONDS or view.looked_at == float("-inf"):
            view.look()
        now = desk.now()
        signs = {name: sign for name in sorted(view.signs) if (sign := view.sign_of(name)) is not None}
        places: dict[str, SliceId] = {}
        counts: dict[ShardIndex, Counter[str]] = {}
        blocked: list[BlockedSlice] = []
        for slice_id in view.slices():
            state, version = self._state(slice_id, now, signs)
            counts.setdefault(slice_id[0], Counter())[state] += 1
            if version is None:
                continue
            if version.state is SliceState.BLOCKED and len(blocked) < BLOCKED_LISTED:
                blocked.append(
                    BlockedSlice(shard=slice_id[0], slice=slice_id[1], reason=version.reason or "")
                )
            elif version.state is SliceState.LEASED and version.worker is not None:
                places[version.worker] = slice_id
        made: Counter[str] = Counter()
        for sign in signs.values():
            made.update(sign.made)
        return Overview(
            fingerprint=desk.plan.fingerprint,
            taken_at=now,
            shards=tuple(
                ShardState(
                    shard=shard,
                    stored=view.samples[shard] - view.dead[shard],
                    dead=view.dead[shard],
                    slices=SliceCounts(
                        **{name: counts[shard][name] for name in SliceCounts.__dataclass_fields__}
                    ),
                )
                for shard in map(ShardIndex, range(desk.layout.shard_count))
            ),
            blocked=tuple(blocked),
            workers=self._rows(signs, places, now),
            mixture=tuple((Provenance(text=text), count) for text, count in made.most_common()),
        )

    def _state(
        self, slice_id: SliceId, now: datetime, signs: dict[str, SignOfLife]
    ) -> tuple[str, Version | None]:
        """A slice's state for people, and its latest version if it is not done."""
        view = self._desk.view
        if view.is_done(slice_id):
            return SliceState.DONE.value, None
        version = view.version(slice_id)
        if version is None:
            return "never_leased", None
        if version.state is not SliceState.LEASED:
            return version.state.value, version
        name = object_name(version.worker or "")
        sign, said = view.signs.get(name), signs.get(name)
        is_live = (
            sign is not None
            and said is not None
            and said.state not in ENDED_STATES
            and (now - sign.modified).total_seconds() < self._desk.silent_seconds
        )
        return (SliceState.LEASED.value if is_live else "expired"), version

    def _rows(
        self, signs: dict[str, SignOfLife], places: dict[str, SliceId], now: datetime
    ) -> tuple[WorkerRow, ...]:
        rows = []
        for name, sign in signs.items():
            modified = self._desk.view.signs[name].modified
            shard, slice_ = places.get(sign.worker, (None, None))
            if shard is None and now - modified > LISTED_AFTER_END:
                continue
            progress = to_seconds(modified) - sign.seconds_since_progress
            rows.append(
                WorkerRow(
                    identity=sign.identity,
                    state=sign.state,
                    shard=shard,
                    slice=slice_,
                    lease_expires_at=None,
                    started_at=datetime.fromtimestamp(sign.started_at, UTC),
                    last_beat_at=modified,
                    last_progress_at=datetime.fromtimestamp(progress, UTC),
                    samples_done=sign.samples_done,
                    samples_per_second=sign.samples_per_second,
                    note=sign.note,
                )
            )
        return tuple(sorted(rows, key=lambda row: (row.started_at, row.identity.id)))

"""Session: how a slice's row becomes a new version, and what a worker shows of itself, for all parts."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import Connection, select, update

from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.protocol import ReceiptKey, VersionKey
from shardgen.coordination.bucket.rows import (
    SignOfLife,
    Version,
    decoded,
    dump,
    encoded,
    parse_receipt,
    version_bytes,
)
from shardgen.coordination.bucket.view import BucketView, sign_key
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import ShardIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.slice_state import Event
from shardgen.domain.worker import ENDED_STATES, WorkerIdentity, WorkerState, file_name
from shardgen.errors import ShardgenError
from shardgen.manifest.manifest import Manifest
from shardgen.manifest.session import Clock
from shardgen.manifest.slices import held, to_seconds
from shardgen.manifest.tables import SHARD, SLICE, WORKER

_READERS = 32  # requests at once, where many objects are read
_FIRST_BEAT_SECONDS = 10.0  # between two signs of life, until the lease's policy is known

Found = TypeVar("Found")


class _Rolled(Exception):
    def __init__(self, version: Version) -> None:
        super().__init__()
        self.version = version


class Life:
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
        self.has_ended = False  # and that is written
        self.lock = threading.RLock()

    def change(self, **changes: object) -> None:
        """Let it say something else; its lock keeps threads from taking back what another has said."""
        with self.lock:
            self.sign = self.sign.model_copy(update=changes)


class BucketSession:
    """What all parts of one opened manifest share; `rows` are this process's copies of slices' rows."""

    def __init__(self, plan: Plan, objects: Objects, rows: Manifest, clock: Clock | None) -> None:
        self.plan = plan
        self.layout = plan.layout
        self.objects = objects
        self.rows = rows
        self.sql = rows.leases.session
        self._clock = clock
        self.view = BucketView(plan, objects, monotonic=self.monotonic)
        self.lives: dict[WorkerId, Life] = {}
        self.beat_seconds = _FIRST_BEAT_SECONDS
        self.silent_seconds = 120.0
        self._unsettled: dict[str, tuple[Version, bytes]] = {}

    def monotonic(self) -> float:
        """What silence is measured by."""
        return time.monotonic() if self._clock is None else self._clock().timestamp()

    def now(self) -> datetime:
        """For people, and where a clock is only a guess."""
        return datetime.now(UTC) if self._clock is None else self._clock()

    def store_now(self) -> datetime:
        """The store's clock, by which it dates what it gets: by an object that is written and listed."""
        if self._clock is not None:
            return self._clock()
        key = f"probe/{secrets.token_hex(8)}/clock"
        self.objects.write(key, b"now")
        try:
            found = self.objects.listed(key.rpartition("/")[0])
        finally:
            self.objects.remove([key])
        return found[0].modified if found else self.now()

    # versions of rows

    def row(self, slice_id: SliceId) -> tuple[int, Version | None]:
        """The number of a slice's latest version, and what that says with what its holder has noted since.

        None for one of another plan, and 0 where there is no version.
        """
        number, version = self.view.numbered(slice_id)
        if version is None or version.fingerprint != self.plan.fingerprint:
            return number, None
        if (slice_id, number) not in self.view.notes:
            return number, version
        key = str(VersionKey(slice_id=slice_id, number=number, is_note=True))
        return number, decoded(Version, key, self.objects.read(key))

    def change(
        self, slice_id: SliceId, number: int, event: Event, body: Callable[[Connection], Found]
    ) -> tuple[Found] | None:
        """Let what `body` makes of the row be its next version, and return what it gives; None: it is not.

        `number` is the version to create. The change is tried, created in the bucket, and then made here; if
        another was quicker, nothing is changed.
        """
        key = VersionKey(slice_id=slice_id, number=number)

        def attempt(connection: Connection) -> None:
            body(connection)
            now = to_seconds(self.now())
            raise _Rolled(dump(connection, self.plan, slice_id, event.value, now=now))

        try:
            self.sql.write(attempt)
        except _Rolled as rolled:
            version = rolled.version
        else:
            raise AssertionError  # it always raises
        if not self._create(str(key), version):
            self.view.note_version(slice_id, number)
            return None
        result = self.sql.write(body)
        self.view.note_created(slice_id, number, version)
        return (result,)

    def _create(self, key: str, version: Version) -> bool:
        """Create it; after a failure that left open whether it is there, the same version as the same bytes.

        Another one is not created then if the first is there, which the next look will tell.
        """
        timeless = version.model_copy(update={"written_at": 0.0})
        tried, data = self._unsettled.get(key, (None, b""))
        if tried != timeless:
            data = version_bytes(version)
        self._unsettled[key] = timeless, data
        is_made = self.objects.create(key, data)
        del self._unsettled[key]
        return is_made

    def note(self, lease: Lease) -> None:
        """Write down what the holder of a suspect slice makes now, before it does."""
        slice_id = lease.shard, lease.slice
        now = to_seconds(self.now())
        version = self.sql.read(lambda one: dump(one, self.plan, slice_id, "note", now=now))
        key = VersionKey(slice_id=slice_id, number=lease.fence, is_note=True)
        self.objects.write(str(key), encoded(version))
        self.view.notes.add((slice_id, lease.fence))

    def is_held(self, lease: Lease) -> bool:
        """Whether the row here is still this grant's."""
        query = select(SLICE.c.fence).where(held(lease))
        return self.sql.read(lambda one: one.execute(query).first()) is not None

    def count_finished(self, connection: Connection) -> None:
        """Let the shards' counters say what the view has seen of the whole run."""
        for shard in map(ShardIndex, range(self.layout.shard_count)):
            dead = self.view.dead[shard]
            values = {"stored": self.view.samples[shard] - dead, "dead": dead}
            connection.execute(update(SHARD).where(SHARD.c.shard == shard).values(values))

    def read_ahead(self, shard: ShardIndex | None) -> None:
        """Read who holds what and what they say of themselves, many at a time: in a row it takes seconds."""
        view = self.view
        begun = [one for one in view.begun() if shard in (None, one[0])]
        if len(begun) < 2:
            return
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(view.version, begun))
            list(pool.map(self.sign_of_worker, sorted({one.worker for one in found if one and one.worker})))

    def all_signs(self) -> dict[str, SignOfLife]:
        """What all workers say of themselves, read many at a time, by their names in order."""
        names = sorted(self.view.signs)
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(names, pool.map(self.view.sign_of, names), strict=True)
            return {name: sign for name, sign in found if sign is not None}

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
            life.change(beat=life.sign.beat + 1, seconds_since_progress=round(quiet, 1))
            name = file_name(worker)
            e_tag = self.objects.write(sign_key(name), encoded(life.sign))
            self.view.note_sign(name, life.sign, e_tag, now=self.now())
            life.written_at = now
            life.has_ended = life.sign.state in ENDED_STATES

    def say_of(self, worker: WorkerId, **changes: object) -> None:
        """Write what is known of a worker that cannot say it itself; the first word of its end stands."""
        sign = self.sign_of_worker(worker)
        if sign is None or sign.state in ENDED_STATES:
            return
        sign = sign.model_copy(update=changes | {"beat": sign.beat + 1})
        if worker in self.lives:
            self.lives[worker].change(**changes)
        name = file_name(worker)
        self.view.note_sign(name, sign, self.objects.write(sign_key(name), encoded(sign)), now=self.now())
        if worker in self.lives:
            self.lives[worker].has_ended = sign.state in ENDED_STATES

    def sign_of_worker(self, worker: str) -> SignOfLife | None:
        """What a worker has said of itself; None when it never has."""
        with suppress(ShardgenError):
            return self.view.sign_of(file_name(worker))
        return None

    def know_worker(self, connection: Connection, sign: SignOfLife | None) -> None:
        """Let the row of a worker elsewhere say what it says of itself, for whoever judges its end."""
        if sign is None:
            return
        known = select(WORKER.c.id).where(WORKER.c.id == sign.worker)
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
        connection.execute(update(WORKER).where(WORKER.c.id == sign.worker).values(values))

    def has_stopped(self, worker: str) -> bool:
        """Whether it said its last word, after which it holds nothing."""
        sign = self.sign_of_worker(worker)
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

"""Many processes that lease, record, release and forget; what each was told, and what the database saw.

The database writes its own diary: a trigger notes every change of a slice's row in the transaction that makes
it, so that its order is the order of commits. What the processes were told must agree with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, text

from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import Objects
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.errors import LeaseLost, ManifestBusy, ShardgenError
from shardgen.manifest import leases
from shardgen.manifest import manifest as databases
from shardgen.manifest.backend import Access
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.port import Manifest
from tests.broken import take_the_fence_away
from tests.conformance.conftest import identity, receipt_for
from tests.plans import make_plan

PLAN = make_plan(backgrounds=20, foregrounds=20, grid=(10, 10), shard_size=8000, batch=4, slice_batches=4)
POLICY = LeasePolicy(
    duration=timedelta(milliseconds=20),
    heartbeat=timedelta(seconds=1),
    stall=timedelta(seconds=600),
    max_attempts=1_000_000,
)
PATIENT = LeasePolicy(
    duration=timedelta(hours=1), heartbeat=timedelta(seconds=1), stall=timedelta(hours=1), max_attempts=6
)


_NEW = "new.shard, new.slice, new.fence, new.state, new.worker, new.batches_left"
_COLUMNS = "shard, slice, fence, state, worker, batches_left, left_before, fence_before"
_DIARIES = {
    "sqlite": (
        f"CREATE TABLE diary (number INTEGER PRIMARY KEY, {_COLUMNS})",
        f"""CREATE TRIGGER on_insert AFTER INSERT ON slice BEGIN
          INSERT INTO diary ({_COLUMNS}) VALUES ({_NEW}, new.batches_left, new.fence); END""",
        f"""CREATE TRIGGER on_update AFTER UPDATE ON slice BEGIN
          INSERT INTO diary ({_COLUMNS}) VALUES ({_NEW}, old.batches_left, old.fence); END""",
    ),
    # Numbers follow commits for the rows of one slice: its row is locked from the number to the commit.
    "postgresql": (
        """CREATE TABLE diary (number bigserial PRIMARY KEY, shard bigint, slice bigint, fence bigint,
          state text, worker text, batches_left bigint, left_before bigint, fence_before bigint)""",
        f"""CREATE FUNCTION keep_diary() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO diary ({_COLUMNS}) VALUES ({_NEW},
            coalesce(old.batches_left, new.batches_left), coalesce(old.fence, new.fence));
          RETURN NULL; END $$""",
        """CREATE TRIGGER on_change AFTER INSERT OR UPDATE ON slice
          FOR EACH ROW EXECUTE FUNCTION keep_diary()""",
    ),
}


class Told(NamedTuple):
    """What a process was told: that it got a lease, or that its write under it was accepted."""

    event: str
    shard: int
    slice: int
    fence: int
    worker: str


class Change(NamedTuple):
    """A slice's row after one change, as the trigger saw it."""

    shard: int
    slice: int
    fence: int
    state: str
    worker: str | None
    batches_left: int
    left_before: int
    fence_before: int


def keep_a_diary(url: DatabaseUrl) -> None:
    """Let the database note every change of a slice's row."""
    with contextlib.closing(url.backend.open(Access.WRITE)) as database:
        for statement in _DIARIES[database.engine.dialect.name]:
            database.transact(partial(Connection.exec_driver_sql, statement=statement))


def read_diary(url: DatabaseUrl) -> list[Change]:
    """In the order of commits, slice by slice."""
    return [Change(*row) for row in select_all(url, f"SELECT {_COLUMNS} FROM diary ORDER BY number")]


def select_all(url: DatabaseUrl, query: str) -> list[tuple[Any, ...]]:
    """What is committed."""
    with contextlib.closing(url.backend.open(Access.READ)) as database:
        return database.transact(lambda connection: [tuple(row) for row in connection.execute(text(query))])


def read_told(path: Path) -> list[Told]:
    """One process's own diary."""
    lines = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Told(event, int(shard), int(slice_), int(fence), worker)
        for event, shard, slice_, fence, worker in lines
    ]


def contradictions(changes: list[Change], told: list[Told]) -> list[str]:
    """Where leases were not exclusive.

    Empty means: every fence of a slice was granted once, to one process, in the order of commits; and what
    changed between two grants was changed by the process that held the slice, as often as it was told so.
    """
    found = []
    granted = Counter((one.shard, one.slice, one.fence) for one in told if one.event == "granted")
    found += [f"{slice_id} was granted {count} times" for slice_id, count in granted.items() if count > 1]
    holder = {(one.shard, one.slice, one.fence): one.worker for one in told if one.event == "granted"}
    fences: dict[tuple[int, int], int] = {}
    recorded = Counter[tuple[int, int, int]]()
    for change in changes:
        slice_id = (change.shard, change.slice)
        key = (*slice_id, change.fence)
        if change.fence != fences.get(slice_id, change.fence_before):
            if change.fence != fences.get(slice_id, 0) + 1:
                found.append(f"{slice_id} went from fence {fences.get(slice_id)} to {change.fence}")
            if holder.get(key) != change.worker:
                found.append(f"{key} was granted to {change.worker}, but {holder.get(key)} was told so")
        fences[slice_id] = change.fence
        if change.state == "leased" and holder.get(key) != change.worker:
            found.append(f"{key} is held by {change.worker}, but {holder.get(key)} was told so")
        recorded[key] += change.left_before - change.batches_left
    said = Counter((one.shard, one.slice, one.fence) for one in told if one.event == "recorded")
    found += [
        f"{key}: {recorded[key]} batches were recorded while it was held, its holder says {said[key]}"
        for key in sorted(set(recorded) | set(said))
        if recorded[key] != said[key]
    ]
    never = set(granted) - {(one.shard, one.slice, one.fence) for one in changes}
    found += [f"{slice_id} was granted, the database does not know it" for slice_id in sorted(never)]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """One process's part: how long it takes leases, and where it writes down what it was told."""

    database: DatabaseUrl | None
    """None: in a bucket."""
    name: str
    told: Path
    leases: int = 0
    end: Path | None = None
    """Instead of a number of leases: the file that ends the storm when it appears."""
    broken: str = ""
    bucket: str = ""
    """Its url; where its server is, `environment` says."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def opened(self) -> Manifest:
        """The manifest, as this process has it. Close it."""
        if self.database is not None:
            return databases.Manifest(self.database, PLAN)
        os.environ.update(self.environment)
        manifest = BucketManifest(Objects.open(self.bucket), PLAN)
        manifest.workers.register(identity(self.name))
        return manifest


def take_part(storm: Storm) -> None:
    """Lease, and do one of the things that may happen to a lease."""
    break_on_purpose(storm.broken)
    source = random.Random(storm.name)  # noqa: S311
    kept: list[Lease] = []
    with storm.opened() as manifest, _teller(storm) as tell:
        for number in itertools.count():
            if number >= storm.leases if storm.end is None else storm.end.exists():
                return
            # SQLite's locks are not fair: one of eight that never pause may wait too long.
            with contextlib.suppress(ManifestBusy):
                lease = manifest.leases.lease(WorkerId(storm.name), POLICY)
                if isinstance(lease, Lease):
                    tell("granted", lease)
                    _use(manifest, lease, kept, source, tell)


def _use(manifest: Manifest, lease: Lease, kept: list[Lease], source: random.Random, tell: _Tell) -> None:
    match source.randrange(5):
        case 0:
            manifest.leases.release(lease)
        case 1:
            _record(manifest, lease, tell)
            manifest.leases.release(lease)
        case 2:
            with contextlib.suppress(LeaseLost):
                manifest.leases.renew(lease, POLICY)
            _record(manifest, lease, tell)
        case _:
            kept.append(lease)  # it expires, and somebody may take it over
    if len(kept) > 5:
        # A late write: accepted only if nobody has taken the slice over.
        _record(manifest, kept.pop(source.randrange(len(kept))), tell)


def _record(manifest: Manifest, lease: Lease, tell: _Tell) -> None:
    with contextlib.suppress(LeaseLost):
        batch = manifest.receipts.pending_batches(lease)[0]
        manifest.receipts.record(lease, receipt_for(PLAN, lease, batch))
        tell("recorded", lease)


def be_a_zombie(storm: Storm, leased: Event, taken_over: Event) -> None:
    """Lease; when the slice was taken over, try to record in it all the same."""
    break_on_purpose(storm.broken)
    with storm.opened() as manifest, _teller(storm) as tell:
        lease = manifest.leases.lease(WorkerId(storm.name), PATIENT)
        assert isinstance(lease, Lease)
        tell("granted", lease)
        leased.set()
        assert taken_over.wait(60)
        try:
            manifest.receipts.record(lease, receipt_for(PLAN, lease, BatchIndex(0)))
        except LeaseLost:
            tell("refused", lease)
        else:
            tell("recorded", lease)


def meet_between_reading_and_writing(storm: Storm, barrier: Barrier) -> None:
    """Lease, and wait for another one between reading what is free and taking it."""
    break_on_purpose(storm.broken)
    real = leases._grant

    def grant(*arguments: object, **options: object) -> Lease:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait()
        return real(*arguments, **options)  # type: ignore[arg-type]

    leases._grant = grant
    with storm.opened() as manifest, _teller(storm) as tell:
        try:
            lease = manifest.leases.lease(WorkerId(storm.name), PATIENT)
        except ShardgenError as error:
            storm.told.with_suffix(".error").write_text(repr(error), encoding="utf-8")
            return
        assert isinstance(lease, Lease)
        tell("granted", lease)


class _Tell:
    def __init__(self, path: Path, worker: str) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._worker = worker

    def __call__(self, event: str, lease: Lease) -> None:
        self._file.write(f"{event} {lease.shard} {lease.slice} {lease.fence} {self._worker}\n")

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _teller(storm: Storm) -> Iterator[_Tell]:
    tell = _Tell(storm.told, storm.name)
    with contextlib.closing(tell):
        yield tell


def break_on_purpose(broken: str) -> None:
    """Take one of the rules away, in this process."""
    if broken == "unguarded":
        # A server's rows are not locked between reading and writing, and SQLite's file is not either.
        Select.with_for_update = lambda self, **_: self  # type: ignore[method-assign]
        real = Connection.exec_driver_sql

        def exec_driver_sql(self: Connection, statement: str, *arguments: object) -> object:
            return real(self, statement.replace("BEGIN IMMEDIATE", "BEGIN"), *arguments)  # type: ignore[arg-type]

        Connection.exec_driver_sql = exec_driver_sql  # type: ignore[method-assign, assignment]
    elif broken == "unfenced":
        take_the_fence_away()

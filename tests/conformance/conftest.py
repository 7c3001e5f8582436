from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from obstore.store import MemoryStore
from sqlalchemy import URL

from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import Objects
from shardgen.domain.identifiers import BatchIndex, SampleIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import (
    ArtifactRef,
    BatchRecord,
    DeadLetter,
    DeadLetterReason,
    OutputSums,
    Provenance,
    Receipt,
)
from shardgen.domain.worker import WorkerIdentity
from shardgen.manifest import manifest as databases
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import create_manifest
from shardgen.manifest.operator import Marks
from shardgen.manifest.port import Manifest
from shardgen.manifest.session import Clock
from tests.bucket.servers import MOTO, SERVERS, Store
from tests.plans import make_plan
from tests.postgres import new_schema

Servers = Callable[[], URL]

POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=3,
)


class MovableClock:
    """Time that moves only when a test says so."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> MovableClock:
    callspec = getattr(request.node, "callspec", None)
    # A store dates its objects by its own clock, which nobody moves.
    is_dated = callspec is not None and callspec.params.get("place") in BUCKETS
    return MovableClock(datetime.now(UTC)) if is_dated else MovableClock()


@pytest.fixture
def plan() -> Plan:
    # 120 samples: shards of 50, 50 and 20; batches of 8 (7, 7 and 3); slices of 3 batches (3, 3 and 1).
    return make_plan(shard_size=50, batch=8, slice_batches=3)


DATABASES = ("sqlite", "postgresql", "folder")
MEMORY = "bucket in memory"
# Every rule on one S3 server; what the others have of their own, tests/bucket/test_objects.py asks.
BUCKETS = (MEMORY, *(f"bucket on {name}" for name in SERVERS if name != MOTO.name))


class Place(Protocol):
    """Where one manifest is, or is to be."""

    def create(self, plan: Plan) -> bool:
        """Make it, if it is to be made; False when it was there."""

    def open(self, plan: Plan, *, clock: Clock | None = None) -> Manifest:
        """Open it, as one process does. Close it."""


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """A database, or a machine's index of a shared folder."""

    url: DatabaseUrl

    def create(self, plan: Plan) -> bool:
        return create_manifest(self.url, plan)

    def open(self, plan: Plan, *, clock: Clock | None = None) -> Manifest:
        return databases.Manifest(self.url, plan, clock=clock)


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A prefix of a bucket; a run begins there with its first claim."""

    objects: Objects

    def create(self, plan: Plan) -> bool:
        return not self.objects.listed("")

    def open(self, plan: Plan, *, clock: Clock | None = None) -> Manifest:
        return BucketManifest(self.objects, plan, clock=clock)


@contextmanager
def new_place(backend: str, folder: Path, servers: Servers) -> Iterator[DatabaseUrl]:
    """A place for one database; in memory where that is to be had, since no test here is about fsync."""
    if backend == "postgresql":
        with new_schema(servers()) as url:
            yield DatabaseUrl(url=url, run_dir=folder)
        return
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else folder) as name:
        if backend == "folder":  # what it promises among the workers of one machine, by that machine's index
            yield DatabaseUrl(url="folder:", run_dir=Path(name), index=Path(name) / "index")
            return
        yield DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=Path(name))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test on every backend; those that look into the database on databases, or a module's `PLACES`."""
    if "place" in metafunc.fixturenames:
        databases_only = getattr(metafunc.module, "PLACES", DATABASES)
        names = databases_only if "database" in metafunc.fixturenames else (*DATABASES, *BUCKETS)
        params = [pytest.param(one, marks=[] if one == "sqlite" else [pytest.mark.slow]) for one in names]
        metafunc.parametrize("place", params, indirect=True)


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_servers: Servers,
    bucket_servers: Callable[[str], Store],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    if request.param == MEMORY:
        yield BucketPlace(Objects(MemoryStore(), MEMORY))
    elif request.param in BUCKETS:
        server = bucket_servers(request.param.removeprefix("bucket on "))
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield BucketPlace(Objects.open(server.new_url()))
    else:
        with new_place(request.param, tmp_path, postgres_servers) as made:
            yield DatabasePlace(made)


@pytest.fixture
def database(place: Place) -> DatabaseUrl:
    assert isinstance(place, DatabasePlace)
    return place.url


@pytest.fixture
def manifest(place: Place, plan: Plan, clock: MovableClock) -> Iterator[Manifest]:
    assert place.create(plan)
    with place.open(plan, clock=clock) as opened:
        yield opened


def identity(name: str, *, host: str = "host-a", pid: int = 1) -> WorkerIdentity:
    return WorkerIdentity(id=WorkerId(name), host=host, pid=pid, process_started=1.5)


@pytest.fixture
def lease(manifest: Manifest) -> Callable[..., Lease]:
    def take(worker: str, **options: object) -> Lease:
        granted = manifest.leases.lease(WorkerId(worker), POLICY, **options)  # type: ignore[arg-type]
        assert not isinstance(granted, NoLease)
        return granted

    return take


def receipt_for(plan: Plan, lease: Lease, batch: BatchIndex, *, dead: tuple[int, ...] = ()) -> Receipt:
    stored = len(plan.layout.batch_samples(batch)) - len(dead)
    huge = 2**70 + batch  # past 64 bits, as squares of 16-bit values are in a large run
    return Receipt(
        shard=lease.shard,
        slice=lease.slice,
        fence=lease.fence,
        worker=lease.worker,
        artifact=ArtifactRef(name=f"shard/{batch}.f{lease.fence}.zip", size_bytes=100, sha256="a" * 64),
        record=BatchRecord(
            batch=batch,
            members_start=0,
            members_stop=3 * stored,
            members_sha256="b" * 64,
            sums={
                output.name: OutputSums(
                    images=stored,
                    pixels=stored * 4,
                    sum=(1,) * output.channels,
                    squares=(huge,) * output.channels,
                )
                for output in plan.outputs
            },
            dead_letters=tuple(
                DeadLetter(sample=SampleIndex(s), reason=DeadLetterReason.COMPOSE, detail="Traceback …")
                for s in dead
            ),
            provenance=Provenance.of(
                {
                    "device_model": "cpu",
                    "micro_batch": 2,
                    "opencv": "5",
                    "precision": "float32",
                    "tensorflow": "2",
                }
            ),
        ),
    )


def finish(manifest: Manifest, plan: Plan, lease: Lease) -> None:
    for batch in manifest.receipts.pending_batches(lease):
        manifest.receipts.record(lease, receipt_for(plan, lease, batch))


def in_a_bucket(manifest: Manifest) -> bool:
    """Where a promise is another one there, the test says so."""
    return isinstance(manifest, BucketManifest)


def undo(manifest: Manifest, plan: Plan, batches: list[BatchIndex]) -> tuple[int, Marks]:
    """Undo these batches' receipts as `requeue` does; how many there were, and the marks."""
    found: list[Marks] = []

    def mark(marks: Marks) -> None:
        found.append(marks)
        for fence, marked in marks.items():
            document = {"fingerprint": plan.fingerprint, "fence": fence, "batches": marked}
            if isinstance(manifest, BucketManifest):  # there the mark is the record
                key = f"artifacts/requeued/{fence:04d}-{secrets.token_hex(4)}.json"
                assert manifest.objects.create(key, json.dumps(document).encode())

    undone = manifest.operator.undo_receipts(batches, mark=mark)
    return undone, found[0]

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL

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
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
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

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def plan() -> Plan:
    # 120 samples: shards of 50, 50 and 20; batches of 8 (7, 7 and 3); slices of 3 batches (3, 3 and 1).
    return make_plan(shard_size=50, batch=8, slice_batches=3)


BACKENDS = ("sqlite", "postgresql", "folder")


@contextmanager
def new_place(backend: str, folder: Path, servers: Servers) -> Iterator[DatabaseUrl]:
    """A place for one manifest; in memory where that is to be had, since no test here is about fsync."""
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


@pytest.fixture(
    params=[pytest.param(one, marks=[pytest.mark.slow] if one == "postgresql" else []) for one in BACKENDS]
)
def database(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: Servers
) -> Iterator[DatabaseUrl]:
    with new_place(request.param, tmp_path, postgres_servers) as made:
        yield made


@pytest.fixture
def manifest(database: DatabaseUrl, plan: Plan, clock: MovableClock) -> Iterator[Manifest]:
    assert create_manifest(database, plan)
    with Manifest(database, plan, clock=clock) as opened:
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

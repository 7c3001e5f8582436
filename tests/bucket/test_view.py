from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from shardgen.coordination.bucket import objects as module
from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import ObjectMeta, Objects
from shardgen.coordination.bucket.protocol import RECEIPTS, WORKERS
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerReport, WorkerState, file_name
from shardgen.errors import StorageFailed
from tests.conformance.conftest import MovableClock, identity, receipt_for
from tests.plans import make_plan

POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=3,
)
A, B = WorkerId("a"), WorkerId("b")


class Store(Objects):
    """A store in memory that several manifests share; `before_page` is called with what is listed."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, "memory")
        self.failing = ""

    def before_page(self, prefix: str) -> None:
        """Nothing happens."""

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[ObjectMeta]]:
        self.before_page(prefix)
        yield from super().pages(prefix, after=after)

    def write(self, key: str, data: bytes) -> str:
        if self.failing and self.failing in key:
            raise StorageFailed(f"{key}: is away")
        return super().write(key, data)


class Machines:
    """Manifests of machines that share a bucket, and one clock."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self.plan = plan
        self.clock = MovableClock()
        self._memory = MemoryStore()
        self._stack = stack

    def opened(self, worker: WorkerId) -> tuple[Any, Store]:
        store = Store(self._memory)
        manifest = self._stack.enter_context(BucketManifest(store, self.plan, clock=self.clock))
        manifest.workers.register(identity(worker, host=f"host-{worker}"))
        return manifest, store


@pytest.fixture
def machines() -> Iterator[Machines]:
    with ExitStack() as stack:
        yield Machines(make_plan(shard_size=50, batch=8, slice_batches=3), stack)


def leased(manifest: BucketManifest, worker: WorkerId) -> Lease:
    granted = manifest.leases.lease(worker, POLICY)
    assert isinstance(granted, Lease)
    return granted


def make(manifest: BucketManifest, plan: Plan, lease: Lease) -> list[BatchIndex]:
    batches = manifest.receipts.pending_batches(lease)
    for batch in batches:
        manifest.receipts.record(lease, receipt_for(plan, lease, batch))
    return batches


def test_a_slow_look_makes_nobody_look_silent(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = machines.opened(A)
    theirs, store = machines.opened(B)
    held = leased(ours, A)
    leased(theirs, B)

    def slowly(prefix: str) -> None:
        if prefix == RECEIPTS:  # between the signs of life and the judgement
            machines.clock.forward(130)
            ours.leases.renew(held, POLICY)

    monkeypatch.setattr(store, "before_page", slowly)
    for _ in range(3):
        taken = leased(theirs, B)
        assert (taken.shard, taken.slice) != (held.shard, held.slice)
    ours.leases.renew(held, POLICY)


@pytest.mark.parametrize(
    "key", ["artifacts/requeued/.DS_Store", "workers/x.json", "micro-batches/x/y", "claims/a"]
)
def test_a_strangers_object_stops_nobody(machines: Machines, key: str) -> None:
    manifest, store = machines.opened(A)
    if key.startswith("micro"):
        model = hashlib.sha256(b"cpu").hexdigest()[:16]
        key = f"micro-batches/{model}/.DS_Store"
    store.write(key, b"junk")
    make(manifest, machines.plan, leased(manifest, A))
    assert manifest.micro_batches.agreed("cpu", 4) == 4
    assert manifest.overview().stored == 3 * 8
    assert manifest.workers.alive_on_host("host-a")


def test_an_open_slice_that_a_page_cuts_is_listed_to_its_end(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    monkeypatch.setattr("shardgen.coordination.bucket.view._LONG", 0)
    ours, _ = machines.opened(A)
    theirs, _ = machines.opened(B)
    first = leased(ours, A)
    ours.receipts.record(first, receipt_for(machines.plan, first, BatchIndex(0)))
    for _ in range(5):
        make(ours, machines.plan, leased(ours, A))
    assert theirs.overview().stored == ours.overview().stored
    ours.receipts.record(first, receipt_for(machines.plan, first, BatchIndex(1)))
    ours.receipts.record(first, receipt_for(machines.plan, first, BatchIndex(2)))
    machines.clock.forward(31)
    assert theirs.overview().stored == ours.overview().stored


def test_the_last_word_is_written_when_the_store_is_back(machines: Machines) -> None:
    manifest, store = machines.opened(A)
    store.failing = WORKERS
    last = WorkerReport(state=WorkerState.STOPPED)
    with pytest.raises(StorageFailed):
        manifest.workers.beat(A, last)
    store.failing = ""
    manifest.workers.beat(A, last)
    other, _ = machines.opened(B)
    other.overview()
    said = other._session.view.sign_of(file_name(A))
    assert said is not None
    assert said.state is WorkerState.STOPPED


def test_what_a_rebuild_removed_is_made_before_anybody_ends(machines: Machines) -> None:
    manifest, store = machines.opened(A)
    while isinstance(granted := manifest.leases.lease(A, POLICY), Lease):
        make(manifest, machines.plan, granted)
    assert granted == NoLease(leased=0, blocked=0)
    store.remove([store.listed(RECEIPTS)[4].key])
    again = leased(manifest, A)
    assert make(manifest, machines.plan, again) == [4]


def test_copies_of_a_killed_process_go(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    machines.opened(A)
    (mine,) = tmp_path.iterdir()
    pid = subprocess.Popen(["true"])
    pid.wait()
    left = tmp_path / mine.name.replace(str(os.getpid()), str(pid.pid), 1)
    shutil.copytree(mine, left)
    (tmp_path / "shardgen-rows-of somebody").mkdir()
    machines.opened(B)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 3

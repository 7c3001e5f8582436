"""Requests are part of the design: what status asks does not grow with the run, and who waits asks little."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from benchmarks.bucket import Setting, Simulation, of_waiting
from benchmarks.makespan import policy_of
from benchmarks.status import simulated_receipt
from shardgen.coordination.bucket.artifacts import BucketStore
from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import Objects
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.verify import verify_run
from shardgen.domain.identifiers import SampleIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import DeadLetter, DeadLetterReason
from shardgen.domain.worker import WorkerIdentity
from tests.conformance.conftest import MovableClock
from tests.dataset.made_runs import WORKER, MadeRecipe, MadeRun
from tests.plans import make_plan

POLICY = policy_of(120, 30)


def asked_by_status(slices: int) -> dict[str, int]:
    """Of a run all of whose slices are done but the last two, which two workers hold."""
    plan = make_plan(backgrounds=slices, foregrounds=1, grid=(2, 2), batch=2, slice_batches=2)
    objects = Objects(MemoryStore(), "memory")
    with BucketManifest(objects, plan, policy=POLICY) as manifest:
        workers = [WorkerId("one"), WorkerId("two")]
        for worker in workers:
            manifest.workers.register(WorkerIdentity(id=worker, host=worker, pid=1, process_started=1.0))
        leases = [manifest.leases.lease(workers[number % 2], POLICY) for number in range(slices)]
        for lease in leases[:-2]:
            assert isinstance(lease, Lease)
            for batch in manifest.receipts.pending_batches(lease):
                manifest.receipts.record(lease, simulated_receipt(plan, lease, batch))
    status = Objects(objects._store, "memory")  # the same bucket, counted anew
    with BucketManifest(status, plan, policy=POLICY) as manifest:
        found = manifest.overview()
    assert found.stored == plan.samples - 8
    assert [row.slice for row in found.workers] == [slices - 2, slices - 1]
    return status.requests.counted()


@pytest.mark.slow
def test_status_reads_as_many_objects_of_a_run_four_times_as_large() -> None:
    small, large = asked_by_status(6), asked_by_status(24)
    assert small == large | {"bytes_down": small["bytes_down"]}
    assert small["read"] == 4  # a sign of life and a claim for each worker
    assert small["listed"] == 4  # a page each while there are fewer than a thousand names


def test_who_watches_reads_each_thing_once_and_lists_what_may_be_new() -> None:
    plan = make_plan(backgrounds=6, foregrounds=1, grid=(2, 2), batch=2, slice_batches=2)
    objects, worker, clock = Objects(MemoryStore(), "memory"), WorkerId("one"), MovableClock()
    letter = DeadLetter(sample=SampleIndex(0), reason=DeadLetterReason.HUNG, detail="at 1\nat 2")

    def make_slice(manifest: BucketManifest, *dead: DeadLetter) -> None:
        lease = manifest.leases.lease(worker, POLICY)
        assert isinstance(lease, Lease)
        for batch in manifest.receipts.pending_batches(lease):
            receipt = simulated_receipt(plan, lease, batch)
            letters = tuple(one for one in dead if one.sample in plan.layout.batch_samples(batch))
            record = replace(receipt.record, dead_letters=letters)
            manifest.receipts.record(lease, replace(receipt, record=record))

    counted = Objects(objects._store, "memory")  # the same bucket, counted anew
    with (
        BucketManifest(objects, plan, policy=POLICY, clock=clock) as made,
        BucketManifest(counted, plan, policy=POLICY, clock=clock) as watched,
    ):

        def asked() -> tuple[int, int]:
            """How many objects are read, and pages listed, for one look at everything."""
            before = Counter(counted.requests.counted())
            found = watched.overview(), watched.details(newest=2)
            now = Counter(counted.requests.counted()) - before
            with BucketManifest(objects, plan, policy=POLICY, clock=clock) as fresh:
                assert found == (fresh.overview(), fresh.details(newest=2))
            return now["read"], now["listed"]

        made.workers.register(WorkerIdentity(id=worker, host=worker, pid=1, process_started=1.0))
        make_slice(made, letter)
        make_slice(made)
        signs, pages = 1, 4
        assert asked() == (signs + 3, pages)  # the receipt with the dead letter, and the two newest
        (group,) = watched.details(newest=2).dead_letters
        assert (group.reason, group.first) == (letter.reason, (letter,))
        assert asked() == (0, 0)  # so soon nothing is asked
        clock.forward(11)
        assert asked() == (0, pages)
        make_slice(made)
        clock.forward(11)
        assert asked() == (2, pages)


@pytest.mark.slow
def test_who_waits_asks_little() -> None:
    asked = of_waiting(POLICY)
    assert asked.counts["listed"] <= 5 * 120
    assert asked.dollars < 0.005


class Crowded(Objects):
    """Knows how many reads were under way at once."""

    most = reading = 0

    def read(self, key: str, *, limit: int | None = None) -> bytes | None:
        self.reading += 1
        self.most = max(self.most, self.reading)
        time.sleep(0.02)
        try:
            return super().read(key, limit=limit)
        finally:
            self.reading -= 1


def test_who_asks_for_a_slice_looks_at_all_holders_at_once() -> None:
    plan = make_plan(backgrounds=9, foregrounds=1, grid=(2, 2), batch=2, slice_batches=2)
    objects = Objects(MemoryStore(), "memory")
    with BucketManifest(objects, plan, policy=POLICY) as theirs:
        for number in range(8):
            other = WorkerId(f"other-{number}")
            theirs.workers.register(WorkerIdentity(id=other, host="there", pid=number, process_started=1.0))
            assert isinstance(theirs.leases.lease(other, POLICY), Lease)
    crowded = Crowded(objects._store, "memory")
    with BucketManifest(crowded, plan, policy=POLICY) as manifest:
        lease = manifest.leases.lease(WorkerId("one"), POLICY)
    assert isinstance(lease, Lease)
    assert lease.slice == 8
    assert crowded.most >= 4
    assert crowded.requests.counted()["read"] == 16  # each once


@pytest.mark.slow
def test_workers_on_a_bucket_that_come_and_go_make_nothing_twice() -> None:
    plan = make_plan(backgrounds=4, foregrounds=4, shard_size=240, batch=4, slice_batches=4)
    setting = Setting(plan=plan, policy=POLICY, crew=4, batch_seconds=60.0)
    batches = plan.layout.batch_count
    for dying in (0, 1):
        outcome = Simulation(replace(setting, dying=dying)).play()
        assert outcome.again == 0
        assert 1 <= outcome.ratio < 1.3
        assert outcome.places["created", "receipts"] == batches
        assert outcome.places["created", "artifacts"] <= batches + 2 * 4 + 1  # and folder-id
        assert (outcome.lost > 0) == (dying > 0)


def test_a_merge_reads_each_receipt_twice_and_each_artifact_once_a_verification_both_once(
    tmp_path: Path,
) -> None:
    plan = make_plan(shard_size=48, batch=8, slice_batches=2)
    objects, batches = Objects(MemoryStore(), "memory"), plan.layout.batch_count
    with BucketManifest(objects, plan, policy=POLICY) as manifest:
        manifest.workers.register(WorkerIdentity(id=WORKER, host="here", pid=1, process_started=1.0))
        made = MadeRun(plan, BucketStore(objects, "artifacts/"))  # type: ignore[arg-type]
        while isinstance(lease := manifest.leases.lease(WORKER, POLICY), Lease):
            for batch in manifest.receipts.pending_batches(lease):
                (receipt,) = made.publish(range(batch, batch + 1), fence=lease.fence)
                manifest.receipts.record(lease, receipt)
    asked = []
    for what in ("merge", "verify"):
        again = Objects(objects._store, "memory")  # the same bucket, counted anew
        store = BucketStore(again, "artifacts/")
        with BucketManifest(again, plan, policy=POLICY) as manifest:
            if what == "merge":
                recipe = MadeRecipe(plan)
                merge(MergeInputs(recipe=recipe, source=manifest.receipts, store=store), tmp_path / "out.zip")
            else:
                assert not verify_run(plan, manifest.receipts, store).findings
        asked.append({kind: count for kind, count in again.requests.counted().items() if "bytes" not in kind})
    looks = 4  # pages: marks, signs of life, claims and receipts
    assert asked == [{"read": 3 * batches, "listed": 3 * looks}, {"read": 2 * batches, "listed": looks}]

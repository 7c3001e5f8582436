"""What the model takes for granted of the program: the order of its requests, and what a loser is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from obstore.store import MemoryStore

from benchmarks.status import simulated_receipt
from shardgen.coordination.bucket.artifacts import BucketStore
from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import ObjectMeta, Objects
from shardgen.coordination.bucket.protocol import CLAIMS, VersionKey
from shardgen.coordination.bucket.rows import Version, version_bytes
from shardgen.coordination.database import undo_marked
from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, DeadLetterReason
from shardgen.domain.slice_state import SliceState
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from shardgen.errors import ReceiptConflict
from tests.plans import make_plan

ONE, RIVAL = WorkerId("one"), WorkerId("rival")
POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=3,
)


class Watched(Objects):
    """Tells the changes and listings that it is asked for, in order; `before` gets each key to create."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), "memory")
        self.asked: list[str] = []
        self.before: Callable[[str], None] = lambda _key: None

    def create(self, key: str, data: bytes) -> bool:
        self.before(key)
        self.asked.append(f"create {key}")
        return super().create(key, data)

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[ObjectMeta]]:
        self.asked.append(f"list {prefix}")
        return super().pages(prefix, after=after)

    def remove(self, keys: Iterator[str]) -> None:  # type: ignore[override]
        for key in keys:
            self.asked.append(f"remove {key}")
            super().remove([key])


@pytest.fixture
def objects() -> Watched:
    return Watched()


@pytest.fixture
def plan() -> Plan:
    return make_plan(shard_size=48, batch=8, slice_batches=2)  # 120 samples: slices of 2 batches


@contextmanager
def opened(objects: Objects, plan: Plan, worker: WorkerId) -> Iterator[BucketManifest]:
    with BucketManifest(objects, plan, policy=POLICY) as manifest:
        manifest.workers.register(WorkerIdentity(id=worker, host=worker, pid=1, process_started=1.0))
        yield manifest


def leased(manifest: BucketManifest, worker: WorkerId) -> Lease:
    granted = manifest.leases.lease(worker, POLICY)
    assert isinstance(granted, Lease)
    return granted


def version(plan: Plan, state: SliceState, number: int, *, deaths: int = 0) -> bytes:
    return version_bytes(
        Version(
            fingerprint=plan.fingerprint,
            event="grant",
            written_at=0.0,
            state=state,
            fence=number,
            deaths=deaths,
            worker=RIVAL if state is SliceState.LEASED else None,
            reason=None,
            noted_batch=None,
            noted_sample=None,
            suspect_batch=None,
            samples=(),
        )
    )


def test_a_slice_is_claimed_before_its_receipts_are_listed(objects: Watched, plan: Plan) -> None:
    with opened(objects, plan, ONE) as manifest:
        leased(manifest, ONE)
    claim = objects.asked.index(f"create {CLAIMS}/00000000-00000000/00000001.json")
    assert objects.asked[claim + 1 :] == ["list artifacts/requeued", "list receipts"]


def test_a_requeue_creates_its_version_then_a_mark_up_to_it(objects: Watched, plan: Plan) -> None:
    store = BucketStore(objects, "artifacts/")
    with opened(objects, plan, ONE) as manifest:
        lease = leased(manifest, ONE)
        for batch in manifest.receipts.pending_batches(lease):
            manifest.receipts.record(lease, simulated_receipt(plan, lease, batch))
        objects.asked.clear()
        assert undo_marked(plan, manifest, store, [BatchIndex(0)]) == [0]
    changes = [one for one in objects.asked if not one.startswith("list")]
    assert changes[0] == f"create {CLAIMS}/00000000-00000000/00000002.json"
    assert changes[1].startswith("create artifacts/requeued/")
    assert len(changes) == 2


def test_who_loses_every_claim_is_not_told_that_nothing_is_left(objects: Watched, plan: Plan) -> None:
    def be_quicker(key: str) -> None:
        parsed = VersionKey.parse(key)
        if parsed is not None:  # the rival claims, and gives back at once
            objects.write(key, version(plan, SliceState.LEASED, parsed.number))
            following = VersionKey(slice_id=parsed.slice_id, number=parsed.number + 1)
            objects.write(str(following), version(plan, SliceState.OPEN, parsed.number))

    with opened(objects, plan, ONE) as manifest:
        objects.before = be_quicker
        granted = manifest.leases.lease(ONE, POLICY)
    assert isinstance(granted, NoLease)
    assert granted.leased > 0


def test_who_blocks_the_last_slice_is_told_so(objects: Watched) -> None:
    plan = make_plan(backgrounds=1, foregrounds=1, grid=(2, 2), batch=8, slice_batches=1)
    key = VersionKey(slice_id=(ShardIndex(0), SliceIndex(0)), number=1)
    objects.create(str(key), version(plan, SliceState.LEASED, 1, deaths=POLICY.max_attempts - 1))
    with opened(objects, plan, ONE) as manifest:
        assert manifest.leases.lease(ONE, POLICY, gone=[RIVAL]) == NoLease(leased=0, blocked=1)


def record(manifest: BucketManifest, plan: Plan, lease: Lease) -> list[BatchIndex]:
    batches = manifest.receipts.pending_batches(lease)
    for batch in batches:
        manifest.receipts.record(lease, simulated_receipt(plan, lease, batch))
    return batches


@pytest.mark.parametrize("has_stopped", [False, True])
def test_a_slice_done_between_a_requeues_version_and_its_mark_is_made_whole(
    objects: Watched, *, has_stopped: bool
) -> None:
    plan = make_plan(backgrounds=1, foregrounds=1, grid=(4, 4), batch=8, slice_batches=2)  # one slice of two
    store, two = BucketStore(objects, "artifacts/"), WorkerId("two")
    with (
        opened(objects, plan, RIVAL) as theirs,
        opened(objects, plan, two) as late,
        opened(objects, plan, ONE) as manifest,
    ):
        first = leased(theirs, RIVAL)
        theirs.receipts.record(first, simulated_receipt(plan, first, BatchIndex(0)))
        theirs.workers.beat(RIVAL, WorkerReport(state=WorkerState.STOPPED))

        def meanwhile(key: str) -> None:
            if key.startswith("artifacts/requeued/"):
                objects.before = lambda _key: None
                assert record(late, plan, leased(late, two)) == [1]

        objects.before = meanwhile
        with BucketManifest(objects, plan, policy=POLICY) as operator:
            assert undo_marked(plan, operator, store, [BatchIndex(0)]) == [0]
        if has_stopped:
            late.workers.beat(two, WorkerReport(state=WorkerState.STOPPED))
            assert record(manifest, plan, leased(manifest, ONE)) == [0]
        else:
            assert manifest.leases.lease(ONE, POLICY) == NoLease(leased=1, blocked=0)
            assert record(late, plan, leased(late, two)) == [0]
        assert [one.record.batch for one in manifest.receipts.receipts()] == [0, 1]
        assert manifest.leases.lease(ONE, POLICY) == NoLease(leased=0, blocked=0)


def test_a_receipt_that_a_rebuild_has_created_is_the_makers_own(objects: Watched, plan: Plan) -> None:
    with opened(objects, plan, ONE) as manifest, opened(objects, plan, RIVAL) as rebuilding:
        lease = leased(manifest, ONE)
        receipt = simulated_receipt(plan, lease, BatchIndex(0))
        letter = DeadLetter(sample=SampleIndex(3), reason=DeadLetterReason.COMPOSE, detail="a traceback")
        receipt = replace(receipt, record=replace(receipt.record, dead_letters=(letter,)))
        lost = replace(receipt.record, dead_letters=(replace(letter, detail="no text is left"),))
        store = BucketStore(objects, "artifacts/")
        rebuilding.operator.restore([replace(receipt, record=lost)], store)
        assert not manifest.receipts.record(lease, receipt)
        other = replace(receipt, artifact=replace(receipt.artifact, sha256="f" * 64))
        with pytest.raises(ReceiptConflict):
            manifest.receipts.record(lease, other)

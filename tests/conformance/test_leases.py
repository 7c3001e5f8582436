from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shardgen.domain.identifiers import ShardIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import InvalidSettings, LeaseLost, ReceiptConflict
from shardgen.machine.processes import gone as processes_gone
from shardgen.machine.processes import host_id
from shardgen.manifest.port import Manifest
from tests.conformance.conftest import (
    POLICY,
    MovableClock,
    Place,
    finish,
    identity,
    in_a_bucket,
    receipt_for,
)

Take = Callable[..., Lease]


def test_slices_are_leased_from_the_lowest_up_and_nobody_gets_one_twice(
    manifest: Manifest, lease: Take
) -> None:
    granted = [lease(f"w{i}") for i in range(7)]
    assert [(entry.shard, entry.slice) for entry in granted] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    assert manifest.leases.lease(WorkerId("late"), POLICY) == NoLease(leased=7, blocked=0)


def test_a_released_slice_goes_before_a_new_one_under_a_higher_fence(manifest: Manifest, lease: Take) -> None:
    first, _ = lease("a"), lease("b")
    assert manifest.leases.release(first)
    again = lease("c")
    assert (again.shard, again.slice) == (0, 0)
    # In a bucket giving back has a number, too.
    assert again.fence - first.fence == (2 if in_a_bucket(manifest) else 1)


def test_a_lease_can_be_narrowed_to_a_shard(manifest: Manifest, lease: Take) -> None:
    assert lease("a", shard=ShardIndex(2)).shard == 2
    assert manifest.leases.lease(WorkerId("b"), POLICY, shard=ShardIndex(2)) == NoLease(leased=1, blocked=0)
    with pytest.raises(InvalidSettings, match="shards are 0 to 2"):
        manifest.leases.lease(WorkerId("b"), POLICY, shard=ShardIndex(3))


def test_an_expired_lease_is_taken_over_and_the_stale_worker_changes_nothing(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    stale = lease("zombie")
    clock.forward(120)
    fresh = lease("heir")
    assert (fresh.shard, fresh.slice, fresh.fence) == (stale.shard, stale.slice, stale.fence + 1)
    before = manifest.overview()
    with pytest.raises(LeaseLost):
        manifest.receipts.record(stale, receipt_for(plan, stale, manifest.receipts.pending_batches(fresh)[0]))
    with pytest.raises(LeaseLost):
        manifest.leases.renew(stale, POLICY)
    with pytest.raises(LeaseLost):
        manifest.receipts.pending_batches(stale)
    assert not manifest.leases.release(stale)
    assert manifest.overview() == before
    finish(manifest, plan, fresh)


def test_another_process_takes_over_any_slice_and_makes_only_what_is_left(
    manifest: Manifest, place: Place, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    lease("a")
    held = lease("b")
    first, *left = manifest.receipts.pending_batches(held)
    manifest.receipts.record(held, receipt_for(plan, held, first))
    with place.open(plan, clock=clock) as elsewhere:
        taken = elsewhere.leases.lease(WorkerId("c"), POLICY, gone=[WorkerId("b")])
        assert isinstance(taken, Lease)
        assert (taken.shard, taken.slice) == (held.shard, held.slice)
        assert elsewhere.receipts.pending_batches(taken) == left


def test_the_same_worker_under_an_older_fence_is_stale_too(
    manifest: Manifest, plan: Plan, lease: Take
) -> None:
    old = lease("a")
    manifest.leases.release(old)
    new = lease("a")
    with pytest.raises(LeaseLost):
        manifest.receipts.record(old, receipt_for(plan, old, manifest.receipts.pending_batches(new)[0]))


def test_an_expired_lease_that_nobody_took_still_counts(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    late = lease("late")
    clock.forward(10_000)
    batch = manifest.receipts.pending_batches(late)[0]
    manifest.receipts.record(late, receipt_for(plan, late, batch))
    manifest.leases.renew(late, POLICY)
    clock.forward(119)
    assert lease("other").slice == 1


def test_a_dead_process_of_this_host_frees_its_slice_before_the_lease_expires(
    manifest: Manifest, lease: Take
) -> None:
    manifest.workers.register(identity("dead"))
    held = lease("dead")
    assert lease("b").slice == 1
    assert lease("c", gone=[WorkerId("dead")]).slice == held.slice


def test_the_last_receipt_of_a_slice_ends_the_lease(manifest: Manifest, plan: Plan, lease: Take) -> None:
    held = lease("a")
    batches = manifest.receipts.pending_batches(held)
    ended = [manifest.receipts.record(held, receipt_for(plan, held, batch)) for batch in batches]
    assert ended == [False, False, True]
    assert manifest.overview().shards[0].slices.done == 1
    with pytest.raises(LeaseLost):
        manifest.leases.renew(held, POLICY)


def test_a_batch_cannot_be_recorded_twice(manifest: Manifest, plan: Plan, lease: Take) -> None:
    held = lease("a")
    receipt = receipt_for(plan, held, manifest.receipts.pending_batches(held)[0])
    manifest.receipts.record(held, receipt)
    with pytest.raises(ReceiptConflict):
        manifest.receipts.record(held, receipt)
    assert manifest.overview().stored == 8


def test_a_slice_is_blocked_after_too_many_deaths_without_progress(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    first = lease("w")
    clock.forward(121)
    second = lease("w")
    manifest.receipts.record(
        second, receipt_for(plan, second, manifest.receipts.pending_batches(second)[0])
    )  # progress: 0 again
    for _ in range(2):
        clock.forward(121)
        assert lease("w").slice == first.slice
    clock.forward(121)
    assert lease("w").slice == 1
    overview = manifest.overview()
    assert overview.shards[0].slices.blocked == 1
    assert "3 attempts in a row made no progress; the last: worker w" in overview.blocked[0].reason
    assert manifest.operator.unblock() == 1
    assert lease("x").slice == first.slice


def test_clean_releases_are_no_deaths(manifest: Manifest, lease: Take) -> None:
    for _ in range(10):
        held = lease("w")
        assert held.slice == 0
        manifest.leases.release(held)


def test_the_overview_says_which_node_a_worker_is_on(manifest: Manifest) -> None:
    hosts = {
        "a": "boot-1/pid:[4026531836]/gpu-1",
        "b": "boot-2/pid:[4026531836]/gpu-1",
        "c": "boot-3/pid/né/1",
    }
    for name, host in hosts.items():
        manifest.workers.register(identity(name, host=host))
    found = {row.identity.id: row.identity for row in manifest.overview().workers}
    assert {name: one.host for name, one in found.items()} == hosts
    assert {name: one.node for name, one in found.items()} == {"a": "gpu-1", "b": "gpu-1", "c": "né/1"}


@pytest.mark.parametrize("end", [WorkerState.STOPPED, WorkerState.HUNG, WorkerState.DEAD])
def test_the_end_of_a_worker_is_final(manifest: Manifest, clock: MovableClock, end: WorkerState) -> None:
    manifest.workers.register(identity("w"))
    if end is WorkerState.DEAD:
        manifest.leases.free_slices_of([WorkerId("w")], POLICY)
    else:
        manifest.workers.beat(WorkerId("w"), WorkerReport(state=end, note="as it ended"))
    before = manifest.overview().workers
    clock.forward(30)
    for late in (WorkerState.WORKING, WorkerState.WAITING, WorkerState.STOPPED):
        manifest.workers.beat(WorkerId("w"), WorkerReport(state=late, samples_done=8, progressed=True))
    assert manifest.overview().workers == before


def test_freeing_a_dead_workers_slices_counts_one_death_and_marks_it_dead(
    manifest: Manifest, lease: Take
) -> None:
    manifest.workers.register(identity("w"))
    lease("w")
    assert manifest.leases.free_slices_of([WorkerId("w")], POLICY) == 1
    assert manifest.leases.free_slices_of([WorkerId("w")], POLICY) == 0
    row = manifest.overview().workers[0]
    assert row.state is WorkerState.DEAD
    assert row.shard is None


def test_the_overview_tells_never_leased_open_leased_expired_and_done_apart(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    for name in ("a", "b", "c"):
        manifest.workers.register(identity(name))
    finish(manifest, plan, lease("a"))
    expired = lease("b")
    clock.forward(121)
    if not in_a_bucket(manifest):  # there a lease lasts as long as its holder shows life
        manifest.workers.beat(WorkerId("b"), WorkerReport(state=WorkerState.WORKING))
    slices = manifest.overview().shards[0].slices
    assert (slices.done, slices.expired, slices.leased, slices.never_leased) == (1, 1, 0, 1)
    manifest.workers.beat(WorkerId("c"), WorkerReport(state=WorkerState.WORKING))
    taken = lease("c")
    assert taken.slice == expired.slice
    slices = manifest.overview().shards[0].slices
    assert (slices.expired, slices.leased) == (0, 1)
    manifest.leases.release(taken)
    assert manifest.overview().shards[0].slices.open == 1


def test_a_hung_workers_slice_is_free_as_soon_as_its_process_has_ended(
    manifest: Manifest, lease: Take
) -> None:
    gone = replace(identity("hung"), host=host_id(), pid=2**22 + 1)
    manifest.workers.register(gone)
    held = lease("hung")
    manifest.workers.beat(gone.id, WorkerReport(state=WorkerState.HUNG))
    ended = processes_gone(manifest.workers.alive_on_host(host_id()))
    assert ended == ["hung"]
    assert lease("heir", gone=ended).slice == held.slice
    assert manifest.workers.alive_on_host(host_id()) == []

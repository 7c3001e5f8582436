from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shardgen.domain.identifiers import BatchIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.overview import LETTERS_SHOWN, SLICE_WORDS, Details, count_slices
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetterReason, Receipt
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.manifest.port import Manifest
from tests.conformance.conftest import (
    POLICY,
    MovableClock,
    finish,
    identity,
    in_a_bucket,
    receipt_for,
    undo,
)

Take = Callable[..., Lease]


def states(found: Details) -> dict[tuple[int, int], tuple[str, int, int, str]]:
    """Of each slice state, batches done, batches, holder."""
    return {
        (one.shard, one.slice): (one.state, one.batches_done, one.batches, one.worker) for one in found.slices
    }


def record(manifest: Manifest, plan: Plan, lease: Lease, *batches: int, **more: tuple[int, ...]) -> None:
    for batch in batches:
        manifest.receipts.record(lease, receipt_for(plan, lease, BatchIndex(batch), **more))


def test_of_a_run_that_nobody_has_begun_all_slices_are_untouched(manifest: Manifest, plan: Plan) -> None:
    found = manifest.details(newest=3)
    assert states(found) == {
        (shard, slice_): ("never_leased", 0, batches, "")
        for shard, sizes in enumerate([(3, 3, 1), (3, 3, 1), (3,)])
        for slice_, batches in enumerate(sizes)
    }
    assert replace(found, slices=()) == Details(
        slices=(), pace=(), last_stored_at=None, newest=(), dead_letters=()
    )


def test_each_slice_is_shown_in_its_state_with_its_holder(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    for worker in ("done", "returned", "blocked", "abandoned", "working"):
        manifest.workers.register(identity(worker, host=f"host-{worker}"))
    finish(manifest, plan, lease("done"))
    returned, blocked = lease("returned"), lease("blocked")
    record(manifest, plan, returned, 3)
    manifest.leases.block(blocked, "no room")
    abandoned = lease("abandoned")
    record(manifest, plan, abandoned, 7, 8)
    clock.forward(121)
    manifest.overview()  # in a bucket silence begins when it is first seen
    working = lease("working", shard=2)
    manifest.leases.release(returned)
    if in_a_bucket(manifest):  # there only the worker's own word tells, by a clock that nobody moves
        manifest.workers.beat(WorkerId("abandoned"), WorkerReport(state=WorkerState.DEAD))
        manifest.workers.beat(WorkerId("working"), WorkerReport(state=WorkerState.WORKING))
    found = manifest.details(newest=0)
    assert {place: one for place, one in states(found).items() if one[0] != "never_leased"} == {
        (0, 0): ("done", 3, 3, ""),
        (0, 1): ("open", 1, 3, ""),
        (0, 2): ("blocked", 0, 1, ""),
        (1, 0): ("expired", 2, 3, "abandoned"),
        (2, 0): ("leased", 0, 3, "working"),
    }
    assert working.slice == 0
    assert {one.state for one in found.slices} == set(SLICE_WORDS)
    assert count_slices(found.slices) == {one.shard: one.slices for one in manifest.overview().shards}

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import select, update

from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.overview import LETTERS_SHOWN, SLICE_WORDS, Details, count_slices
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetterReason, Receipt
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.manifest import manifest as databases
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.port import Manifest
from shardgen.manifest.tables import RECEIPT
from tests.conformance.conftest import (
    MovableClock,
    finish,
    identity,
    in_a_bucket,
    receipt_for,
    undo,
)
from tests.conformance.test_creation import in_database

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


def test_the_pace_counts_the_samples_of_each_minute_without_those_given_up(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    stored: Counter[datetime] = Counter()
    first, second = lease("w"), lease("w")
    for seconds, held, batch, dead in (
        (0, first, 0, 0),
        (59.999, first, 1, 1),
        (0.001, first, 2, 0),
        (3600, second, 3, 8),  # all
        (60, lease("w"), 6, 0),  # its shard's last batch, of two samples
    ):
        clock.forward(seconds)
        samples = plan.layout.batch_samples(BatchIndex(batch))
        record(manifest, plan, held, batch, dead=tuple(samples[:dead]))
        stored[clock.now.replace(second=0, microsecond=0)] += len(samples) - dead
    found = manifest.details(newest=0)
    assert dict(found.pace) == {minute: samples for minute, samples in stored.items() if samples}
    assert list(found.pace) == sorted(found.pace)
    assert found.last_stored_at == clock.now


def test_the_newest_receipts_are_those_recorded_last(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    one, other = lease("w", shard=1), lease("w", shard=0)
    recorded: list[Receipt] = []
    for held, batch in ((one, 8), (one, 7), (other, 2), (other, 0), (one, 9), (other, 1)):
        recorded.append(receipt_for(plan, held, BatchIndex(batch), dead=(16, 17) if batch == 2 else ()))
        clock.forward(1)
        manifest.receipts.record(held, recorded[-1])
    for newest in (0, 1, 4, 99):
        assert list(manifest.details(newest=newest).newest) == recorded[::-1][:newest]


def test_dead_letters_are_grouped_by_reason_with_the_first_ones_whole(
    manifest: Manifest, plan: Plan, lease: Take
) -> None:
    held = lease("w")
    reasons = [DeadLetterReason.COMPOSE] * 8 + [DeadLetterReason.ENCODE] * 2
    for batch, samples in ((1, range(8, 10)), (0, range(8))):
        receipt = receipt_for(plan, held, BatchIndex(batch), dead=tuple(samples))
        letters = [
            replace(one, reason=reasons[one.sample], detail=f"ValueError: {one.sample}\n  line 2")
            for one in receipt.record.dead_letters
        ]
        manifest.receipts.record(
            held, replace(receipt, record=replace(receipt.record, dead_letters=tuple(letters)))
        )
    compose, encode = manifest.details(newest=0).dead_letters
    assert (compose.reason, compose.count) == (DeadLetterReason.COMPOSE, 8)
    assert [one.sample for one in compose.first] == list(range(LETTERS_SHOWN))
    assert (encode.reason, encode.count) == (DeadLetterReason.ENCODE, 2)
    assert [(one.sample, one.detail) for one in encode.first] == [
        (8, "ValueError: 8\n  line 2"),
        (9, "ValueError: 9\n  line 2"),
    ]


def test_what_is_undone_counts_nowhere(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    held = lease("w")
    record(manifest, plan, held, 0, dead=(1,))
    record(manifest, plan, held, 1, 2)
    undo(manifest, plan, [BatchIndex(0), BatchIndex(2)])
    clock.forward(31)  # until a bucket is looked at again
    found = manifest.details(newest=9)
    assert states(found)[0, 0] == ("open", 1, 3, "")
    assert [one.record.batch for one in found.newest] == [1]
    assert sum(samples for _, samples in found.pace) == 8
    assert found.dead_letters == ()


def test_receipts_of_unknown_age_are_in_no_minute_and_the_newest_when_there_are_no_others(
    database: DatabaseUrl, manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    finish(manifest, plan, lease("w"))
    in_database(database, lambda connection: connection.execute(update(RECEIPT).values(recorded_at=None)))
    found = manifest.details(newest=2)
    assert (found.pace, found.last_stored_at) == ((), None)
    assert [one.record.batch for one in found.newest] == [2, 1]
    clock.forward(90)
    record(manifest, plan, lease("w", shard=1), 9, 7)
    found = manifest.details(newest=4)
    assert (found.pace, found.last_stored_at) == (((clock.now - timedelta(seconds=30), 16),), clock.now)
    assert [one.record.batch for one in found.newest] == [9, 7, 2, 1]


def test_what_others_have_made_is_of_unknown_age(
    manifest: databases.Manifest, database: DatabaseUrl, plan: Plan, lease: Take
) -> None:
    theirs = lease("elsewhere")
    manifest.leases.release(theirs)
    assert manifest.index.adopt([receipt_for(plan, theirs, BatchIndex(0))]) == {0}
    ages = select(RECEIPT.c.recorded_at)
    assert in_database(database, lambda connection: connection.execute(ages).scalars().all()) == [None]
    assert [one.record.batch for one in manifest.details(newest=1).newest] == [0]

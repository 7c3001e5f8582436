from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from sqlalchemy import event

from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import LeaseLost, ManifestBusy
from shardgen.manifest import manifest as databases
from shardgen.manifest import receipts as module
from shardgen.manifest.operator import Marks
from shardgen.manifest.port import Manifest
from tests.conformance.conftest import (
    POLICY,
    MovableClock,
    Place,
    finish,
    identity,
    in_a_bucket,
    receipt_for,
    undo,
)

Take = Callable[..., Lease]


def _make_all(manifest: Manifest, plan: Plan) -> None:
    while not isinstance(lease := manifest.leases.lease(WorkerId("w"), POLICY), NoLease):
        finish(manifest, plan, lease)


def test_receipts_come_back_as_they_were_recorded_in_batch_order_over_many_pages(
    manifest: Manifest, plan: Plan, lease: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    for name in ("a", "b"):
        held = lease(name)
        for batch in manifest.receipts.pending_batches(held):
            receipt = receipt_for(plan, held, batch, dead=(batch * 8 + 1,) if batch == 4 else ())
            manifest.receipts.record(held, receipt)
            recorded.append(receipt)
    monkeypatch.setattr(module, "_PAGE", 2)
    assert list(manifest.receipts.receipts()) == recorded
    assert [letter.sample for letter in manifest.receipts.dead_letters()] == [33]


def test_counters_add_up_to_the_plan(manifest: Manifest, plan: Plan, lease: Take) -> None:
    for name in ("a", "w"):
        manifest.workers.register(identity(name))
    held = lease("a")
    manifest.receipts.record(held, receipt_for(plan, held, BatchIndex(0), dead=(3, 5)))
    manifest.leases.release(held)
    _make_all(manifest, plan)
    for name in ("a", "w"):  # in a bucket a sign of life says what was made how
        manifest.workers.beat(WorkerId(name), WorkerReport(state=WorkerState.WORKING, progressed=True))
    overview = manifest.overview()
    assert (overview.stored, overview.dead) == (118, 2)
    assert overview.stored + overview.dead == plan.samples
    assert sum(count for _, count in overview.mixture) == plan.layout.batch_count


def test_undone_receipts_are_made_again_under_a_fence_above_their_mark(
    manifest: Manifest, plan: Plan
) -> None:
    _make_all(manifest, plan)
    undo(manifest, plan, [BatchIndex(16)])
    _make_all(manifest, plan)
    before = {receipt.record.batch: receipt.fence for receipt in manifest.receipts.receipts()}
    batches = [BatchIndex(1), BatchIndex(2), BatchIndex(16)]
    undone, marks = undo(manifest, plan, batches)
    assert undone == 3
    # Fences are per slice, so the marks are too; in a bucket they are above the versions that undo.
    assert marks == ({2: [1, 2], 4: [16]} if in_a_bucket(manifest) else {1: [1, 2], 2: [16]})
    assert manifest.overview().stored == 120 - 8 - 8 - 4
    assert manifest.receipts.recorded_among(batches) == []
    _make_all(manifest, plan)
    after = {receipt.record.batch: receipt.fence for receipt in manifest.receipts.receipts()}
    assert {batch for batch in after if after[batch] > before[batch]} == set(batches)
    for fence, marked in marks.items():
        assert all(after[batch] > fence for batch in marked)
    assert manifest.overview().stored == 120


def test_another_process_undoes_what_was_made_again(
    manifest: Manifest, place: Place, plan: Plan, clock: MovableClock
) -> None:
    _make_all(manifest, plan)
    undo(manifest, plan, [BatchIndex(1), BatchIndex(16)])
    _make_all(manifest, plan)
    with place.open(plan, clock=clock) as elsewhere:
        assert undo(elsewhere, plan, [BatchIndex(0)])[0] == 1
        assert elsewhere.overview().stored == 112
        _make_all(elsewhere, plan)
    assert undo(manifest, plan, [BatchIndex(0)])[0] == 1


def test_a_live_lease_forbids_undoing_and_leaves_no_mark(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    held = lease("a")
    manifest.receipts.record(held, receipt_for(plan, held, BatchIndex(0)))
    marks: list[Marks] = []
    with pytest.raises(ManifestBusy, match="worker a"):
        manifest.operator.undo_receipts([BatchIndex(0)], mark=marks.append)
    assert marks == []
    assert manifest.overview().stored == 8


def test_undoing_takes_the_slice_from_an_expired_holder(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    held = lease("a")
    manifest.receipts.record(held, receipt_for(plan, held, BatchIndex(0)))
    clock.forward(121)
    assert undo(manifest, plan, [BatchIndex(0)])[0] == 1
    with pytest.raises(LeaseLost):
        manifest.receipts.record(held, receipt_for(plan, held, BatchIndex(1)))
    again = lease("b")
    assert (again.slice, manifest.receipts.pending_batches(again)) == (0, [0, 1, 2])


def test_a_mark_that_cannot_be_written_changes_nothing(manifest: Manifest, plan: Plan) -> None:
    _make_all(manifest, plan)

    def fail(_marks: Marks) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        manifest.operator.undo_receipts([BatchIndex(0)], mark=fail)
    assert manifest.overview().stored == 120


@pytest.mark.usefixtures("database")
def test_every_shard_is_locked_before_any_provenance(manifest: Manifest, plan: Plan) -> None:
    """All workers change the same few rows of provenance: in two orders a server's workers get stuck."""
    changed: list[str] = []

    def note(*arguments: object) -> None:
        found = re.match(r"(?:UPDATE|INSERT INTO) (shard|provenance)\b", str(arguments[2]))
        changed.extend(found.groups() if found else ())

    assert isinstance(manifest, databases.Manifest)
    event.listen(manifest._session.database.engine, "before_cursor_execute", note)
    event.listen(manifest._session.database.engine, "commit", lambda _connection: changed.append(";"))
    _make_all(manifest, plan)
    undo(manifest, plan, [BatchIndex(0), BatchIndex(1), BatchIndex(16)])
    transactions = " ".join(changed).split(";")
    assert sum("provenance" in one for one in transactions) == plan.layout.batch_count + 1
    assert [one for one in transactions if re.search("provenance .*shard", one)] == []

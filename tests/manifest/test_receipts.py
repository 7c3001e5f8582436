from __future__ import annotations

from collections.abc import Callable

import pytest

from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.manifest import manifest as module
from shardgen.manifest.leases import NoLease
from shardgen.manifest.manifest import Manifest
from tests.manifest.conftest import POLICY, MovableClock, finish, receipt_for

Take = Callable[..., Lease]


def _make_all(manifest: Manifest, plan: Plan) -> None:
    while not isinstance(lease := manifest.lease(WorkerId("w"), POLICY), NoLease):
        finish(manifest, plan, lease)


def test_receipts_come_back_as_they_were_recorded_in_batch_order_over_many_pages(
    manifest: Manifest, plan: Plan, lease: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    for name in ("a", "b"):
        held = lease(name)
        for batch in manifest.pending_batches(held):
            receipt = receipt_for(plan, held, batch, dead=(batch * 8 + 1,) if batch == 4 else ())
            manifest.record(held, receipt)
            recorded.append(receipt)
    monkeypatch.setattr(module, "_PAGE", 2)
    assert list(manifest.receipts()) == recorded
    assert [letter.sample for letter in manifest.dead_letters()] == [33]


def test_counters_add_up_to_the_plan(manifest: Manifest, plan: Plan, lease: Take) -> None:
    held = lease("a")
    manifest.record(held, receipt_for(plan, held, BatchIndex(0), dead=(3, 5)))
    manifest.release(held)
    _make_all(manifest, plan)
    overview = manifest.overview()
    assert (overview.stored, overview.dead) == (118, 2)
    assert overview.stored + overview.dead == plan.samples
    assert sum(count for _, count in overview.mixture) == plan.layout.batch_count


def test_undone_receipts_are_made_again_under_a_higher_fence(manifest: Manifest, plan: Plan) -> None:
    _make_all(manifest, plan)
    before = {receipt.record.batch: receipt.fence for receipt in manifest.receipts()}
    batches = [BatchIndex(1), BatchIndex(2), BatchIndex(16)]
    assert manifest.fence_over(batches) == 1
    assert manifest.undo_receipts(batches) == 3
    assert manifest.overview().stored == 120 - 8 - 8 - 4
    assert manifest.recorded_among(batches) == []
    _make_all(manifest, plan)
    after = {receipt.record.batch: receipt.fence for receipt in manifest.receipts()}
    assert {batch for batch in after if after[batch] > before[batch]} == set(batches)
    assert manifest.overview().stored == 120


def test_a_live_lease_forbids_undoing_its_slices_receipts(
    manifest: Manifest, plan: Plan, lease: Take, clock: MovableClock
) -> None:
    held = lease("a")
    manifest.record(held, receipt_for(plan, held, BatchIndex(0)))
    assert manifest.undo_receipts([BatchIndex(0)]) is None
    assert manifest.live_holder([BatchIndex(0)]) == (0, 0, "a")
    clock.forward(121)
    assert manifest.undo_receipts([BatchIndex(0)]) == 1

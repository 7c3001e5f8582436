"""Nothing is leased while too many of the finished samples are dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.errors import TooManyDead
from shardgen.manifest.port import Manifest
from tests.conformance.conftest import POLICY, Place, receipt_for, undo
from tests.plans import make_plan


@pytest.fixture
def plan() -> Plan:
    # 960 samples: two shards, slices of 4 batches, batches of 32.
    return make_plan(grid=(16, 10), shard_size=640, slice_batches=4)


@pytest.fixture
def manifest(place: Place, plan: Plan) -> Iterator[Manifest]:
    assert place.create(plan)
    with place.open(plan) as opened:
        yield opened


def _make(manifest: Manifest, plan: Plan, lease: Lease, *, dead: int) -> None:
    """The whole slice, with so many dead letters in each batch."""
    for batch in manifest.receipts.pending_batches(lease):
        lost = tuple(plan.layout.batch_samples(batch))[:dead]
        manifest.receipts.record(lease, receipt_for(plan, lease, batch, dead=lost))


def _lease(manifest: Manifest, limit: float) -> Lease | NoLease:
    return manifest.leases.lease(WorkerId("w"), replace(POLICY, max_dead_share=limit))


def test_a_grant_is_refused_past_the_share_once_640_samples_are_finished(
    manifest: Manifest, plan: Plan
) -> None:
    for _ in range(5):  # the fifth is asked for at 512 finished samples
        granted = _lease(manifest, 10)
        assert isinstance(granted, Lease)
        _make(manifest, plan, granted, dead=8)
    before = manifest.overview()
    with pytest.raises(TooManyDead, match=r"160 of 640 finished samples are dead letters: 25.0 %") as refused:
        _lease(manifest, 24.9)
    assert "max_dead_share = 24.9: compose 160 times, such as sample 0 (Traceback …)" in str(refused.value)
    assert "shardgen dead-letters RUN_DIR" in refused.value.hint
    assert refused.value.exit_code == 15
    assert manifest.overview().shards == before.shards  # nothing was leased on the way
    at_the_limit = _lease(manifest, 25)
    assert isinstance(at_the_limit, Lease)
    manifest.leases.release(at_the_limit)
    with pytest.raises(TooManyDead):
        _lease(manifest, 0)
    undo(manifest, plan, manifest.receipts.batches_with_dead_letters())
    assert isinstance(_lease(manifest, 0), Lease)  # as after requeue --dead-letters


def test_by_default_no_share_is_too_many_and_the_end_is_no_grant(manifest: Manifest, plan: Plan) -> None:
    while isinstance(granted := _lease(manifest, POLICY.max_dead_share), Lease):
        _make(manifest, plan, granted, dead=32)
    assert manifest.overview().dead == plan.samples
    assert _lease(manifest, 1) == NoLease(leased=0, blocked=0)

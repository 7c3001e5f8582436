from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shardgen.domain.identifiers import BatchIndex, SampleIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.suspicion import SuspectState
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import LeaseLost
from shardgen.manifest.port import Manifest
from tests.conformance.conftest import POLICY, identity, in_a_bucket, receipt_for

Take = Callable[..., Lease]
PATIENT = replace(POLICY, max_attempts=6)
BATCH, SAMPLE = BatchIndex(1), SampleIndex(9)


def die(manifest: Manifest, lease: Lease) -> Lease:
    """The holder's process ends; another of its host takes over."""
    heir = WorkerId(f"{lease.worker}+")
    granted = manifest.leases.lease(heir, PATIENT, gone=[lease.worker])
    assert not isinstance(granted, NoLease)
    return granted


def test_a_death_without_a_note_makes_the_slice_suspect_but_no_batch(manifest: Manifest, lease: Take) -> None:
    found = manifest.suspicion.read(die(manifest, lease("w")))
    assert (found.deaths, found.batch, found.samples) == (1, None, {})


def test_a_death_falls_on_the_noted_batch_and_sample(manifest: Manifest, lease: Take) -> None:
    first = lease("w")
    manifest.suspicion.note_batch(first, BATCH)
    second = die(manifest, first)
    assert manifest.suspicion.read(second).batch == BATCH
    manifest.suspicion.note_batch(second, BATCH)
    manifest.suspicion.note_sample(second, SAMPLE)
    found = manifest.suspicion.read(die(manifest, second))
    assert found.deaths == 2
    one = found.samples[SAMPLE]
    assert (one.deaths, one.state, one.reason) == (1, SuspectState.SUSPECT, DeadLetterReason.KILLED_PROCESS)
    assert second.worker in one.detail


@pytest.mark.parametrize("ending", ["hung", "expired-here", "expired-elsewhere"])
def test_a_hang_is_told_from_a_kill(
    manifest: Manifest, lease: Take, clock: Callable[[], object], ending: str
) -> None:
    manifest.workers.register(identity("w", host="elsewhere" if ending == "expired-elsewhere" else "host-a"))
    manifest.workers.register(identity("heir", pid=2))
    first = lease("w")
    manifest.suspicion.note_sample(first, SAMPLE)
    gone = []
    if ending == "hung":
        manifest.workers.beat(
            WorkerId("w"), WorkerReport(state=WorkerState.HUNG, note="quiet\nthread main: …")
        )
        gone = [WorkerId("w")]
    clock.forward(121)  # type: ignore[attr-defined]
    heir = manifest.leases.lease(WorkerId("heir"), POLICY, gone=gone)
    assert isinstance(heir, Lease)
    one = manifest.suspicion.read(heir).samples[SAMPLE]
    expected = DeadLetterReason.KILLED_PROCESS if ending == "expired-elsewhere" else DeadLetterReason.HUNG
    assert one.reason is expected
    assert ("thread main" in one.detail) == (ending == "hung")


def test_a_release_is_no_death_and_leaves_no_note(manifest: Manifest, lease: Take) -> None:
    first = lease("w")
    manifest.suspicion.note_batch(first, BATCH)
    manifest.suspicion.note_sample(first, SAMPLE)
    manifest.leases.release(first)
    second = lease("w")
    assert not manifest.suspicion.read(second).is_suspect
    assert manifest.suspicion.read(die(manifest, second)).batch is None


def test_three_lone_deaths_and_a_pass_of_another_give_a_sample_up(manifest: Manifest, lease: Take) -> None:
    held = lease("w")
    for deaths in (1, 2):
        manifest.suspicion.note_sample(held, SAMPLE)
        held = die(manifest, held)
        assert manifest.suspicion.read(held).samples[SAMPLE].deaths == deaths
    manifest.suspicion.note_sample(held, SampleIndex(8))
    assert manifest.suspicion.note_pass(held, SampleIndex(8), made=True) == []
    assert manifest.suspicion.read(held).deaths == 0, "a newly noted pass is progress"
    manifest.suspicion.note_sample(held, SampleIndex(8))
    manifest.suspicion.note_sample(held, SAMPLE)
    held = die(manifest, held)
    assert manifest.suspicion.read(held).condemned_in(range(8, 16)) == [SAMPLE]
    manifest.suspicion.note_sample(held, SampleIndex(8))
    assert manifest.suspicion.note_pass(held, SampleIndex(8), made=False) == [], (
        "it never reached the network"
    )
    manifest.suspicion.note_sample(held, SampleIndex(8))
    assert manifest.suspicion.note_pass(held, SampleIndex(8), made=True) == [SAMPLE]
    found = manifest.suspicion.read(held)
    assert found.deaths == 0, "a sample given up is progress"
    assert found.samples[SAMPLE].state is SuspectState.DEAD


@pytest.mark.parametrize("between", ["pass", "death elsewhere", "death of another sample"])
def test_deaths_count_only_in_a_row(manifest: Manifest, lease: Take, between: str) -> None:
    held = lease("w")
    for _ in range(2):
        manifest.suspicion.note_sample(held, SAMPLE)
        held = die(manifest, held)
    if between == "pass":
        manifest.suspicion.note_sample(held, SAMPLE)
        manifest.suspicion.note_pass(held, SAMPLE, made=True)
    elif between == "death elsewhere":
        held = die(manifest, held)
    else:
        manifest.suspicion.note_sample(held, SampleIndex(10))
        held = die(manifest, held)
    assert manifest.suspicion.read(held).samples[SAMPLE].deaths == 0


def test_a_pass_that_is_noted_again_is_no_progress(manifest: Manifest, lease: Take) -> None:
    held = lease("w")
    manifest.suspicion.note_sample(held, SAMPLE)
    manifest.suspicion.note_pass(held, SAMPLE, made=True)
    held = die(manifest, held)
    manifest.suspicion.note_sample(held, SAMPLE)
    manifest.suspicion.note_pass(held, SAMPLE, made=True)
    assert manifest.suspicion.read(held).deaths == 1


def test_a_receipt_ends_the_suspicion_of_its_batch_only(manifest: Manifest, plan: Plan, lease: Take) -> None:
    first = lease("w")
    manifest.suspicion.note_batch(first, BATCH)
    held = die(manifest, first)
    manifest.suspicion.note_sample(held, SAMPLE)
    manifest.suspicion.note_pass(held, SAMPLE, made=True)
    manifest.receipts.record(held, receipt_for(plan, held, BatchIndex(0)))
    found = manifest.suspicion.read(held)
    assert (found.deaths, found.batch, list(found.samples)) == (0, BATCH, [SAMPLE])
    manifest.receipts.record(held, receipt_for(plan, held, BATCH))
    assert not manifest.suspicion.read(held).is_suspect
    assert manifest.suspicion.read(held).samples == {}


def test_the_death_that_condemns_a_sample_explains_those_before_it(manifest: Manifest, lease: Take) -> None:
    held = die(manifest, lease("w"))
    manifest.suspicion.note_batch(held, BATCH)
    held = die(manifest, held)
    for _ in range(3):
        assert manifest.suspicion.read(held).deaths < 5
        manifest.suspicion.note_batch(held, BATCH)
        manifest.suspicion.note_sample(held, SAMPLE)
        held = die(manifest, held)
    assert manifest.suspicion.read(held).deaths == 1


def test_what_could_not_release_its_slice_for_trouble_with_the_machine_did_not_die(
    manifest: Manifest, lease: Take
) -> None:
    held = lease("w")
    manifest.suspicion.note_batch(held, BATCH)
    manifest.suspicion.note_sample(held, SAMPLE)
    assert manifest.leases.free_slices_of([held.worker], PATIENT, innocent=[held.worker]) == 1
    again = lease("x")
    assert again.fence - held.fence == (2 if in_a_bucket(manifest) else 1)
    assert not manifest.suspicion.read(again).is_suspect
    assert manifest.suspicion.read(again).samples[SAMPLE].deaths == 0


def test_a_sample_of_another_slice_may_be_the_control_of_two(manifest: Manifest, lease: Take) -> None:
    first, second = lease("w"), lease("v")
    for held in (first, second):
        manifest.suspicion.note_sample(held, SampleIndex(119))
        manifest.suspicion.note_pass(held, SampleIndex(119), made=True)
    manifest.suspicion.note_sample(first, SampleIndex(119))
    heir = die(manifest, first)
    assert manifest.suspicion.read(heir).samples[SampleIndex(119)].deaths == 1
    assert manifest.suspicion.read(second).samples[SampleIndex(119)].deaths == 0


def test_dead_letters_of_the_slice_are_known(manifest: Manifest, plan: Plan, lease: Take) -> None:
    held = lease("w")
    manifest.receipts.record(held, receipt_for(plan, held, BATCH, dead=(9, 12)))
    assert manifest.suspicion.read(held).dead_letters == {9, 12}


def test_notes_of_a_worker_that_lost_its_slice_change_nothing(manifest: Manifest, lease: Take) -> None:
    stale = lease("w")
    fresh = die(manifest, stale)
    for note in (
        lambda: manifest.suspicion.note_batch(stale, BATCH),
        lambda: manifest.suspicion.note_sample(stale, SAMPLE),
        lambda: manifest.suspicion.note_pass(stale, SAMPLE, made=True),
        lambda: manifest.suspicion.read(stale),
        lambda: manifest.leases.block(stale, "…"),
        lambda: manifest.leases.fail(stale, "…", POLICY),
    ):
        with pytest.raises(LeaseLost):
            note()
    found = manifest.suspicion.read(fresh)
    assert (found.deaths, found.batch, found.samples) == (1, None, {})


def test_a_slice_that_fails_too_often_is_blocked_with_its_reason_until_it_is_requeued(
    manifest: Manifest, lease: Take
) -> None:
    assert [manifest.leases.fail(lease(f"w{n}"), f"try {n}", POLICY) for n in range(3)] == [
        False,
        False,
        True,
    ]
    overview = manifest.overview()
    assert overview.shards[0].slices.blocked == 1
    assert overview.blocked[0].reason == "3 attempts in a row made no progress; the last: try 2"
    manifest.operator.unblock()
    assert manifest.suspicion.read(lease("w")).deaths == 0


def test_a_blocked_slice_starts_afresh_after_a_requeue(manifest: Manifest, lease: Take) -> None:
    held = lease("w")
    manifest.suspicion.note_batch(held, BATCH)
    manifest.suspicion.note_sample(held, SAMPLE)
    held = die(manifest, held)
    manifest.leases.block(held, "nothing explains it")
    overview = manifest.overview()
    assert (overview.shards[0].slices.blocked, overview.blocked[0].reason) == (1, "nothing explains it")
    assert manifest.operator.unblock() == 1
    found = manifest.suspicion.read(lease("w"))
    assert (found.deaths, found.batch, found.samples) == (0, None, {})

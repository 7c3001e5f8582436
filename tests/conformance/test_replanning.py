from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, func, insert, select, text

from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan, Shards
from shardgen.errors import LeaseLost, ManifestBusy, ManifestMismatch, PlanConflict
from shardgen.manifest import leases, receipts, replanning, schema
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest, read_stored_plan
from shardgen.manifest.replanning import replace_plan
from shardgen.manifest.schema import StoredPlan
from shardgen.manifest.session import Session
from shardgen.manifest.tables import EARLIER_PLAN, MICRO_BATCH, RUN, SHARD, SLICE
from tests.conformance.conftest import POLICY, MovableClock, finish, identity, receipt_for
from tests.conformance.test_creation import in_database
from tests.plans import changed

EXPIRED_SECONDS = 1_000.0
Take = Callable[..., Lease]


@pytest.fixture
def other(plan: Plan) -> Plan:
    """The same samples in shards of 30: another plan, and another number of shards."""
    return changed(plan, shards=Shards(size=30, slice_batches=2, batch=8))


@pytest.fixture
def grown(plan: Plan) -> Plan:
    """The plan and a block of 60 samples more: two shards."""
    return replace(plan, blocks=(*plan.blocks, replace(plan.blocks[0], samples=60)))


def stored(database: DatabaseUrl) -> StoredPlan:
    found = read_stored_plan(database)
    assert found is not None
    return found


def test_another_plan_takes_the_place_of_one_of_which_nothing_is_made(
    database: DatabaseUrl, manifest: Manifest, plan: Plan, other: Plan, clock: MovableClock, lease: Take
) -> None:
    manifest.workers.register(identity("w"))
    manifest.micro_batches.agreed("gpu", 4)
    for _ in range(3):
        given = lease("w")
        manifest.leases.release(given)
    zombie = lease("w")
    clock.forward(EXPIRED_SECONDS)
    replace_plan(database, plan.fingerprint, other, clock=clock)
    assert stored(database) == StoredPlan(
        fingerprint=other.fingerprint,
        text=other.canonical_json.decode(),
        earlier=frozenset({plan.fingerprint}),
        has_receipts=False,
    )
    with pytest.raises(LeaseLost):
        manifest.receipts.record(zombie, receipt_for(plan, zombie, BatchIndex(0)))
    with pytest.raises(LeaseLost):
        manifest.leases.renew(zombie, POLICY)
    refused = (
        lambda: lease("w"),
        manifest.operator.mend,
        lambda: manifest.micro_batches.agreed("cpu", 8),
        lambda: Manifest(database, plan),
        lambda: create_manifest(database, plan),
    )
    for use in refused:
        with pytest.raises(PlanConflict, match="the plan changed") as caught:
            use()
        assert "start it again" in caught.value.hint

    def left(connection: Connection) -> tuple[int, ...]:
        tables = (SLICE, MICRO_BATCH, SHARD)
        counts = [connection.execute(select(func.count()).select_from(one)).scalar_one() for one in tables]
        return tuple(counts)

    assert in_database(database, left) == (0, 0, 4)
    with Manifest(database, other, clock=clock) as anew:
        overview = anew.overview()
        assert [shard.slices.never_leased for shard in overview.shards] == [2, 2, 2, 2]
        assert [(row.shard, row.slice) for row in overview.workers] == [(None, None)]
        granted = anew.leases.lease(WorkerId("w"), POLICY)
        assert isinstance(granted, Lease)
        assert granted.fence > zombie.fence
        with pytest.raises(LeaseLost):  # the same worker, slice and batch, under the fence of the other plan
            manifest.receipts.record(zombie, receipt_for(plan, zombie, BatchIndex(0)))
        finish(anew, other, granted)
        anew.operator.refuse_contradictions()


def test_what_is_undone_by_planning_back_leaves_no_trace_but_fences(
    database: DatabaseUrl, manifest: Manifest, plan: Plan, other: Plan, clock: MovableClock, lease: Take
) -> None:
    first = lease("w")
    clock.forward(EXPIRED_SECONDS)
    replace_plan(database, plan.fingerprint, other, clock=clock)
    replace_plan(database, other.fingerprint, plan, clock=clock)
    found = stored(database)
    assert (found.fingerprint, found.earlier) == (plan.fingerprint, frozenset({other.fingerprint}))
    second = lease("w")
    assert (second.shard, second.slice) == (first.shard, first.slice)
    assert second.fence > first.fence
    with pytest.raises(LeaseLost):
        manifest.receipts.record(first, receipt_for(plan, first, BatchIndex(0)))


def test_receipts_a_live_lease_and_another_plan_refuse_it_and_nothing_changes(
    database: DatabaseUrl, manifest: Manifest, plan: Plan, other: Plan, clock: MovableClock, lease: Take
) -> None:
    before = stored(database)
    with pytest.raises(PlanConflict, match="the plan changed"):
        replace_plan(database, other.fingerprint, other, clock=clock)
    given = lease("anna")
    with pytest.raises(ManifestBusy, match="shard 0 slice 0: worker anna") as caught:
        replace_plan(database, plan.fingerprint, other, clock=clock)
    assert "stop that worker" in caught.value.hint
    assert stored(database) == before
    manifest.receipts.record(given, receipt_for(plan, given, BatchIndex(0)))
    manifest.leases.release(given)
    with pytest.raises(PlanConflict, match="samples were stored"):
        replace_plan(database, plan.fingerprint, other, clock=clock)
    assert stored(database) == replace(before, has_receipts=True)
    manifest.operator.refuse_contradictions()
    assert manifest.overview().stored == 8


def test_a_plan_that_grows_keeps_what_is_made_and_who_is_late(
    database: DatabaseUrl, manifest: Manifest, plan: Plan, grown: Plan, clock: MovableClock, lease: Take
) -> None:
    finish(manifest, plan, lease("w"))
    late = lease("late")
    with pytest.raises(ManifestBusy, match="worker late"):
        replace_plan(database, plan.fingerprint, grown, grows=True, clock=clock)
    clock.forward(EXPIRED_SECONDS)
    replace_plan(database, plan.fingerprint, grown, grows=True, clock=clock)
    assert stored(database).earlier == {plan.fingerprint}
    with pytest.raises(PlanConflict, match="the plan changed"):
        lease("w")
    with pytest.raises(PlanConflict, match="the plan changed"):
        manifest.operator.mend()  # it would take the new shards for strays
    batch = manifest.receipts.pending_batches(late)[0]
    manifest.receipts.record(late, receipt_for(plan, late, batch))  # its batch is the same in both plans
    with Manifest(database, grown, clock=clock) as opened:
        opened.operator.refuse_contradictions()
        assert [shard.stored for shard in opened.overview().shards] == [32, 0, 0, 0, 0]
        assert opened.operator.mend() == 0
        while isinstance(given := opened.leases.lease(WorkerId("w"), POLICY), Lease):
            assert given.fence > late.fence or given.shard == 0
            finish(opened, grown, given)
        assert isinstance(given, NoLease)
        assert opened.overview().stored == grown.samples == 180
        opened.operator.refuse_contradictions()


def test_the_highest_fence_of_all_is_the_floor_also_when_the_rows_have_lower_ones(
    database: DatabaseUrl, manifest: Manifest, plan: Plan, other: Plan, grown: Plan, clock: MovableClock
) -> None:
    def floor(connection: Connection) -> int:
        return int(connection.execute(select(RUN.c.fence_floor)).scalar_one())

    for _ in range(3):
        given = manifest.leases.lease(WorkerId("w"), POLICY)
        assert isinstance(given, Lease)
        manifest.leases.release(given)
    replace_plan(database, plan.fingerprint, grown, grows=True, clock=clock)
    assert in_database(database, floor) == 3
    replace_plan(database, grown.fingerprint, other, clock=clock)
    assert in_database(database, floor) == 3
    replace_plan(database, other.fingerprint, plan, clock=clock)  # no slice was leased in between
    assert in_database(database, floor) == 3


@pytest.mark.parametrize("before", ["2_0001", "2_0002"])
def test_a_manifest_of_an_earlier_revision_is_upgraded_on_the_way(
    database: DatabaseUrl, plan: Plan, other: Plan, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    create_at(before, database, plan, monkeypatch)
    revision = text("SELECT version_num FROM alembic_version")
    assert in_database(database, lambda c: c.execute(revision).scalar_one()) == before
    assert stored(database).earlier == frozenset()
    replace_plan(database, plan.fingerprint, other)
    assert in_database(database, lambda c: c.execute(revision).scalar_one()) == schema.REVISION
    assert stored(database).earlier == {plan.fingerprint}


def test_what_an_earlier_revision_knows_of_earlier_plans_is_known_before_it_is_upgraded(
    database: DatabaseUrl, plan: Plan, other: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_at("2_0002", database, plan, monkeypatch)
    earlier = insert(EARLIER_PLAN).values(fingerprint=other.fingerprint)
    in_database(database, lambda connection: connection.execute(earlier))
    assert stored(database).earlier == {other.fingerprint}


def test_a_manifest_of_an_earlier_revision_is_not_read_until_it_is_upgraded(
    database: DatabaseUrl, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_at("2_0002", database, plan, monkeypatch)
    with pytest.raises(ManifestMismatch, match="revision 2_0002") as caught:
        Manifest(database, plan, read_only=True)
    assert caught.value.hint == "shardgen plan RUN_DIR upgrades it"
    assert not create_manifest(database, plan)
    with Manifest(database, plan, read_only=True) as opened:
        assert opened.overview().stored == 0
        assert opened.details(newest=1).pace == ()


def create_at(revision: str, database: DatabaseUrl, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a version of the program made it whose newest revision this was."""

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(schema.migrations_folder()))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    with monkeypatch.context() as patched:
        patched.setattr(schema, "_upgrade", upgrade)
        create_manifest(database, plan)


class Waiting:
    """Lets one transaction wait in its middle until the other is seen to wait for it, or has passed it."""

    def __init__(self, database: DatabaseUrl) -> None:
        self._database = database
        self.is_inside = threading.Event()
        self.others_turn_over = threading.Event()

    def until_the_other_waits(self) -> None:
        self.is_inside.set()
        deadline = time.monotonic() + 20
        while not self.others_turn_over.is_set() and not self._somebody_waits():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _somebody_waits(self) -> bool:
        if not self._database.url.startswith("postgresql"):
            self.others_turn_over.wait(0.2)  # BEGIN IMMEDIATE lets nobody in, and nobody sees who waits
            return True
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(in_database(self._database, lambda c: c.execute(waits).scalar_one()))


def test_a_grant_that_comes_while_the_plan_is_replaced_is_refused(
    database: DatabaseUrl,
    manifest: Manifest,
    plan: Plan,
    other: Plan,
    clock: MovableClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, hold, forget = Waiting(database), Session.hold_plan, replanning._forget_what_was_begun

    def held(session: Session, connection: Connection) -> None:
        hold(session, connection)
        waiting.others_turn_over.set()  # by now the answer should be that the plan is another

    def forgetting(connection: Connection) -> None:
        forget(connection)
        waiting.until_the_other_waits()

    monkeypatch.setattr(Session, "hold_plan", held)
    monkeypatch.setattr(replanning, "_forget_what_was_begun", forgetting)
    with ThreadPoolExecutor() as pool:
        planner = pool.submit(replace_plan, database, plan.fingerprint, other, clock=clock)
        assert waiting.is_inside.wait(20)
        worker = pool.submit(manifest.leases.lease, WorkerId("w"), POLICY)
        planner.result()
        with pytest.raises(PlanConflict, match="the plan changed"):
            worker.result()
    assert stored(database).fingerprint == other.fingerprint


def test_a_plan_that_would_be_replaced_while_a_grant_is_under_way_stays(
    database: DatabaseUrl,
    manifest: Manifest,
    plan: Plan,
    other: Plan,
    clock: MovableClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, lease_slice = Waiting(database), leases.lease_slice

    def leasing(*arguments: object) -> object:
        waiting.until_the_other_waits()
        return lease_slice(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "lease_slice", leasing)
    with ThreadPoolExecutor() as pool:
        worker = pool.submit(manifest.leases.lease, WorkerId("w"), POLICY)
        assert waiting.is_inside.wait(20)
        planner = pool.submit(replace_plan, database, plan.fingerprint, other, clock=clock)
        planner.add_done_callback(lambda _done: waiting.others_turn_over.set())
        granted = worker.result()
        with pytest.raises(ManifestBusy, match="worker w"):
            planner.result()
    assert isinstance(granted, Lease)
    assert stored(database).fingerprint == plan.fingerprint
    finish(manifest, plan, granted)


def test_a_receipt_that_an_expired_holder_is_just_recording_keeps_the_plan(
    database: DatabaseUrl,
    manifest: Manifest,
    plan: Plan,
    other: Plan,
    clock: MovableClock,
    lease: Take,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = lease("late")
    clock.forward(EXPIRED_SECONDS)
    waiting, insert = Waiting(database), receipts.insert_receipts

    def inserting(*arguments: object, **more: object) -> None:
        waiting.until_the_other_waits()
        insert(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(receipts, "insert_receipts", inserting)
    with ThreadPoolExecutor() as pool:
        worker = pool.submit(manifest.receipts.record, late, receipt_for(plan, late, BatchIndex(0)))
        assert waiting.is_inside.wait(20)
        planner = pool.submit(replace_plan, database, plan.fingerprint, other, clock=clock)
        planner.add_done_callback(lambda _done: waiting.others_turn_over.set())
        worker.result()
        with pytest.raises(PlanConflict, match="samples were stored"):
            planner.result()
    assert manifest.overview().stored == 8
    manifest.operator.refuse_contradictions()

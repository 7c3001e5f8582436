"""A manifest that contradicts itself or the plan: found, and put right by what its receipts say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Connection, NullPool, create_engine, delete, insert, select, text, update

from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestCorrupt
from shardgen.manifest import consistency
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.manifest.tables import METADATA, RECEIPT, SHARD
from shardgen.operations import doctor
from tests.conformance.conftest import POLICY, MovableClock, Servers, finish, new_place, receipt_for
from tests.invariants import counter_faults

TABLES = METADATA.sorted_tables  # without the foreign keys, which no tool of its own keeps
Sabotage = Callable[[Connection], None]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_servers: Servers
) -> Iterator[DatabaseUrl]:
    with new_place(request.param, tmp_path, postgres_servers) as made:
        yield made


@pytest.fixture
def worked(database: DatabaseUrl, plan: Plan, clock: MovableClock) -> Iterator[Manifest]:
    """Shard 0 done, of shard 1 a slice done and one leased, with a batch done and a dead letter in it."""
    assert create_manifest(database, plan)
    with Manifest(database, plan, clock=clock) as manifest:
        for _ in range(4):
            finish(manifest, plan, leased(manifest))
        lease = leased(manifest)
        batch = manifest.receipts.pending_batches(lease)[0]
        dead = plan.layout.batch_samples(batch)[1]
        manifest.receipts.record(lease, receipt_for(plan, lease, batch, dead=(dead,)))
        yield manifest


def leased(manifest: Manifest) -> Lease:
    granted = manifest.leases.lease(WorkerId("a"), POLICY)
    assert isinstance(granted, Lease)
    return granted


@contextmanager
def by_hand(database: DatabaseUrl) -> Iterator[Connection]:
    """Changes that no rule of the database stops, as a tool of its own would make them."""
    url = database.url if database.url.startswith("postgresql") else f"sqlite:///{database.path}"
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.execute(text("SET session_replication_role = replica"))
        else:
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        yield connection
    engine.dispose()


def _sql(statement: str) -> Sabotage:
    def execute(connection: Connection) -> None:
        connection.execute(text(statement))

    return execute


def _copy_receipt(batch: int) -> Sabotage:
    def copy(connection: Connection) -> None:
        row = dict(connection.execute(select(RECEIPT).where(RECEIPT.c.batch == 0)).mappings().one())
        connection.execute(insert(RECEIPT), row | {"batch": batch})

    return copy


SABOTAGES = {
    "receipts deleted": _sql("DELETE FROM receipt WHERE batch IN (1, 2, 4)"),
    "the last receipt of a short shard's slice deleted": _sql("DELETE FROM receipt WHERE batch = 6"),
    "a receipt added": _copy_receipt(12),
    "a receipt added in a slice never leased": _copy_receipt(16),
    "a receipt beyond the plan": _copy_receipt(17),
    "a receipt before the plan": _copy_receipt(-1),
    "a receipt of another slice": _sql("UPDATE receipt SET shard = 0, slice = 2 WHERE batch = 0"),
    "stored too high": _sql("UPDATE shard SET stored = stored + 8 WHERE shard = 1"),
    "stored too low": _sql("UPDATE shard SET stored = stored - 8 WHERE shard = 0"),
    "dead too high": _sql("UPDATE shard SET dead = dead + 1 WHERE shard = 2"),
    "dead too low": _sql("UPDATE shard SET dead = 0 WHERE shard = 1"),
    "next slice too high": _sql("UPDATE shard SET next_slice = 1, slices_open = 1 WHERE shard = 2"),
    "next slice too low": _sql("UPDATE shard SET next_slice = 1, slices_leased = 0 WHERE shard = 1"),
    "another leased slice": _sql("UPDATE shard SET slices_leased = 1, slices_done = 2 WHERE shard = 0"),
    "another open slice": _sql("UPDATE shard SET slices_open = 3, slices_done = 0 WHERE shard = 0"),
    "another blocked slice": _sql("UPDATE shard SET slices_blocked = 1, slices_leased = 0 WHERE shard = 1"),
    "a shard's size": _sql("UPDATE shard SET slice_count = 4 WHERE shard = 0"),
    "done without receipts": _sql(
        "UPDATE slice SET state = 'done', worker = NULL, expires_at = NULL, batches_left = 0"
        " WHERE shard = 1 AND slice = 1"
    ),
    "open with all receipts": _sql(
        "UPDATE slice SET state = 'open', batches_left = 1 WHERE shard = 0 AND slice = 1"
    ),
    "batches left too high": _sql("UPDATE slice SET batches_left = 3 WHERE shard = 1 AND slice = 1"),
    "batches left too low": _sql("UPDATE slice SET batches_left = 1 WHERE shard = 1 AND slice = 1"),
    "a slice deleted": _sql("DELETE FROM slice WHERE shard = 0 AND slice = 1"),
    "a slice beyond the plan": _sql("UPDATE slice SET slice = 7 WHERE shard = 1 AND slice = 1"),
    "a shard deleted": _sql("DELETE FROM shard WHERE shard = 2"),
    "a shard beyond the plan": _sql("UPDATE shard SET shard = 9 WHERE shard = 0"),
    "a dead letter without a receipt": _sql(
        "INSERT INTO dead_letter (sample, batch, reason, detail) VALUES (119, 16, 'compose', '')"
    ),
    "a dead letter deleted": _sql("DELETE FROM dead_letter"),
    "a provenance miscounted": _sql("UPDATE provenance SET batches = batches + 2"),
}


def test_a_manifest_that_workers_have_written_has_no_contradiction(
    worked: Manifest, database: DatabaseUrl, plan: Plan
) -> None:
    assert counter_faults(database, plan) == []
    assert worked.operator.audit().contradictions == ()
    worked.operator.undo_receipts([BatchIndex(0), BatchIndex(3)], mark=lambda _marks: None)
    assert worked.operator.audit().contradictions == ()
    before = worked.overview()
    assert worked.operator.mend() == 0
    assert worked.overview().shards == before.shards


def test_what_contradicts_itself_is_found_put_right_and_made_to_the_end(
    worked: Manifest, database: DatabaseUrl, plan: Plan, clock: MovableClock
) -> None:
    with by_hand(database) as connection:
        before = {table: connection.execute(select(table)).mappings().all() for table in TABLES}
    clock.forward(3600)  # whoever held a slice has gone
    for what, sabotage in SABOTAGES.items():
        with by_hand(database) as connection:
            for table in reversed(TABLES):
                connection.execute(delete(table))
            for table in TABLES:
                if before[table]:
                    connection.execute(insert(table), [dict(row) for row in before[table]])
            sabotage(connection)
        found = worked.operator.audit()
        assert found.contradictions, what
        assert found.is_complete
        with pytest.raises(ManifestCorrupt, match="contradicts itself") as caught:
            worked.operator.refuse_contradictions()
        assert "verify RUN_DIR --requeue" in caught.value.hint
        assert worked.operator.mend() >= 1
        assert worked.operator.audit().contradictions == (), what
        assert counter_faults(database, plan) == [], what
        while not isinstance(granted := worked.leases.lease(WorkerId("b"), POLICY), NoLease):
            finish(worked, plan, granted)
        assert granted == NoLease(leased=0, blocked=0), what
        assert counter_faults(database, plan) == [], what
        overview = worked.overview()
        assert overview.stored + overview.dead == plan.samples, what
        assert sum(1 for _ in worked.receipts.receipts()) == plan.layout.batch_count, what


def test_doctor_says_undamaged_only_where_something_looked(worked: Manifest, database: DatabaseUrl) -> None:
    (line,) = doctor._records(worked.operator)
    looked = "" if database.url.startswith("postgresql") else "undamaged; "
    assert line.fact == f"{looked}counters and receipts agree"


def test_mending_leaves_a_worker_its_slice(worked: Manifest, database: DatabaseUrl, plan: Plan) -> None:
    held = worked.leases.holders()
    with by_hand(database) as connection:
        connection.execute(text("DELETE FROM receipt WHERE batch = 0"))
    assert worked.operator.mend() == 3  # a shard, a slice, a provenance
    assert worked.leases.holders() == held
    ((shard, slice_, fence, worker),) = held
    lease = Lease(shard=shard, slice=slice_, fence=fence, worker=worker, expires_at=worked.now())
    finish(worked, plan, lease)
    assert counter_faults(database, plan) == []


def test_a_worker_does_not_wait_for_a_slice_that_is_only_counted(
    worked: Manifest, database: DatabaseUrl, plan: Plan, clock: MovableClock
) -> None:
    clock.forward(3600)
    while not isinstance(granted := worked.leases.lease(WorkerId("b"), POLICY), NoLease):
        finish(worked, plan, granted)
    for counter in ("slices_leased", "slices_open"):
        with by_hand(database) as connection:
            values = f"{counter} = 1, slices_done = slices_done - 1"
            connection.execute(text(f"UPDATE shard SET {values} WHERE shard = 1"))  # noqa: S608
        with pytest.raises(ManifestCorrupt, match="count"):
            worked.leases.lease(WorkerId("b"), POLICY)
        worked.operator.mend()


def test_an_audit_is_read_in_pages_and_ends_when_its_time_is_over(
    worked: Manifest, plan: Plan, monkeypatch: pytest.MonkeyPatch, database: DatabaseUrl
) -> None:
    assert [list(page) for page in consistency.pages(plan.layout)] == [[0, 1, 2]]
    monkeypatch.setattr(consistency, "_PAGE_BATCHES", 8)
    assert [list(page) for page in consistency.pages(plan.layout)] == [[0], [1], [2]]
    with by_hand(database) as connection:
        connection.execute(update(SHARD).values(dead=SHARD.c.dead + 1))
    assert [one.subject for one in worked.operator.audit().contradictions] == [
        "shard 0",
        "shard 1",
        "shard 2",
    ]
    cut = worked.operator.audit(seconds=-1)
    assert (cut.contradictions, cut.is_complete) == ((), False)
    clock = iter(range(100))
    monkeypatch.setattr("shardgen.manifest.operator.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert not worked.operator.audit(
        seconds=6
    ).is_complete  # one look at it before each of 5 parts, 4 in the last
    assert worked.operator.audit(seconds=9).is_complete
    monkeypatch.undo()
    assert worked.operator.mend() == 3

from __future__ import annotations

import shutil
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestMismatch, PlanConflict
from shardgen.manifest import schema
from shardgen.manifest.backend import Access, Body, Result
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest, read_stored_plan
from shardgen.manifest.tables import METADATA
from tests import warm
from tests.plans import make_plan


def in_database(database: DatabaseUrl, body: Body[Result]) -> Result:
    """Behind the manifest's back."""
    opened = database.backend.open(Access.CREATE)
    try:
        return opened.transact(body)
    finally:
        opened.close()


def test_the_tables_are_those_that_the_migrations_make(database: DatabaseUrl, manifest: Manifest) -> None:
    def compare(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection)
        return [entry for entry in compare_metadata(context, METADATA) if "column" in str(entry[0])]

    assert in_database(database, compare) == []


def test_planning_twice_is_harmless_and_another_plan_is_refused(database: DatabaseUrl, plan: Plan) -> None:
    assert create_manifest(database, plan)
    assert not create_manifest(database, plan)
    other = make_plan(backgrounds=4)
    with pytest.raises(PlanConflict):
        create_manifest(database, other)
    with pytest.raises(PlanConflict):
        Manifest(database, other)
    stored = read_stored_plan(database)
    assert stored is not None
    assert stored.text == plan.canonical_json.decode()


def _create(database: DatabaseUrl, plan: Plan, barrier: Barrier, next_one: Path | None) -> None:
    real = schema._upgrade
    if next_one is not None:
        _take_next_revision(next_one)

    def upgrade_together(connection: Connection) -> None:
        with suppress(BrokenBarrierError):
            barrier.wait()  # whoever comes here has found that there is something to do
        real(connection)

    schema._upgrade = upgrade_together
    create_manifest(database, plan)


def _create_four_times_at_once(database: DatabaseUrl, plan: Plan, next_one: Path | None = None) -> None:
    context = warm.context()
    # Were they not kept apart they would meet here; kept apart the first waits in vain, for a while.
    barrier = context.Barrier(2, timeout=3)
    processes = [context.Process(target=_create, args=(database, plan, barrier, next_one)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


@pytest.mark.slow
def test_four_processes_that_create_it_at_once_create_it_once(database: DatabaseUrl, plan: Plan) -> None:
    _create_four_times_at_once(database, plan)
    with Manifest(database, plan, read_only=True) as manifest:
        assert len(manifest.overview().shards) == 3


def test_a_failed_creation_leaves_nothing(
    database: DatabaseUrl, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(schema, "_insert_plan", fail)
    with pytest.raises(OSError, match="no"):
        create_manifest(database, plan)
    assert in_database(database, lambda connection: inspect(connection).get_table_names()) == []


NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision = "2_9998"
down_revision = "{schema.REVISION}"


def upgrade():
    op.add_column("slice", sa.Column("colour", sa.Text))
"""


def _take_next_revision(folder: Path) -> None:
    """Be a version of the program that has one more migration."""
    schema.REVISION = "2_9998"
    schema.migrations_folder = lambda: folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_a_manifest_of_an_older_revision_is_upgraded_with_its_leases(
    database: DatabaseUrl, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    assert create_manifest(database, plan)

    def lease_one(connection: Connection) -> None:
        connection.execute(text("UPDATE shard SET next_slice = 1, slices_leased = 1 WHERE shard = 0"))
        connection.execute(
            text(
                "INSERT INTO slice (shard, slice, state, fence, batches_left, deaths, worker, expires_at)"
                " VALUES (0, 0, 'leased', 7, 3, 1, 'w', 1.0)"
            )
        )

    in_database(database, lease_one)
    before = schema.REVISION
    folder = tmp_path / "migrations"
    shutil.copytree(schema.migrations_folder(), folder)
    (folder / "versions" / "9998_colour.py").write_text(NEXT, encoding="utf-8")
    monkeypatch.setattr(schema, "REVISION", schema.REVISION)
    monkeypatch.setattr(schema, "migrations_folder", schema.migrations_folder)
    _take_next_revision(folder)
    with pytest.raises(ManifestMismatch, match=f"revision {before}"):
        Manifest(database, plan)
    if processes == 1:
        assert not create_manifest(database, plan)
    else:
        _create_four_times_at_once(database, plan, folder)
    with Manifest(database, plan) as manifest:
        assert manifest.overview().shards[0].slices.leased == 1
        lease = Lease(
            shard=ShardIndex(0),
            slice=SliceIndex(0),
            worker=WorkerId("w"),
            fence=Fence(7),
            expires_at=manifest.now(),
        )
        assert manifest.suspicion.read(lease).deaths == 1
    colours = in_database(
        database, lambda connection: connection.execute(text("SELECT colour FROM slice")).scalars().all()
    )
    assert colours == [None]


def test_a_plan_of_a_thousand_million_samples_costs_only_its_shards(database: DatabaseUrl) -> None:
    huge = make_plan(backgrounds=500, foregrounds=200, grid=(100, 100))
    assert huge.samples == 1_000_000_000
    create_manifest(database, huge)
    with Manifest(database, huge) as manifest:
        assert len(manifest.overview().shards) == 10_000

    def rows(connection: Connection) -> int:
        names = inspect(connection).get_table_names()
        counts = [connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names]  # noqa: S608
        return int(sum(counts))

    assert in_database(database, rows) == 10_000 + 2

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestMismatch, PlanConflict
from shardgen.manifest import schema
from shardgen.manifest.backend import Access, Body, Result
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest, read_stored_plan
from shardgen.manifest.tables import METADATA
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
    assert read_stored_plan(database) == plan.canonical_json.decode()


def _create(database: DatabaseUrl, plan: Plan, barrier: Barrier, newer: Path | None) -> None:
    if newer is not None:
        _know_two_revisions(newer)
    real = schema._upgrade

    def upgrade_together(connection: Connection) -> None:
        with suppress(BrokenBarrierError):
            barrier.wait()  # whoever comes here has found that there is something to do
        real(connection)

    schema._upgrade = upgrade_together
    create_manifest(database, plan)


def _create_four_times_at_once(database: DatabaseUrl, plan: Plan, newer: Path | None = None) -> None:
    context = multiprocessing.get_context("spawn")
    # Were they not kept apart they would meet here; kept apart the first waits in vain, for a while.
    barrier = context.Barrier(2, timeout=3)
    processes = [context.Process(target=_create, args=(database, plan, barrier, newer)) for _ in range(4)]
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


SECOND_REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "2_0002", "2_0001", None, None


def upgrade() -> None:
    op.add_column("run", sa.Column("made_up", sa.Text))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_a_manifest_of_the_revision_before_is_upgraded_with_its_leases(
    database: DatabaseUrl,
    plan: Plan,
    lease: Callable[..., Lease],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
) -> None:
    held = lease("w")
    newer = tmp_path / "migrations"
    shutil.copytree(schema.migrations_folder(), newer)
    (newer / "versions" / "0002_made_up.py").write_text(SECOND_REVISION, encoding="utf-8")
    _know_two_revisions(newer, monkeypatch.setattr)
    with pytest.raises(ManifestMismatch, match="revision 2_0001") as caught:
        Manifest(database, plan)
    assert "shardgen plan" in caught.value.hint
    if processes == 1:
        assert not create_manifest(database, plan)
    else:
        _create_four_times_at_once(database, plan, newer)
    assert "made_up" in in_database(database, lambda connection: _columns(connection, "run"))
    with Manifest(database, plan) as manifest:
        assert manifest.overview().shards[0].slices.leased == 1
        assert manifest.suspicion.read(held).deaths == 0
        manifest.suspicion.note_batch(held, BatchIndex(0))
        assert manifest.folder.claim("a" * 32) == "a" * 32


def _know_two_revisions(migrations: Path, patch: Callable[[object, str, object], None] = setattr) -> None:
    patch(schema, "REVISION", "2_0002")
    patch(schema, "migrations_folder", lambda: migrations)


def _columns(connection: Connection, table: str) -> list[str]:
    return [column["name"] for column in inspect(connection).get_columns(table)]


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

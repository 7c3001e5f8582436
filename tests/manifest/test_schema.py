from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import upgrade
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.errors import (
    InputMissing,
    ManifestCorrupt,
    ManifestMismatch,
    PlanConflict,
    ShardgenError,
    StorageFailed,
)
from shardgen.manifest import schema
from shardgen.manifest.manifest import Manifest, create_manifest, read_stored_plan
from shardgen.manifest.place import Place
from shardgen.manifest.sqlite import open_engine
from shardgen.manifest.tables import METADATA
from tests.plans import make_plan


def test_the_tables_are_those_that_the_migrations_make(place: Place, manifest: Manifest) -> None:
    with open_engine(place.path).connect() as connection:
        context = MigrationContext.configure(connection)
        columns = [entry for entry in compare_metadata(context, METADATA) if "column" in str(entry[0])]
    assert columns == []


def test_the_known_revision_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(schema.migrations_folder())).get_current_head() == schema.REVISION


def test_a_manifest_of_the_first_revision_is_upgraded_with_its_leases(
    place: Place, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("alembic.command.upgrade", partial(_upgrade_to, "0001"))
        assert create_manifest(place, plan)
    with closing(sqlite3.connect(place.path)) as connection, connection:
        connection.execute("UPDATE shard SET next_slice = 1, slices_leased = 1 WHERE shard = 0")
        connection.execute("INSERT INTO slice VALUES (0, 0, 'leased', 7, 3, 1, 'w', 1.0, NULL)")
    with pytest.raises(ManifestMismatch, match="revision 0001"):
        Manifest(place, plan)
    assert not create_manifest(place, plan)
    with Manifest(place, plan) as manifest:
        assert manifest.overview().shards[0].slices.leased == 1
        lease = Lease(
            shard=ShardIndex(0),
            slice=SliceIndex(0),
            worker=WorkerId("w"),
            fence=Fence(7),
            expires_at=manifest.now(),
        )
        assert manifest.suspicion(lease).deaths == 1
        manifest.note_batch(lease, BatchIndex(0))


def _upgrade_to(revision: str, config: Config, _revision: str) -> None:
    upgrade(config, revision)


def test_planning_twice_is_harmless_and_another_plan_is_refused(place: Place, plan: Plan) -> None:
    assert create_manifest(place, plan)
    assert not create_manifest(place, plan)
    other = make_plan(backgrounds=4)
    with pytest.raises(PlanConflict):
        create_manifest(place, other)
    with pytest.raises(PlanConflict):
        Manifest(place, other)
    assert read_stored_plan(place) == plan.canonical_json.decode()


def _create(place: Place, plan: Plan) -> None:
    create_manifest(place, plan)


def test_four_processes_that_create_it_at_once_create_it_once(place: Place, plan: Plan) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_create, args=(place, plan)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with Manifest(place, plan, read_only=True) as manifest:
        assert len(manifest.overview().shards) == 3


def test_a_failed_creation_leaves_nothing(place: Place, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(schema, "_insert_plan", fail)
    with pytest.raises(OSError, match="no"):
        create_manifest(place, plan)
    with sqlite3.connect(place.path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_other_files_are_refused_by_what_they_are(place: Place, plan: Plan) -> None:
    def refusal() -> ShardgenError:
        with pytest.raises(ShardgenError) as caught:
            Manifest(place, plan)
        assert caught.value.hint
        return caught.value

    assert isinstance(refusal(), InputMissing)
    place.path.write_text("<html>not a database, but long enough to be read as one</html>" * 40)
    assert isinstance(refusal(), ManifestMismatch)
    place.path.unlink()
    with sqlite3.connect(place.path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    assert isinstance(refusal(), ManifestMismatch)
    with pytest.raises(ManifestMismatch):
        create_manifest(place, plan)
    place.path.unlink()
    create_manifest(place, plan)
    with sqlite3.connect(place.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "9999" in str(refusal())


def test_a_damaged_manifest_is_named_as_such(place: Place, plan: Plan) -> None:
    create_manifest(place, plan)
    content = bytearray(place.path.read_bytes())
    content[4096:] = bytes(byte ^ 0xA5 for byte in content[4096:])
    place.path.write_bytes(content)
    with pytest.raises((ManifestCorrupt, ManifestMismatch)) as caught:
        Manifest(place, plan)
    assert caught.value.hint


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_manifest_that_is_gone_under_a_writer_is_named_as_such(
    place: Place, plan: Plan, tmp_path: Path, how: str
) -> None:
    create_manifest(place, plan)
    with Manifest(place, plan) as manifest:
        manifest.agreed_micro_batch("cpu", 4)
        if how == "deleted":
            place.path.unlink()
        else:
            place.path.rename(tmp_path / "elsewhere")
        if how == "replaced":
            create_manifest(place, plan)
        with pytest.raises(StorageFailed, match="deleted or moved away") as caught:
            manifest.agreed_micro_batch("gpu", 4)
    assert "shardgen rebuild RUN_DIR" in caught.value.hint


def test_a_thread_that_opens_a_manifest_that_is_gone_says_the_same(place: Place, plan: Plan) -> None:
    create_manifest(place, plan)
    with Manifest(place, plan) as manifest:
        manifest._database.engine.dispose()
        place.path.unlink()
        with pytest.raises(StorageFailed, match="deleted or moved away"):
            manifest.overview()


def test_a_reader_copes_with_a_commit_that_a_kill_interrupted(
    place: Place, plan: Plan, tmp_path: Path
) -> None:
    create_manifest(place, plan)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_die_inside_a_large_commit, args=(str(place.path),))
    process.start()
    process.join()
    assert process.exitcode == -9
    journal = place.path.with_name(place.path.name + "-journal")
    assert journal.stat().st_size > 0
    with Manifest(place, plan, read_only=True) as manifest:
        assert manifest.overview().stored == 0
    assert not journal.exists()


def _die_inside_a_large_commit(path: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")  # so that changed pages reach the file before the commit
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE shard SET stored = 77")
    rows = [(f"w{i}" * 50,) for i in range(2_000)]
    connection.executemany(
        "INSERT INTO worker VALUES"
        " (?, '', 1, 1.0, '', 'working', NULL, NULL, NULL, 1.0, 1.0, 1.0, 0, 0.0, '')",
        rows,
    )
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_plan_of_a_thousand_million_samples_costs_only_its_shards(place: Place) -> None:
    huge = make_plan(backgrounds=500, foregrounds=200, grid=(100, 100))
    assert huge.samples == 1_000_000_000
    began = time.perf_counter()
    create_manifest(place, huge)
    with Manifest(place, huge) as manifest:
        assert len(manifest.overview().shards) == 10_000
    assert time.perf_counter() - began < 10
    assert place.path.stat().st_size < 2_000_000

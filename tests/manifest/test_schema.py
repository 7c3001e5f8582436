from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from shardgen.domain.plan import EARLIER, Plan
from shardgen.errors import (
    InputMissing,
    ManifestCorrupt,
    ManifestMismatch,
    ShardgenError,
    StorageFailed,
)
from shardgen.manifest import schema
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest, read_stored_plan
from tests import warm


def test_the_known_revision_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(schema.migrations_folder())).get_current_head() == schema.REVISION


def test_other_files_are_refused_by_what_they_are(database: DatabaseUrl, plan: Plan) -> None:
    def refusal() -> ShardgenError:
        with pytest.raises(ShardgenError) as caught:
            Manifest(database, plan)
        assert caught.value.hint
        return caught.value

    assert isinstance(refusal(), InputMissing)
    database.path.write_text("<html>not a database, but long enough to be read as one</html>" * 40)
    assert isinstance(refusal(), ManifestMismatch)
    database.path.unlink()
    with sqlite3.connect(database.path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    assert isinstance(refusal(), ManifestMismatch)
    with pytest.raises(ManifestMismatch):
        create_manifest(database, plan)
    database.path.unlink()
    create_manifest(database, plan)
    for newer in ("2_9999", "3_0001"):
        with sqlite3.connect(database.path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (newer,))
        assert newer in str(refusal())
        assert "upgrade shardgen" in refusal().hint


@pytest.mark.parametrize("revision", ["0001", "0004"])
def test_a_manifest_of_an_earlier_version_is_refused_and_stays_as_it_is(
    database: DatabaseUrl, plan: Plan, revision: str
) -> None:
    create_manifest(database, plan)
    with sqlite3.connect(database.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    before = database.path.read_bytes()
    for use in (Manifest, create_manifest):
        with pytest.raises(ManifestMismatch, match=rf"earlier version .*\(revision {revision}\)") as caught:
            use(database, plan)
        assert caught.value.hint == EARLIER
    with pytest.raises(ManifestMismatch):
        read_stored_plan(database)
    assert database.path.read_bytes() == before


def test_a_damaged_manifest_is_named_as_such(database: DatabaseUrl, plan: Plan) -> None:
    create_manifest(database, plan)
    content = bytearray(database.path.read_bytes())
    content[4096:] = bytes(byte ^ 0xA5 for byte in content[4096:])
    database.path.write_bytes(content)
    with pytest.raises((ManifestCorrupt, ManifestMismatch)) as caught:
        Manifest(database, plan)
    assert caught.value.hint


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_manifest_that_is_gone_under_a_writer_is_named_as_such(
    database: DatabaseUrl, plan: Plan, tmp_path: Path, how: str
) -> None:
    create_manifest(database, plan)
    with Manifest(database, plan) as manifest:
        manifest.micro_batches.agreed("cpu", 4)
        if how == "deleted":
            database.path.unlink()
        else:
            database.path.rename(tmp_path / "elsewhere")
        if how == "replaced":
            create_manifest(database, plan)
        with pytest.raises(StorageFailed, match="deleted or moved away") as caught:
            manifest.micro_batches.agreed("gpu", 4)
    assert "shardgen rebuild RUN_DIR" in caught.value.hint


def test_a_thread_that_opens_a_manifest_that_is_gone_says_the_same(database: DatabaseUrl, plan: Plan) -> None:
    create_manifest(database, plan)
    with Manifest(database, plan) as manifest:
        manifest._session.database.engine.dispose()
        database.path.unlink()
        with pytest.raises(StorageFailed, match="deleted or moved away"):
            manifest.overview()


def test_a_reader_copes_with_a_commit_that_a_kill_interrupted(
    database: DatabaseUrl, plan: Plan, tmp_path: Path
) -> None:
    create_manifest(database, plan)
    context = warm.context()
    process = context.Process(target=_die_inside_a_large_commit, args=(str(database.path),))
    process.start()
    process.join()
    assert process.exitcode == -9
    journal = database.path.with_name(database.path.name + "-journal")
    assert journal.stat().st_size > 0
    with Manifest(database, plan, read_only=True) as manifest:
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

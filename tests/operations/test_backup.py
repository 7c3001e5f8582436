from __future__ import annotations

import os
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    ManifestCorrupt,
    ManifestMismatch,
    PlanConflict,
    StorageFailed,
)
from shardgen.manifest import sqlite
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.operations.backup import back_up
from shardgen.operations.sweep import sweep
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import staged_beside
from shardgen.storage.files import DiskFiles
from tests import warm
from tests.conformance.conftest import POLICY, identity, receipt_for
from tests.invariants import counter_faults
from tests.postgres import Server, new_schema
from tests.runs import make_run, plan_run, shardgen, start

BACKUPS = 20
MANY_SAMPLES = {"compose.grid": "[40, 40]", "shards.batch": "2"}


def _record_for_ever(run_dir: Path, name: str, begun: Path) -> None:
    """Commit receipt after receipt, and beats when none is left."""
    run = RunDirectory.open(run_dir)
    plan = run.plan()
    worker = WorkerId(f"host-{name}-{name * 8}")
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity(worker, pid=os.getpid()))
        while True:
            lease = manifest.leases.lease(worker, POLICY)
            if not isinstance(lease, Lease):
                manifest.workers.beat(worker, WorkerReport(state=WorkerState.WORKING))
                continue
            for batch in manifest.receipts.pending_batches(lease):
                manifest.receipts.record(lease, receipt_for(plan, lease, batch))
                begun.touch()


@contextmanager
def writers(run: RunDirectory, folder: Path) -> Iterator[None]:
    """Two processes that commit all the time."""
    context = warm.context()
    marks = [folder / "a", folder / "b"]
    processes = [context.Process(target=_record_for_ever, args=(run.path, mark.name, mark)) for mark in marks]
    for process in processes:
        process.start()
    try:
        while not all(mark.exists() for mark in marks):
            assert all(process.is_alive() for process in processes)
        yield
        assert all(process.is_alive() for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _stored(run: RunDirectory, copy: Path) -> int:
    """How much a copy holds, when it contradicts itself in nothing."""
    plan, database = run.plan(), replace(run.database, url=f"sqlite:///{copy}")
    assert counter_faults(database, plan) == []
    with Manifest(database, plan, read_only=True) as manifest:
        return manifest.overview().stored


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_every_backup_beside_two_writers_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes=MANY_SAMPLES)
    run = plan_run(run)
    folder = tmp_path / "copies"
    folder.mkdir()
    with writers(run, tmp_path):
        copies = [back_up(run, folder / f"{number}.sqlite") for number in range(BACKUPS)]
    stored = [_stored(run, copy) for copy in copies]
    assert stored == sorted(stored)
    assert stored[0] < stored[-1]
    assert sorted(folder.iterdir()) == sorted(copies)


@pytest.mark.slow
def test_a_run_goes_on_from_a_backup_that_was_made_in_its_middle(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run = plan_run(run)
    with start(["run", run.path]) as process:
        while not list(run.artifacts.glob("shard-*/*.zip")):
            assert process.poll() is None
        said = shardgen("backup", run.path, "-o", tmp_path / "copy.sqlite")
        assert process.wait() == 0
    assert said.returncode == 0, said.stderr
    before = (run.path / "dataset.zip").read_bytes()
    run.database.path.rename(tmp_path / "old")
    subprocess.run(shlex.split(said.stderr.partition("then: ")[2]), check=True)
    assert shardgen("run", run.path).returncode == 0
    assert shardgen("verify", run.path).returncode == 0
    assert (run.path / "dataset.zip").read_bytes() == before


DIES_BEFORE_THE_NAME = """
import os, signal, sys
from pathlib import Path
from shardgen.operations import backup
from shardgen.settings.run_directory import RunDirectory
backup.give_name = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
backup.back_up(RunDirectory.open(Path(sys.argv[1])), Path(sys.argv[2]) if sys.argv[2:] else None)
"""


def test_a_killed_backup_leaves_nothing_under_its_name_and_the_next_one_tidies_up(
    run: RunDirectory, tmp_path: Path
) -> None:
    target = tmp_path / "copy.sqlite"
    died = subprocess.run([sys.executable, "-c", DIES_BEFORE_THE_NAME, run.path, target], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(_hidden(tmp_path)) == 1
    assert back_up(run, target) == target
    assert _stored(run, target) == 0
    assert _hidden(tmp_path) == []


def test_a_sweep_takes_what_a_killed_backup_left_and_not_what_a_running_one_writes(run: RunDirectory) -> None:
    died = subprocess.run([sys.executable, "-c", DIES_BEFORE_THE_NAME, run.path], check=False)
    assert died.returncode == -signal.SIGKILL
    (left,) = run.path.glob(".manifest-*.part")
    with staged_beside(run.path / "manifest-1.sqlite", files=DiskFiles()) as (_, staged):
        assert sweep(run, remove=False).unfinished == [left]
        assert sweep(run, remove=True).unfinished == [left]
        assert (left.exists(), staged.exists()) == (False, True)


def test_a_backup_beside_a_commit_that_is_under_way_leaves_its_journal_alone(
    run: RunDirectory, tmp_path: Path
) -> None:
    journal = run.database.path.with_name("manifest.sqlite-journal")
    with closing(sqlite3.connect(run.database.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE shard SET stored = stored + 1")
        assert journal.exists()
        back_up(run, tmp_path / "before.sqlite")
        assert journal.exists()
        writer.execute("COMMIT")
        assert writer.execute("SELECT min(stored) FROM shard").fetchone() == (1,)
    assert _stored(run, tmp_path / "before.sqlite") == 0


def _begin_a_large_commit(path: Path) -> sqlite3.Connection:
    """Changed pages are in the file already, and what they were is in the journal."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE shard SET slices_open = slices_open")
    connection.execute("CREATE TABLE large (content)")
    connection.executemany("INSERT INTO large VALUES (?)", [(b"x" * 500,)] * 2_000)
    return connection


def test_a_backup_waits_for_a_commit_whose_pages_are_half_in_the_file(
    run: RunDirectory, tmp_path: Path
) -> None:
    target = tmp_path / "copy.sqlite"
    backup = threading.Thread(target=back_up, args=(run, target))
    with closing(_begin_a_large_commit(run.database.path)) as writer:
        backup.start()
        backup.join(0.5)
        assert backup.is_alive()
        writer.execute("COMMIT")
        backup.join()
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT count(*) FROM large").fetchone() == (2_000,)


def _die_inside_a_large_commit(path: Path) -> None:
    _begin_a_large_commit(path).execute("UPDATE shard SET stored = 77")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_backup_after_a_killed_commit_is_without_it(run: RunDirectory, tmp_path: Path) -> None:
    process = warm.context().Process(target=_die_inside_a_large_commit, args=(run.database.path,))
    process.start()
    process.join()
    assert run.database.path.with_name("manifest.sqlite-journal").stat().st_size > 0
    assert _stored(run, back_up(run, tmp_path / "copy.sqlite")) == 0
    assert _stored(run, run.database.path) == 0


def test_nothing_is_replaced_and_no_folder_is_made(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(PlanConflict, match="already exists"):
            back_up(run, tmp_path / name)
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(InputMissing, match="is not a folder"):
        back_up(run, tmp_path / "nowhere" / "copy")
    assert back_up(run, None).parent == run.path


def test_a_damaged_manifest_is_not_passed_on(run: RunDirectory, tmp_path: Path) -> None:
    content = bytearray(run.database.path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096  # where a page begins: not all of it is in use
    content[middle : middle + 2_000] = os.urandom(2_000)
    run.database.path.write_bytes(content)
    with pytest.raises(ManifestCorrupt, match="damaged"):
        back_up(run, tmp_path / "copy.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_names_the_file_that_it_is_about(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, (soft, hard) = tmp_path / "copy.sqlite", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(StorageFailed) as failed:
            run.database.backend.copy_to(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(failed.value).startswith(f"{copy}: the disk is full")
    monkeypatch.setattr(sqlite, "_copy", lambda _connection, target: target.write_bytes(b"x" * 5000))
    with pytest.raises(ManifestMismatch) as damaged:
        run.database.backend.copy_to(copy)
    assert str(damaged.value).startswith(f"{run.database.path}: not a SQLite database")


def test_a_shared_folder_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    run = make_run(tmp_path, changes={"manifest.url": '"folder:"'})
    run = plan_run(run)
    with pytest.raises(ManifestMismatch, match="the files in it are the record"):
        back_up(run, tmp_path / "copy")


def test_the_line_for_a_server_makes_a_copy_that_can_be_put_back(
    run: RunDirectory, postgres_server: Server, tmp_path: Path
) -> None:
    programs = next(postgres_server.folder.rglob("bin"))
    with new_schema(postgres_server.url) as url:
        database = DatabaseUrl(url=url, run_dir=run.path)
        create_manifest(database, run.plan())
        with pytest.raises(InvalidSettings, match="pg_dump") as caught:
            database.backend.copy_to(tmp_path / "copy of people")
        assert caught.value.exit_code == 12
        words = shlex.split(caught.value.hint)
        subprocess.run([programs / words[0], *words[1:]], check=True)
        server = ["--host", str(postgres_server.folder), "--port", str(postgres_server.port)]
        server += ["--username", "postgres", "--dbname", "postgres"]
        drop = f"DROP SCHEMA {words[words.index('--schema') + 1]} CASCADE"
        subprocess.run([programs / "psql", *server, "--quiet", "--command", drop], check=True)
        subprocess.run([programs / "pg_restore", *server, tmp_path / "copy of people"], check=True)
        assert counter_faults(database, run.plan()) == []

"""What stands behind the receipts: a manifest that was changed by hand or damaged, folders that are links."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, CursorResult

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex, Fence, WorkerId
from shardgen.domain.lease import Lease
from shardgen.errors import ArtifactCorrupt, InputMissing, ManifestCorrupt, RunIncomplete, ShardgenError
from shardgen.operations.doctor import Verdict, diagnose
from shardgen.operations.merge import merge_run
from shardgen.operations.rebuild import rebuild
from shardgen.operations.requeue import RequeueChoice, requeue
from shardgen.operations.sweep import sweep
from shardgen.operations.verify import check_run, put_back
from shardgen.settings.plan_file import FILE_NAME, read_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.settings.settings import read_settings
from tests.artifacts.attempts import single
from tests.conformance.conftest import POLICY
from tests.runs import make_run, sha256_of, shardgen


@pytest.fixture
def worked(run: RunDirectory) -> RunDirectory:
    """Batches 0 and 1, the first slice, have artifacts and receipts; ten more are pending."""
    plan = run.plan()
    with run.manifest(plan) as manifest:
        lease = manifest.leases.lease(WorkerId("host-a-aaaaaaaa"), POLICY)
        assert isinstance(lease, Lease)
        for batch in manifest.receipts.pending_batches(lease):
            (receipt,) = single(batch).publish(plan, run.artifacts)
            manifest.receipts.record(lease, receipt)
    return run


def by_hand(run: RunDirectory, statement: str) -> None:
    with sqlite3.connect(run.path / "manifest.sqlite") as connection:
        connection.execute(statement)


def damage(run: RunDirectory, *, start: int, size: int) -> None:
    """Random bytes inside the file."""
    with (run.path / "manifest.sqlite").open("r+b") as file:
        file.seek(start)
        file.write(random.Random(7).randbytes(size))  # noqa: S311


def failing(run: RunDirectory) -> list[tuple[str, str]]:
    return [
        (line.subject, line.hint)
        for line in diagnose(run.path)
        if line.verdict is Verdict.FAILS and line.subject not in ("device", "image libraries")
    ]


def test_an_unfinished_run_says_what_is_not_made_yet(worked: RunDirectory) -> None:
    found = check_run(worked)
    assert (found.samples, found.pending, found.findings) == (8, 40, ())
    done = shardgen("verify", worked.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "read 8 samples: no findings\nnot made yet, so not checked: 40 samples\n"
    assert json.loads(shardgen("verify", worked.path, "--json").stdout)["pending"] == 40


def test_receipts_that_were_deleted_are_found_by_all_and_mended_by_verify(worked: RunDirectory) -> None:
    by_hand(worked, "DELETE FROM receipt WHERE batch = 1")
    found = check_run(worked)
    assert all(one.in_manifest and one.batch is None for one in found.findings)
    assert {one.subject for one in found.findings} == {"shard 0", "shard 0 slice 0", "provenance 1"}
    assert (found.samples, found.pending) == (4, 44)
    for refused in (
        lambda: merge_run(worked, None, allow_dead_letters=False),
        lambda: sweep(worked, remove=True),
    ):
        with pytest.raises(ManifestCorrupt) as caught:
            refused()
        assert caught.value.hint.startswith("shardgen verify RUN_DIR --requeue")
    assert [subject for subject, _ in failing(worked)] == ["records"]
    assert len(list(FolderStore(worked.artifacts).names())) == 2
    assert put_back(worked, found.bad_batches).mended == 3
    assert check_run(worked).findings == ()
    assert failing(worked) == []
    with pytest.raises(RunIncomplete, match="44 of 48"):
        merge_run(worked, None, allow_dead_letters=False)


def test_the_command_names_the_contradictions_and_puts_them_right(worked: RunDirectory) -> None:
    by_hand(worked, "UPDATE shard SET stored = stored + 40 WHERE shard = 2")
    refused = shardgen("run", worked.path)
    assert refused.returncode == 23
    assert f"hint: shardgen verify {worked.path} --requeue" in refused.stderr
    mended = shardgen("verify", worked.path, "--requeue")
    assert mended.returncode == 23
    assert "shard 2: counts 40 samples stored, has 0" in mended.stdout
    assert "put right 1 record of the manifest" in mended.stderr
    assert shardgen("verify", worked.path).returncode == 0


@pytest.mark.slow
def test_after_deleted_receipts_the_run_ends_with_the_same_zip(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert shardgen("run", run.path).returncode == 0
    before = sha256_of(run.path / "dataset.zip")
    by_hand(run, "DELETE FROM receipt WHERE batch IN (1, 2, 4)")
    for command in ("run", "merge", "verify"):
        assert shardgen(command, run.path).returncode == 23, command
    assert shardgen("verify", run.path, "--requeue").returncode == 23
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    assert sha256_of(run.path / "dataset.zip") == before


def test_a_damaged_manifest_is_found_by_whoever_reads_it(worked: RunDirectory) -> None:
    size = (worked.path / "manifest.sqlite").stat().st_size
    damage(worked, start=size // 2, size=2000)
    found = check_run(worked)
    assert found.is_damaged
    assert all(one.in_manifest for one in found.findings)
    assert found.pending is None
    [(subject, hint)] = failing(worked)
    assert subject == "records"
    assert "shardgen rebuild RUN_DIR" in hint
    with pytest.raises(ManifestCorrupt, match="damaged"):
        sweep(worked, remove=True)
    for command in ("verify", "status", "run"):
        done = shardgen(command, worked.path)
        assert done.returncode == 23, (command, done.stderr)
        assert f"then: shardgen rebuild {worked.path}" in done.stderr
        damage(worked, start=4096, size=size - 4096)  # where every command reads
    manifest = worked.path / "manifest.sqlite"
    manifest.rename(manifest.with_suffix(".damaged"))
    rebuild(worked)
    assert check_run(worked).findings == ()


FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


def test_a_look_for_damage_ends_when_its_time_is_over(
    worked: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:

    def look(connection: Connection, statement: str) -> CursorResult[Any]:
        return execute(connection, FOR_EVER if "quick_check" in statement else statement)

    execute = Connection.exec_driver_sql
    monkeypatch.setattr(Connection, "exec_driver_sql", look)
    monkeypatch.setattr("shardgen.operations.verify._DAMAGE_SECONDS", 0.1)
    monkeypatch.setattr("shardgen.operations.sweep._DAMAGE_SECONDS", 0.0)
    found = check_run(worked)
    assert found.remarks == (f"looked for damage in {worked.database.path} for 0.1 s only",)
    assert (found.samples, found.findings) == (8, ())
    swept = sweep(worked, remove=True)
    assert swept.remarks == [f"looked for damage in {worked.database.path} for 0 s only"]


SWEEPS_FOR_EVER = """
import signal
import sys
from sqlalchemy import Engine, event
from shardgen.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for_ever, folder = sys.argv[1:]
sys.argv[1:] = ["sweep", folder, "--yes"]
def look(_connection, _cursor, statement, parameters, _context, _executemany):
    if "quick_check" not in statement:
        return statement, parameters
    print("looks", flush=True)
    return for_ever, parameters
event.listen(Engine, "before_cursor_execute", look, retval=True)
main()
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGHUP))],
)
def test_a_signal_ends_a_look_for_damage_and_nothing_is_removed(
    worked: RunDirectory, number: signal.Signals
) -> None:
    orphan = worked.artifacts / single(2).publish(worked.plan(), worked.artifacts)[0].artifact.name
    command = [sys.executable, "-c", SWEEPS_FOR_EVER, FOR_EVER, str(worked.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "looks\n"
        process.send_signal(number)
        removed, _ = process.communicate()
    assert (process.returncode, removed) == (128 + number, "")
    assert orphan.exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE receipt SET sums = 'no JSON' WHERE batch = 1",
        "UPDATE receipt SET provenance = 77 WHERE batch = 1",
        "UPDATE receipt SET worker = CAST(x'ff80' AS TEXT) WHERE batch = 1",
        "DELETE FROM run",
    ],
)
def test_what_no_version_of_ours_has_written_into_a_row_is_damage_and_no_bug(
    worked: RunDirectory, statement: str
) -> None:
    by_hand(worked, statement)
    with pytest.raises(ManifestCorrupt) as caught:
        check_run(worked)
    assert "shardgen rebuild RUN_DIR" in caught.value.hint


def requeue_it(run: RunDirectory) -> object:
    return requeue(run, RequeueChoice(batches=(BatchIndex(0),)))


def read_all(run: RunDirectory) -> object:
    with open_run(run).records() as recorded:
        return [recorded.store.read(receipt.artifact) for receipt in recorded.source.receipts()]


def rebuild_it(run: RunDirectory) -> object:
    (run.path / "manifest.sqlite").unlink()
    return rebuild(run)


READERS: dict[str, Callable[[RunDirectory], object]] = {
    "verify": check_run,
    "read": read_all,
    "sweep": lambda run: sweep(run, remove=False),
    "rebuild": rebuild_it,
}


@pytest.mark.parametrize(
    ("folder", "reader"),
    [
        *(("shard-00000", reader) for reader in READERS),
        *((".staging", reader) for reader in ("verify", "sweep", "rebuild")),
        *(("requeued", reader) for reader in ("verify", "rebuild", "requeue")),
    ],
)
def test_a_folder_of_the_artifacts_that_is_a_link_is_not_read_through(
    worked: RunDirectory, tmp_path: Path, folder: str, reader: str
) -> None:
    mark = {"fingerprint": worked.plan().fingerprint, "fence": 0, "batches": []}
    FolderStore(worked.artifacts).publish_requeued(Fence(0), json.dumps(mark).encode())
    (worked.artifacts / folder).rename(tmp_path / "elsewhere")
    (worked.artifacts / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactCorrupt, match="is a link, which is not followed") as caught:
        (READERS | {"requeue": requeue_it})[reader](worked)
    assert "put the folder itself there" in caught.value.hint
    if reader == "verify":
        assert [subject for subject, _ in failing(worked)] == ["records"]


@pytest.mark.parametrize("name", [FILE_NAME, SETTINGS])
@pytest.mark.parametrize("what", ["large", "pipe", "loop", "folder"])
def test_what_is_no_file_of_ours_is_no_matter_of_permissions(run: RunDirectory, name: str, what: str) -> None:
    path = run.path / name
    path.unlink()
    if what == "large":
        with path.open("wb") as file:
            file.truncate((1 << 28) + 1)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "loop":
        path.symlink_to(path)
    else:
        shutil.copytree(run.path, run.path.parent / "copy")
        path.mkdir()
    read = read_plan if name == FILE_NAME else read_settings
    with pytest.raises(ShardgenError) as caught:
        read(run.path)
    assert isinstance(caught.value, InputMissing)
    assert "chmod" not in caught.value.hint
    assert "ermission" not in caught.value.hint
    assert "move it away" in caught.value.hint or "put a text file there" in caught.value.hint

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from shardgen.domain.steps import BatchStep
from shardgen.settings.run_directory import RunDirectory
from tests.runs import at_step, die_at, make_run, plan_run, sha256_of, shardgen, start

DEAD = {"DEAD_SAMPLES": "5,45"}
SLICES = (
    "SELECT shard, slice, CASE state WHEN 'leased' THEN 'open' ELSE state END, batches_left FROM slice "
    "WHERE EXISTS (SELECT 1 FROM receipt WHERE receipt.shard = slice.shard AND receipt.slice = slice.slice) "
    "ORDER BY 1, 2"
)
RECEIPTS = (
    "SELECT batch, shard, slice, fence, worker, artifact, artifact_bytes, artifact_sha256, members_start, "
    "members_stop, members_sha256, sums, document "
    "FROM receipt JOIN provenance ON provenance.id = receipt.provenance ORDER BY batch"
)
DEAD_LETTERS = "SELECT sample, batch, reason FROM dead_letter ORDER BY sample"
SHARDS = "SELECT shard, slice_count, stored, dead FROM shard ORDER BY shard"
PROVENANCES = "SELECT document, batches FROM provenance WHERE batches > 0 ORDER BY document"


def rows(manifest: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(manifest)) as connection:
        return connection.execute(query).fetchall()


def undisturbed(run: RunDirectory, folder: Path) -> str:
    shutil.copytree(run.path, folder)
    done = at_step("worker", folder, "-", environment=DEAD)
    assert done.returncode == 0, done.stderr
    return merged(folder)


def merged(folder: Path) -> str:
    done = shardgen("merge", folder, "--allow-dead-letters")
    assert done.returncode == 0, done.stderr
    return sha256_of(folder / "dataset.zip")


def lose_and_rebuild(run: RunDirectory, kept: Path) -> str:
    manifest = run.path / "manifest.sqlite"
    with closing(sqlite3.connect(manifest, isolation_level=None)) as connection:
        # A worker killed inside a commit of its heartbeat leaves a journal, which a rebuild refuses. One that
        # was cut short before its header was written goes only when a commit changes a page.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE run SET fence_floor = fence_floor + 1")
        connection.execute("UPDATE run SET fence_floor = fence_floor - 1")
        connection.execute("COMMIT")
    manifest.rename(kept)
    done = shardgen("rebuild", run.path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_batches(found: Sequence[tuple[object, ...]], extra: set[object]) -> list[tuple[object, ...]]:
    return [row for row in found if row[0] not in extra]


@pytest.mark.slow
def test_a_rebuilt_manifest_is_the_lost_one_row_by_row_and_leads_to_the_same_zip(
    run: RunDirectory, tmp_path: Path
) -> None:
    expected = undisturbed(run, tmp_path / "undisturbed")
    die_at("worker", run.path, BatchStep.PUBLISHED, nth=4, environment=DEAD)  # an orphan of a batch
    die_at("worker", run.path, BatchStep.RECORDED, nth=3, environment=DEAD)
    requeued = shardgen("requeue", run.path, "--batch", "1", "--batch", "0")
    assert requeued.returncode == 0, requeued.stderr
    die_at("worker", run.path, BatchStep.PUBLISHED, nth=4, environment=DEAD)  # another one, not made again
    lost = tmp_path / "lost.sqlite"
    said = lose_and_rebuild(run, lost)
    found = run.path / "manifest.sqlite"
    extra = {row[0] for row in rows(found, RECEIPTS)} - {row[0] for row in rows(lost, RECEIPTS)}
    assert len(extra) == 1  # whole and published, but its worker died before it was recorded
    assert without_batches(rows(found, RECEIPTS), extra) == rows(lost, RECEIPTS)
    assert rows(found, DEAD_LETTERS) == rows(lost, DEAD_LETTERS) == [(5, 1, "compose")]
    assert "ignored 3 artifacts: superseded by another attempt" in said

    done = at_step("worker", run.path, "-", environment=DEAD)
    assert done.returncode == 0, done.stderr
    assert merged(run.path) == expected
    again = tmp_path / "again.sqlite"
    lose_and_rebuild(run, again)
    for query in (RECEIPTS, DEAD_LETTERS, SLICES, SHARDS, PROVENANCES):
        assert rows(found, query) == rows(again, query)
    assert merged(run.path) == expected
    assert shardgen("verify", run.path).returncode == 0

    put_back = shardgen("requeue", run.path, "--batch", "1")
    assert put_back.returncode == 0, put_back.stderr
    said = lose_and_rebuild(run, tmp_path / "third.sqlite")
    assert "ignored 2 artifacts: undone by a requeue" in said
    for query in (RECEIPTS, DEAD_LETTERS, SLICES, SHARDS, PROVENANCES):
        assert rows(found, query) == rows(tmp_path / "third.sqlite", query)
    assert shardgen("merge", run.path, "--allow-dead-letters").returncode == 14
    done = at_step("worker", run.path, "-", environment=DEAD)
    assert done.returncode == 0, done.stderr
    assert merged(run.path) == expected


@pytest.mark.slow
def test_a_worker_whose_manifest_is_taken_away_says_so_and_nothing_is_lost(
    run: RunDirectory, undisturbed_sha256: str
) -> None:
    said = []
    with start(["worker", run.path]) as worker:
        assert worker.stderr is not None
        for line in worker.stderr:
            said.append(line)
            if "ready" in line:
                break
        (run.path / "manifest.sqlite").unlink()
        said += worker.stderr.readlines()
        code = worker.wait(timeout=120)
    if code == 0:  # a very fast machine: everything was made before the file was gone
        assert "made 48 samples" in "".join(said)
    else:
        assert code == 31, said
        assert any(line.startswith("error: ") and "deleted or moved away" in line for line in said), said
        assert any(
            line == f"hint: put it back, or: shardgen rebuild {run.path}; then run the command again\n"
            for line in said
        ), said
    rebuilt = shardgen("rebuild", run.path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    done = shardgen("worker", run.path)
    assert done.returncode == 0, done.stderr
    done = shardgen("merge", run.path)
    assert done.returncode == 0, done.stderr
    assert sha256_of(run.path / "dataset.zip") == undisturbed_sha256


@pytest.mark.slow
def test_a_run_whose_manifest_is_deleted_ends_and_goes_on_after_a_rebuild(
    tmp_path: Path, undisturbed_sha256: str
) -> None:
    run = make_run(tmp_path)
    run = plan_run(run)
    manifest = run.path / "manifest.sqlite"
    parent = start(["run", run.path])
    try:
        deadline = time.monotonic() + 120
        while not rows(manifest, "SELECT id FROM worker"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manifest.unlink()
        assert parent.wait(120) == 31
        said = parent.stderr.read() if parent.stderr is not None else ""
    finally:
        parent.kill()
        parent.wait()
        if parent.stderr is not None:
            parent.stderr.close()
    assert "deleted or moved away while it was in use" in said
    (run.path / "manifest.sqlite-journal").unlink(missing_ok=True)
    assert shardgen("rebuild", run.path).returncode == 0
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    assert sha256_of(run.path / "dataset.zip") == undisturbed_sha256

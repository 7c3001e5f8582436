from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.errors import ShardgenError
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.worker.retry import may_pass
from tests.conformance.conftest import POLICY, MovableClock, identity, receipt_for
from tests.plans import make_plan

WHO = identity("worker")
PLAN = make_plan(shard_size=50, batch=8, slice_batches=1)  # each receipt ends its slice's lease
LONGER = replace(POLICY, duration=timedelta(seconds=240))
BEAT = WorkerReport(state=WorkerState.WORKING, samples_done=8)


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory that can go away and come back, and a worker in it that holds a slice."""

    path: Path
    manifest: Manifest
    lease: Lease

    @property
    def journal(self) -> Path:
        return self.path / "manifest.sqlite-journal"

    @property
    def elsewhere(self) -> Path:
        return self.path.with_name("elsewhere")

    def go(self) -> None:
        self.path.rename(self.elsewhere)

    def come_back(self) -> None:
        self.elsewhere.rename(self.path)

    def contents(self) -> list[str]:
        with closing(sqlite3.connect(self.path / "manifest.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return list(connection.iterdump())


def database(path: Path) -> DatabaseUrl:
    return DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=path)


def begin(path: Path) -> Run:
    path.mkdir(parents=True)
    create_manifest(database(path), PLAN)
    manifest = Manifest(database(path), PLAN, clock=MovableClock())
    manifest.workers.register(WHO)
    lease = manifest.leases.lease(WHO.id, POLICY)
    assert isinstance(lease, Lease)
    return Run(path, manifest, lease)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = begin(tmp_path / "run")
    with run.manifest:
        yield run


def record(run: Run) -> object:
    batches = PLAN.layout.slice_batch_range(run.lease.shard, run.lease.slice)
    return run.manifest.receipts.record(run.lease, receipt_for(PLAN, run.lease, BatchIndex(batches.start)))


WRITES: dict[str, Callable[[Run], object]] = {
    "record": record,
    "lease": lambda run: run.manifest.leases.lease(WHO.id, POLICY),
    "renew": lambda run: run.manifest.leases.renew(run.lease, LONGER),
    "release": lambda run: run.manifest.leases.release(run.lease),
    "fail": lambda run: run.manifest.leases.fail(run.lease, "no network", POLICY),
    "block": lambda run: run.manifest.leases.block(run.lease, "no sample explains it"),
    "beat": lambda run: run.manifest.workers.beat(WHO.id, BEAT),
    "agreed": lambda run: run.manifest.micro_batches.agreed("cpu", 4),
}
READS: dict[str, Callable[[Run], object]] = {
    "pending": lambda run: run.manifest.receipts.pending_batches(run.lease),
    "suspicion": lambda run: run.manifest.suspicion.read(run.lease),
    "overview": lambda run: run.manifest.overview(),
}


def once(manifest: Manifest, name: str, act: Callable[[], None], *, statement: str = "") -> None:
    """Do this at the engine's next event of that name; at a statement's, if it begins with `statement`."""
    left = [act]

    def heard(*given: Any) -> None:
        if left and (not statement or given[2].startswith(statement)):
            left.pop()()

    event.listen(manifest._session.database.engine, name, heard)


def refused(call: Callable[[], object]) -> ShardgenError:
    """What it raises, and a worker tries again."""
    with pytest.raises(ShardgenError) as caught:
        call()
    assert may_pass(caught.value), repr(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "place"), [*((name, "") for name in WRITES), ("record", "a mount point"), ("record", "a copy")]
)
def test_a_commit_whose_folder_goes_away_is_done_whole_when_it_is_back(
    run: Run, tmp_path: Path, name: str, place: str
) -> None:
    before, write = run.contents(), WRITES[name]

    def go() -> None:
        assert run.journal.exists()
        run.go()
        if place == "a mount point":
            run.path.mkdir()

    once(run.manifest, "commit", go)
    refused(lambda: write(run))
    for call in (*WRITES.values(), *READS.values()):
        assert "its folder is not there" in str(refused(partial(call, run)))
    if place == "a mount point":
        run.path.rmdir()
    if place == "a copy":  # as after a mount of another device number
        shutil.copytree(run.elsewhere, run.path)
    else:
        run.come_back()
    assert run.manifest.overview().stored == 0
    assert run.contents() == before
    undisturbed = begin(tmp_path / "other" / "run")
    with undisturbed.manifest:
        assert write(run) == write(undisturbed)
    assert run.contents() == undisturbed.contents()


@pytest.mark.parametrize("name", ["record", "lease", "release", "fail", "block"])
def test_a_commit_that_fails_when_its_journal_is_gone_already_has_happened(
    run: Run, tmp_path: Path, name: str
) -> None:
    write = WRITES[name]
    once(run.manifest, "commit", run.journal.unlink)
    undisturbed = begin(tmp_path / "other" / "run")
    with undisturbed.manifest:
        assert write(run) == write(undisturbed)
    assert run.contents() == undisturbed.contents()


def test_a_folder_that_is_back_before_anybody_looks_was_away(run: Run) -> None:
    once(run.manifest, "before_cursor_execute", run.go, statement="UPDATE slice")
    once(run.manifest, "handle_error", run.come_back)
    refused(lambda: record(run))  # SQLITE_READONLY_DBMOVED
    once(run.manifest, "commit", run.go)
    once(run.manifest, "handle_error", run.come_back)
    refused(lambda: record(run))  # SQLITE_IOERR_DELETE_NOENT
    assert record(run) is True


def leave_half_a_commit(run: Run) -> None:
    """As another worker, whose last receipt this is."""
    with Manifest(database(run.path), PLAN, clock=MovableClock()) as other:
        once(other, "commit", run.go)
        refused(lambda: record(replace(run, manifest=other)))
    run.come_back()
    assert run.journal.exists()


def test_half_a_commit_of_another_worker_is_undone_before_anything_is_read(run: Run) -> None:
    before = run.contents()
    leave_half_a_commit(run)
    assert run.manifest.overview().stored == 0
    assert run.contents() == before


@pytest.mark.parametrize("name", ["record", "release", *READS])
def test_half_a_commit_is_not_believed_though_the_folder_is_back_at_once(run: Run, name: str) -> None:
    call = (WRITES | READS)[name]
    statement = "PRAGMA schema_version" if name in READS else "BEGIN IMMEDIATE"
    leave_half_a_commit(run)
    once(run.manifest, "before_cursor_execute", run.go, statement=statement)
    once(run.manifest, "after_cursor_execute", run.come_back, statement=statement)
    refused(partial(call, run))
    assert run.manifest.overview().stored == 0
    assert record(run) is True


def test_another_worker_keeps_nothing_of_half_a_commit(run: Run) -> None:
    with Manifest(database(run.path), PLAN, clock=MovableClock()) as other:
        once(run.manifest, "commit", run.go)
        refused(lambda: record(run))
        refused(other.overview)
        refused(lambda: other.workers.beat(WHO.id, BEAT))
        run.come_back()
        run.manifest.leases.release(run.lease)  # which gets the number that the half commit had
        assert other.overview().stored == 0
        other.workers.beat(WHO.id, BEAT)
        assert other.operator.audit(seconds=60).contradictions == ()
        assert not other.leases.holders()
    run.contents()

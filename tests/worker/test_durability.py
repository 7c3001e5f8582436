from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from shardgen.artifacts.folder_store import FolderStore
from shardgen.depth.base import Estimator
from shardgen.domain.lease import NoLease
from shardgen.domain.worker import WorkerState
from shardgen.machine.processes import new_identity
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import make_folders
from shardgen.worker.batch import BatchMaker, Stages
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.pipeline import Pipeline
from tests.artifacts.recorded_files import RecordedFiles
from tests.runs import coordinated
from tests.worker.parts import load_network, maker_of, open_composer

pytestmark = pytest.mark.slow
RULE = ["write", "fsync", "link", "unlink", "fsync_folder", "COMMIT"]
BATCHES = 12
Call = Callable[[], object]


@pytest.fixture(scope="module")
def estimator(planned_template: Path) -> Estimator:
    run = RunDirectory.open(planned_template / "run")
    return load_network(run)


class LateFiles(RecordedFiles):
    """A real file layer that does one call late: right after the next call of another kind."""

    def __init__(self, late: str = "", after: str = "") -> None:
        super().__init__()
        self._late, self._until = late, after
        self._held: list[Call] = []

    def _do(self, name: str, call: Call) -> None:
        if name == self._late:
            self._held.append(call)
            return
        call()
        if name == self._until:
            held, self._held = self._held, []
            for one in held:
                one()

    def _kept(self, descriptor: int) -> int:
        """The same open file under a descriptor of our own: the caller closes its own soon."""
        copy = os.dup(descriptor)
        self._names[copy] = self._names[descriptor]
        return copy

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._do("create", lambda: None)
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        copy, write = self._kept(descriptor), super().write
        self._do("write", lambda: write(copy, data))

    def fsync(self, descriptor: int) -> None:
        copy, fsync = self._kept(descriptor), super().fsync
        self._do("fsync", lambda: fsync(copy))

    def link(self, source: Path, target: Path) -> None:
        link = super().link
        self._do("link", lambda: link(source, target))

    def unlink(self, path: Path) -> None:
        unlink = super().unlink
        self._do("unlink", lambda: unlink(path))

    def fsync_folder(self, path: Path) -> None:
        fsync_folder = super().fsync_folder
        self._do("fsync_folder", lambda: fsync_folder(path))


def make_all(run: RunDirectory, estimator: Estimator, files: RecordedFiles) -> list[str]:
    """Make every batch by the real pipeline; file calls and the commits of receipts in one list."""
    plan, policy, identity = run.plan(), run.settings.lease_policy, new_identity("test")
    make_folders(run.artifacts)
    with run.database_manifest(plan) as manifest:
        event.listen(manifest._session.database.engine, "before_cursor_execute", _note_receipt)
        event.listen(
            manifest._session.database.engine, "commit", lambda connection: _note_commit(connection, files)
        )
        manifest.workers.register(identity)
        with Heartbeat(coordinated(manifest, identity), policy) as heartbeat:
            stages = Stages(
                recipe=recipe_of(plan),
                maker=maker_of(plan, open_composer(run), estimator),
                store=FolderStore(run.artifacts, files=files),
                manifest=manifest,
                heartbeat=heartbeat,
                between=lambda _done: None,
            )
            with BatchMaker(stages) as maker, Pipeline(maker, begin_batch=lambda: True) as pipeline:
                while not isinstance(lease := manifest.leases.lease(identity.id, policy), NoLease):
                    heartbeat.holds(lease)
                    heartbeat.now_is(WorkerState.WORKING)
                    assert pipeline.make(lease, manifest.receipts.pending_batches(lease))
                    heartbeat.holds(None)
    return files.calls


def _note_receipt(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
    if statement.startswith("INSERT INTO receipt"):
        connection.info["has receipt"] = True


def _note_commit(connection: Connection, files: RecordedFiles) -> None:
    if connection.info.pop("has receipt", False):
        files.calls.append("COMMIT")


def out_of_order(calls: list[str]) -> list[str]:
    """What was done for each artifact and its receipt, where that is not the rule."""
    wrong: list[str] = []
    found: list[str] | None = None  # nothing of an artifact yet: folders are made and synced before
    for call in calls:
        name, _, subject = call.partition(" ")
        if name == "create" and subject.startswith("batch-"):
            wrong += [] if found in (None, RULE) else [", ".join(found)]
            found = []
        elif found is not None and (name == "COMMIT" or subject.startswith(("batch-", "shard-"))):
            found += [] if name == "make_folder" else [name]
    return wrong if found == RULE else [*wrong, ", ".join(found or [])]


def test_every_batch_is_written_synced_linked_and_its_folder_synced_before_its_receipt_is_committed(
    run: RunDirectory, estimator: Estimator
) -> None:
    calls = make_all(run, estimator, LateFiles())
    assert out_of_order(calls) == []
    assert calls.count("COMMIT") == BATCHES
    assert len([call for call in calls if call.startswith("link batch-")]) == BATCHES


@pytest.mark.parametrize(
    ("late", "after"),
    [
        ("write", "fsync"),
        ("fsync", "link"),
        ("fsync", "never"),
        ("unlink", "fsync_folder"),
        ("fsync_folder", "create"),  # of the next batch, so after the receipt
        ("fsync_folder", "never"),
    ],
)
def test_a_call_that_is_moved_is_noticed(
    run: RunDirectory, estimator: Estimator, late: str, after: str
) -> None:
    files = LateFiles(late, after)
    assert out_of_order(make_all(run, estimator, files))

from __future__ import annotations

from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import event

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.artifact_folder import claim_folder
from shardgen.domain.plan import Plan
from shardgen.errors import PlanConflict
from shardgen.manifest import manifest as databases
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.port import Manifest
from tests import warm
from tests.conformance.conftest import in_a_bucket

PROCESSES = 4


def test_the_first_folder_stays_the_runs(manifest: Manifest) -> None:
    assert manifest.folder.identity() is None
    assert manifest.folder.claim("a" * 32) == "a" * 32
    assert manifest.folder.claim("b" * 32) == "a" * 32
    assert manifest.folder.identity() == "a" * 32
    manifest.folder.replace("b" * 32)
    # In a bucket record and artifacts are one: none can be put in the place of the other.
    assert manifest.folder.identity() == ("a" if in_a_bucket(manifest) else "b") * 32


def claim(
    database: DatabaseUrl, plan: Plan, root: Path, start: Barrier, answers: Queue[tuple[str, str]]
) -> None:
    """In a process of its own, as on a machine of its own: whether it may work, and where."""
    store = FolderStore(root)
    with databases.Manifest(database, plan) as manifest:
        start.wait(60)
        try:
            claim_folder(store, manifest.folder)
        except PlanConflict as error:
            answers.put(("refused", error.hint))
        else:
            answers.put(("works", root.name))


def claimed_at_once(database: DatabaseUrl, plan: Plan, roots: list[Path]) -> list[tuple[str, str]]:
    context = warm.context()
    start, answers = context.Barrier(len(roots)), context.Queue()
    processes = [context.Process(target=claim, args=(database, plan, root, start, answers)) for root in roots]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return sorted(found)


@pytest.mark.slow
def test_of_machines_that_start_at_once_with_folders_of_their_own_one_works(
    manifest: Manifest, database: DatabaseUrl, plan: Plan, tmp_path: Path
) -> None:
    found = claimed_at_once(database, plan, [tmp_path / f"machine-{number}" for number in range(PROCESSES)])
    assert [answer for answer, _ in found] == ["refused"] * (PROCESSES - 1) + ["works"]
    assert "[artifacts] url" in found[0][1]
    assert manifest.folder.identity() == FolderStore(tmp_path / found[-1][1]).identity()


@pytest.mark.slow
def test_machines_that_start_at_once_with_one_folder_all_work(
    manifest: Manifest, database: DatabaseUrl, plan: Plan, tmp_path: Path
) -> None:
    found = claimed_at_once(database, plan, [tmp_path / "shared"] * PROCESSES)
    assert found == [("works", "shared")] * PROCESSES
    assert manifest.folder.identity() == FolderStore(tmp_path / "shared").identity()


@pytest.mark.usefixtures("database")
def test_a_worker_that_starts_asks_the_manifest_once(manifest: Manifest, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "artifacts")
    claim_folder(store, manifest.folder)
    asked: list[str] = []
    assert isinstance(manifest, databases.Manifest)

    @event.listens_for(manifest._session.database.engine, "before_cursor_execute")
    def _asked(_c: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    claim_folder(store, manifest.folder)
    assert len([one for one in asked if "artifact_folder" in one]) == 1

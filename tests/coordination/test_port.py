from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest

from shardgen.coordination.base import Coordinator, OpenedRun, Seat
from shardgen.coordination.database import DatabaseCoordinator, DatabaseRun
from shardgen.coordination.folder.leases import FolderCoordinator
from shardgen.coordination.folder.run import FolderRun
from shardgen.coordination.open import open_run
from shardgen.domain.lease import Lease
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.machine.processes import new_identity
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import single
from tests.coordination.claim_files import FilesCoordinator, FilesRun

PACKAGE = Path(inspect.getfile(RunDirectory)).parent.parent


@pytest.mark.parametrize(
    ("port", "implementation"),
    [
        (OpenedRun, DatabaseRun),
        (OpenedRun, FolderRun),
        (OpenedRun, FilesRun),
        (Coordinator, DatabaseCoordinator),
        (Coordinator, FolderCoordinator),
        (Coordinator, FilesCoordinator),
    ],
)
def test_no_method_of_the_port_is_nothing_to_do(port: type, implementation: type) -> None:
    for name in port.__abstractmethods__:  # type: ignore[attr-defined]
        found = inspect.getattr_static(implementation, name)
        method = found.fget if isinstance(found, property) else inspect.unwrap(found)
        assert inspect.isfunction(method)
        source = inspect.getsource(method)
        (function,) = ast.parse(textwrap.dedent(source)).body
        assert isinstance(function, ast.FunctionDef)
        work = [one for one in function.body if not isinstance(one, ast.Delete | ast.Pass)]
        work = [
            one for one in work if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        ]
        constant = [
            one for one in work if isinstance(one, ast.Return) and isinstance(one.value, ast.Constant)
        ]
        assert len(work) > len(constant), f"{implementation.__name__}.{name}"


def test_nobody_outside_asks_whether_a_folder_is_shared() -> None:
    asking = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if "is_shared_folder" in path.read_text(encoding="utf-8")
    }
    assert asking == {"coordination", "settings"}  # settings: what the URL says


def test_a_worker_ends_a_slice_of_a_database_without_asking_for_a_lease_that_it_ended(
    run: RunDirectory,
) -> None:
    """Its last receipt ends the lease: whoever asked under it again would be told that it was taken over."""
    opened, policy = open_run(run), run.settings.lease_policy
    with opened.coordinator(Seat(identity=new_identity("a"))) as worker:
        worker.join(lambda _what: None)
        lease = worker.lease(policy)
        assert isinstance(lease, Lease)
        for batch in worker.portion(lease, batch_seconds=0.0):
            (receipt,) = single(batch, fence=lease.fence, worker="a").publish(opened.plan, run.artifacts)
            worker.manifest.receipts.record(lease, receipt)
        assert worker.is_missed
        assert worker.portion(lease, batch_seconds=1.0) == []
        assert not worker.release(lease)
        assert not worker.is_missed
        worker.leave(WorkerReport(state=WorkerState.STOPPED, note="done"))
    assert [one.row.note for one in opened.report().workers] == ["done"]

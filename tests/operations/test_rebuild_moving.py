from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.artifact_folder import claim_folder
from shardgen.errors import PlanConflict
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import WORKERS, single
from tests.conformance.conftest import identity
from tests.operations.lost_runs import receipts_of
from tests.postgres import new_schema
from tests.runs import shardgen


def test_a_run_that_was_begun_with_sqlite_moves_to_a_server(
    run: RunDirectory,
    tmp_path: Path,
    postgres_servers: Callable[[], URL],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = run.plan()
    with run.manifest(plan) as manifest:
        claim_folder(FolderStore(run.artifacts), manifest.folder)
        manifest.workers.register(identity(WORKERS["a"]))
        for _ in range(2):
            lease = manifest.leases.lease(WORKERS["a"], run.settings.lease_policy)
            for batch in manifest.receipts.pending_batches(lease):  # type: ignore[arg-type]
                (receipt,) = single(batch).publish(plan, run.artifacts)
                manifest.receipts.record(lease, receipt)  # type: ignore[arg-type]
    before = receipts_of(run)
    assert len(before) == 4
    run.artifacts.rename(tmp_path / "shared")
    settings = run.path / "shardgen.toml"
    text = settings.read_text(encoding="utf-8")
    text = text.replace("sqlite:///manifest.sqlite", "${SHARDGEN_MANIFEST}")
    settings.write_text(text.replace('url = "artifacts"', f'url = "{tmp_path}/shared"'), encoding="utf-8")
    with new_schema(postgres_servers()) as url:
        monkeypatch.setenv("SHARDGEN_MANIFEST", url)
        done = shardgen("rebuild", run.path)
        assert done.returncode == 0, done.stderr
        moved = RunDirectory.open(run.path)
        assert receipts_of(moved) == before
        with moved.manifest(plan) as manifest:
            claim_folder(FolderStore(moved.artifacts), manifest.folder)
            (tmp_path / "another").mkdir()
            with pytest.raises(PlanConflict):
                claim_folder(FolderStore(tmp_path / "another"), manifest.folder)

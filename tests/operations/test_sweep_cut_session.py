from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

from shardgen.domain.steps import Step, SweepStep
from shardgen.errors import ManifestBusy
from shardgen.manifest.manifest import create_manifest
from shardgen.operations.sweep import sweep
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import WORKERS, single
from tests.conformance.conftest import identity
from tests.postgres import new_schema


@pytest.fixture
def url(postgres_servers: Callable[[], URL]) -> Iterator[str]:
    with new_schema(postgres_servers()) as made:
        yield made


@pytest.fixture
def served_run(run: RunDirectory, url: str, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """The planned run with its manifest on a server."""
    monkeypatch.setenv("SHARDGEN_MANIFEST", url)
    settings = run.path / "shardgen.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("sqlite:///manifest.sqlite", "${SHARDGEN_MANIFEST}"), encoding="utf-8")
    made = RunDirectory.open(run.path)
    assert create_manifest(made.database, made.plan())
    return made


def end_sessions(url: str) -> None:
    """Let the server end all sessions of this program, as an administrator or a failing network does."""
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'shardgen %'"
        )


def publish_orphans(run: RunDirectory, count: int) -> list[Path]:
    """Whole artifacts that no receipt names and no lease could still record."""
    plan = run.plan()
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity(WORKERS["a"]))
    receipts = [single(batch).publish(plan, run.artifacts)[0] for batch in range(count)]
    return [run.artifacts / receipt.artifact.name for receipt in receipts]


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_sweep_removes_nothing_more_once_its_session_was_cut(
    served_run: RunDirectory, url: str, removed: int
) -> None:
    paths = publish_orphans(served_run, 3)
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        if steps == [SweepStep.LISTED] + [SweepStep.REMOVED] * removed:
            end_sessions(url)

    with pytest.raises(ManifestBusy, match="cut in the middle") as caught:
        sweep(served_run, remove=True, on_step=on_step)
    assert caught.value.hint.startswith("run the command again")
    assert sum(not path.exists() for path in paths) == removed
    assert len(sweep(served_run, remove=True).orphans) == 3 - removed
    assert not any(path.exists() for path in paths)

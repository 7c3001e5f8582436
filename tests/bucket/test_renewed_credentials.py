"""Credentials that expire while a worker works: it waits and says what to renew, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardgen.coordination.bucket import probe as probing
from shardgen.coordination.open import open_directory
from shardgen.domain.steps import BatchStep, Step
from shardgen.errors import StoreRefuses
from shardgen.machine.processes import new_identity
from shardgen.operations.merge import merge_run
from shardgen.operations.plan import make_plan
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.retry import Retry
from shardgen.worker.worker import Ending, Worker, WorkerOptions, WorkOutcome
from tests.bucket import proxy
from tests.bucket.ignoring_server import ignoring_server
from tests.bucket.proxy import Proxy
from tests.logged import logged
from tests.runs import make_run, plan_run, sha256_of

pytestmark = pytest.mark.slow


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """The wire to a store that is good enough for one worker."""
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probing.Probed, "refuse", lambda _self: None)
    with ignoring_server() as server, Proxy(server.port) as opened:
        for name, value in server.environment(opened.port).items():
            monkeypatch.setenv(name, value)
        yield opened


@pytest.fixture
def run(between: Proxy, tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path, changes={"manifest.url": '"s3://people/run"'})
    make_plan(run, {})
    return open_directory(run.path)


class Watched(Worker):
    """A worker of this process, after whose third batch the store refuses everything."""

    def __init__(self, run: RunDirectory, between: Proxy) -> None:
        self.said: list[str] = []
        self.wire, self.recorded = between, 0
        super().__init__(run, WorkerOptions(identity=new_identity("w")), on_step=self._on_own_step)

    def _heard(self, line: str) -> None:
        self.said.append(line)

    def work(self) -> WorkOutcome:
        with logged(self._heard):
            return super().work()

    def _on_own_step(self, step: Step) -> None:
        self.recorded += step is BatchStep.RECORDED
        if step is BatchStep.RECORDED and self.recorded == 3:
            self.wire.refuse(proxy.EXPIRED)

    @property
    def waits(self) -> list[str]:
        return [line for line in self.said if "trying again for about" in line]


def test_a_worker_waits_for_renewed_credentials_and_goes_on(
    run: RunDirectory, between: Proxy, tmp_path: Path
) -> None:
    class Renewing(Watched):
        def _heard(self, line: str) -> None:
            super()._heard(line)
            if "trying again for about" in line:
                between.refuse(None)  # somebody renews them

    worker = Renewing(run, between)
    assert worker.work().ending is Ending.FINISHED
    assert "the credentials have expired" in worker.waits[0]
    assert "AWS_SESSION_TOKEN" in worker.waits[0]
    assert any(line.startswith("continuing after") for line in worker.said)
    (tmp_path / "local").mkdir()
    local = plan_run(make_run(tmp_path / "local"))
    assert Worker(local, WorkerOptions()).work().ending is Ending.FINISHED
    zips = [merge_run(one, None, allow_dead_letters=False).path for one in (run, local)]
    assert sha256_of(zips[0]) == sha256_of(zips[1])


def test_a_worker_that_waited_in_vain_says_how_to_go_on_and_what_is_stored_stays(
    run: RunDirectory, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Retry.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "limit_seconds", 0.5)
    worker = Watched(run, between)
    with pytest.raises(StoreRefuses, match="have expired") as refused:
        worker.work()
    assert "then run the same command again; nothing recorded is lost" in refused.value.hint
    between.refuse(None)
    assert report(open_directory(run.path)).stored >= 3 * 4
    assert Worker(run, WorkerOptions()).work().ending is Ending.FINISHED

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardgen.coordination.report import Report
from shardgen.domain.steps import BatchStep
from shardgen.domain.worker import ShownState, WorkerRow, WorkerState
from shardgen.machine.processes import gone
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests.halted_worker import GO, THERE
from tests.invariants import counter_faults, zip_faults
from tests.photographs import write_photographs
from tests.postgres import Server, new_schema
from tests.runs import make_run, sha256_of, shardgen
from tests.warm import Command, start

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 600.0
SAMPLES = 2 * 2 * 2 * 20
SETTINGS = {
    "compose.grid": "[5, 4]",
    "shards.size": "80",
    "shards.slice_batches": "4",
    "shards.batch": "8",
    "lease.heartbeat_seconds": "0.5",
}
NEVER = "600"  # seconds of a lease that ends by a look at its process, or not at all


@dataclass(slots=True, kw_only=True)
class Machines:
    """Two run directories with sources of their own, one database, one folder for artifacts."""

    folder: Path
    first: RunDirectory
    second: RunDirectory
    sources: Path
    environment: dict[str, str]
    started: list[Command] = field(default_factory=list)

    def folders_of(self, run: RunDirectory) -> list[str]:
        """The options by which the second machine says where its photographs are."""
        if run is self.first:
            return []
        return [
            "--foregrounds",
            f"{self.sources}/foregrounds",
            "--backgrounds",
            f"{self.sources}/backgrounds",
        ]

    def worker(self, run: RunDirectory, *options: str) -> Command:
        """Start `shardgen worker`."""
        return self._start("shardgen", "worker", run.path, *self.folders_of(run), *options)

    def halted_worker(
        self, run: RunDirectory, step: BatchStep, nth: int, *, on_another_host: bool = False
    ) -> tuple[Command, Path]:
        """Start a worker that waits at a step, and wait until it does; also its folder."""
        folder = self.folder / f"halted-{len(self.started)}"
        folder.mkdir()
        words: list[str | Path] = [run.path, folder, f"{type(step).__name__}.{step.name}", str(nth)]
        process = self._start("tests.halted_worker", *words, *["another-machine"] * on_another_host)
        self.wait_for((folder / THERE).exists, process)
        return process, folder

    def _start(self, module: str, *words: str | Path) -> Command:
        said = self.folder / f"said-{len(self.started)}"
        process = start(module, words, environment=self.environment, said=said)
        self.started.append(process)
        return process

    def wait_for(self, condition: Callable[[], bool], *processes: Command) -> None:
        """Wait for a condition; none of these processes may end before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            ended = [one.name for one in processes if one.poll() is not None]
            assert not ended or condition(), f"{ended}: {self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def row_of(self, process: Command) -> WorkerRow | None:
        """What the manifest knows of a worker."""
        rows = [one.row for one in report(self.first).workers]
        return next((row for row in rows if row.identity.pid == process.pid), None)

    def is_at_work(self, process: Command) -> bool:
        """Whether it has got through its start."""
        row = self.row_of(process)
        return row is not None and row.state is not WorkerState.STARTING

    def said(self) -> str:
        """What all workers have said."""
        return "\n".join(
            path.read_text(encoding="utf-8", errors="replace") for path in sorted(self.folder.glob("said-*"))
        )

    def finish(self, undisturbed: str) -> Report:
        """Merge on the first machine, look from the second; nothing may be lost, doubled or different."""
        merged = shardgen("merge", self.first.path)
        assert merged.returncode == 0, merged.stderr
        looked = shardgen("status", self.second.path, "--json")
        assert looked.returncode == 0, looked.stderr
        counts = {"planned": SAMPLES, "stored": SAMPLES, "dead_letters": 0, "pending": 0}
        assert json.loads(looked.stdout)["samples"] == counts
        plan = self.second.plan()
        assert counter_faults(self.second.database, plan) == []
        zip_file = self.first.path / "dataset.zip"
        assert zip_faults(zip_file, plan, set()) == []
        assert sha256_of(zip_file) == undisturbed
        assert shardgen("verify", self.first.path).returncode == 0
        assert names_in(self.second.path) == {"plan.json", "shardgen.toml"}
        assert names_in(self.first.path) == {"dataset.zip", "merged.json", "plan.json", "shardgen.toml"}
        return report(self.second)


def names_in(run_dir: Path) -> set[str]:
    """What lies in a run directory besides its own workers' logs."""
    return {path.name for path in run_dir.iterdir()} - {"logs"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the same plan's zip, made by one process on a SQLite manifest."""
    run = make_run(tmp_path_factory.mktemp("undisturbed"), changes=SETTINGS)
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    return sha256_of(run.path / "dataset.zip")


@pytest.fixture
def machines(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Machines]:
    shared = tmp_path / "shared"
    shared.mkdir()
    changes = {
        "manifest.url": '"${SHARDGEN_MANIFEST}"',
        "artifacts.url": json.dumps(str(shared / "artifacts")),
        "lease.seconds": getattr(request, "param", NEVER),
    }
    first = make_run(tmp_path / "one", changes=SETTINGS | changes)
    second = tmp_path / "two"
    second.mkdir()
    shutil.copy(first.path / "shardgen.toml", second)
    sources = tmp_path / "elsewhere"
    write_photographs(sources)
    # What the settings say of the sources is true on the first machine only.
    text = (second / "shardgen.toml").read_text(encoding="utf-8")
    text = text.replace(str(tmp_path / "one" / "sources"), "/nowhere")
    (second / "shardgen.toml").write_text(text, encoding="utf-8")
    with new_schema(postgres_server.url) as url:
        monkeypatch.setenv("SHARDGEN_MANIFEST", url)
        made = Machines(
            folder=tmp_path,
            first=first,
            second=RunDirectory.open(second),
            sources=sources,
            environment={"SHARDGEN_MANIFEST": url},
        )
        planned = shardgen("plan", first.path)
        assert planned.returncode == 0, planned.stderr
        yield made
        for process in made.started:
            process.kill()
            process.wait()


def kill(process: Command) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_two_machines_lose_nothing_by_a_kill_and_a_restarted_server(
    machines: Machines,
    undisturbed: str,
    postgres_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    # An artifact is published and not yet recorded: its next word goes to the server.
    waiting, folder = machines.halted_worker(machines.first, BatchStep.PUBLISHED, 2)
    for kind in ("foregrounds", "backgrounds"):
        machines.environment[f"SHARDGEN_{kind.upper()}"] = str(machines.sources / kind)
    victim, _ = machines.halted_worker(machines.second, BatchStep.LINKED, 2)
    held = machines.row_of(victim)
    kill(victim)
    assert held is not None
    assert held.shard is not None
    for kind in ("foregrounds", "backgrounds"):
        del machines.environment[f"SHARDGEN_{kind.upper()}"]
    heir = machines.worker(machines.second)
    machines.wait_for(lambda: machines.is_at_work(heir), heir, waiting)
    postgres_server.stop(mode)
    (folder / GO).touch()
    postgres_server.start()
    assert waiting.wait(PATIENCE_SECONDS) == 0, machines.said()
    assert heir.wait(PATIENCE_SECONDS) == 0, machines.said()
    after = machines.finish(undisturbed)
    # No lease has expired: the dead worker's slice was taken over because its process is gone.
    states = {one.row.identity.pid: one.state for one in after.workers}
    assert states[victim.pid] is ShownState.DEAD
    with machines.first.manifest(machines.first.plan(), read_only=True) as manifest:
        slices = [(receipt.shard, receipt.slice, receipt.fence) for receipt in manifest.receipts.receipts()]
    fences = {fence for shard, slice_, fence in slices if (shard, slice_) == (held.shard, held.slice)}
    assert fences == {1, 2}


@pytest.mark.parametrize("machines", ["8"], indirect=True)
def test_the_slice_of_a_machine_that_died_is_free_when_its_lease_has_expired(
    machines: Machines, undisturbed: str
) -> None:
    victim, _ = machines.halted_worker(machines.first, BatchStep.LINKED, 2, on_another_host=True)
    kill(victim)
    row = machines.row_of(victim)
    assert row is not None
    assert row.identity.host.endswith("/another-machine")
    assert gone([row.identity]) == []
    workers = [machines.worker(machines.second), machines.worker(machines.first)]
    for worker in workers:
        assert worker.wait(PATIENCE_SECONDS) == 0, machines.said()
    machines.finish(undisturbed)


def test_a_machine_with_other_photographs_is_refused_before_it_leases(machines: Machines) -> None:
    write_photographs(machines.sources, seed=7)
    refused = shardgen("worker", machines.second.path, *machines.folders_of(machines.second))
    assert refused.returncode == 10, refused.stderr
    assert "foreground-000.png" in refused.stderr
    assert report(machines.first).stored == 0


def test_a_machine_with_an_artifact_folder_of_its_own_is_refused_before_it_leases(
    machines: Machines, undisturbed: str
) -> None:
    settings = machines.second.path / "shardgen.toml"
    shared = settings.read_text(encoding="utf-8")
    own = shared.replace(json.dumps(str(machines.first.artifacts)), '"artifacts"')
    assert own != shared
    settings.write_text(own, encoding="utf-8")
    (machines.second.path / "artifacts").mkdir()
    waiting, folder = machines.halted_worker(machines.first, BatchStep.LINKED, 1)
    refused = shardgen("worker", machines.second.path, *machines.folders_of(machines.second))
    assert refused.returncode == 10, refused.stderr
    error, hint = refused.stderr.splitlines()[-2:]
    assert error.startswith(f"error: {machines.second.path}/artifacts: is not the folder that this run's")
    assert hint.startswith("hint: set [artifacts] url to a folder that every machine reaches")
    assert len(report(machines.first).workers) == 1
    (machines.second.path / "artifacts").rmdir()  # nothing was put into it
    assert names_in(machines.second.path) == {"shardgen.toml"}
    settings.write_text(shared, encoding="utf-8")
    joined = machines.worker(machines.second)
    machines.wait_for(lambda: machines.is_at_work(joined), joined, waiting)
    (folder / GO).touch()
    for worker in (waiting, joined):
        assert worker.wait(PATIENCE_SECONDS) == 0, machines.said()
    machines.finish(undisturbed)

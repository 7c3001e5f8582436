from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from shardgen.artifacts.names import ArtifactName
from shardgen.coordination.base import Seat
from shardgen.coordination.open import open_run
from shardgen.domain.claims import GENERATION
from shardgen.domain.wording import counted
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.machine.processes import new_identity
from shardgen.settings.run_directory import RunDirectory
from tests.runs import at_step, make_run, sha256_of, shardgen

CHANGES = {
    "manifest.url": '"folder:"',
    "folder.scan_seconds": "0.5",
    "folder.settle_seconds": "1",
    "folder.segment_seconds": "4",
    "folder.segment_batches": "2",
    "folder.silent_seconds": "15",
    "shards.slice_batches": "3",
}
Ran = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """One shared folder, and machines that are told apart by their own disks: their cache folders."""

    folder: Path
    run: RunDirectory

    def on(self, machine: str, verb: str, *words: str | Path) -> Ran:
        environment = {"SHARDGEN_CACHE": str(self.folder / machine)}
        return shardgen(verb, self.run.path, *words, environment=environment)

    def status(self, machine: str) -> dict[str, Any]:
        ran = self.on(machine, "status", "--json")
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    def merged(self, machine: str) -> str:
        zip_path = self.folder / f"{machine}.zip"
        ran = self.on(machine, "merge", "-o", zip_path)
        assert ran.returncode == 0, ran.stderr
        return sha256_of(zip_path)

    def segments(self) -> list[Path]:
        return sorted(self.run.path.glob("workers/*/shard-*/*.zip"))


def planned(folder: Path, **more: str) -> Machines:
    folder.mkdir(parents=True, exist_ok=True)
    machines = Machines(folder=folder, run=make_run(folder, changes=CHANGES | more))
    ran = machines.on("owner", "plan")
    assert ran.returncode == 0, ran.stderr
    return replace(machines, run=RunDirectory.open(machines.run.path))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the zip that a run with a manifest in SQLite makes of the same plan."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = make_run(folder, changes={"shards.slice_batches": CHANGES["shards.slice_batches"]})
    ran = shardgen("run", run.path, "-o", folder / "it.zip")
    assert ran.returncode == 0, ran.stderr
    return sha256_of(folder / "it.zip")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """A run that one machine has made; tests that change it copy it."""
    machines = planned(tmp_path_factory.mktemp("made"))
    ran = machines.on("first", "worker")
    assert ran.returncode == 0, ran.stderr
    assert "costs what it made since its last segment, 2 batches" in ran.stderr
    return machines


@pytest.fixture
def copied(made: Machines, tmp_path: Path) -> Machines:
    shutil.copytree(made.folder, tmp_path / "copy")
    return Machines(folder=tmp_path / "copy", run=RunDirectory.open(tmp_path / "copy" / "run"))


@pytest.mark.slow
def test_every_machine_sees_and_merges_the_same_bytes(made: Machines, undisturbed: str) -> None:
    first, other = made.status("first"), made.status("another")
    assert first["samples"] == other["samples"] == {
        "planned": 48, "stored": 48, "dead_letters": 0, "pending": 0,
    }  # fmt: skip
    assert other["shared_folder"]["waiting_batches"] == 0
    assert [worker["state"] for worker in other["workers"]] == ["stopped"]
    assert made.merged("first") == made.merged("another") == undisturbed


@pytest.mark.slow
def test_a_worker_sees_what_all_machines_have_made_and_who_works(
    copied: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDGEN_CACHE", str(copied.folder / "another"))
    opened = open_run(RunDirectory.open(copied.run.path))
    with opened.coordinator(Seat(identity=new_identity("late"))) as worker:
        worker.join(lambda _what: None)
        seen = worker.overview()
        policy = opened.run.settings.lease_policy
        assert worker.seconds_between_overviews(policy) == float(CHANGES["folder.scan_seconds"])
        worker.leave(WorkerReport(state=WorkerState.STOPPED))
    assert seen.stored == 48
    states = {row.identity.id.partition("-")[0]: row.state for row in seen.workers}
    assert states.pop("late", WorkerState.STARTING) is WorkerState.STARTING
    assert list(states.values()) == [WorkerState.STOPPED]


@pytest.mark.slow
def test_the_folder_holds_nothing_but_files_with_one_writer(made: Machines) -> None:
    names = {path.name for path in made.run.path.iterdir()}
    assert names <= {"shardgen.toml", "plan.json", "workers"}
    for folder in (made.run.path / "workers").iterdir():
        assert {path.name.rstrip("0123456789") for path in folder.iterdir()} <= {"notices-", "shard-"}
    most = max(int(CHANGES["folder.segment_batches"]), 1)
    for path in made.segments():
        name = ArtifactName.parse(f"{path.parent.name}/{path.name}")
        assert name is not None
        assert len(name.batches) <= most


@pytest.mark.slow
def test_a_damaged_segment_is_found_put_back_and_made_again(copied: Machines, undisturbed: str) -> None:
    assert copied.on("first", "verify").returncode == 0
    path = copied.segments()[1]
    name = ArtifactName.parse(f"{path.parent.name}/{path.name}")
    assert name is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    found = copied.on("first", "verify", "--requeue")
    assert found.returncode == 21, found.stderr
    assert path.name in found.stdout
    assert f"requeued {counted(len(name.batches), 'batch')}, " in found.stderr
    assert copied.status("another")["samples"]["pending"] == 4 * len(name.batches)
    ran = copied.on("second", "worker")
    assert ran.returncode == 0, ran.stderr
    again = [path for path in copied.segments() if f".f{GENERATION + 1}." in path.name]
    assert again
    assert copied.merged("first") == copied.merged("another") == undisturbed


@pytest.mark.slow
def test_a_machine_that_never_read_a_segment_does_not_count_it_while_it_is_cut_short(
    copied: Machines, undisturbed: str
) -> None:
    path = copied.segments()[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    late = copied.status("another")
    assert late["samples"]["pending"] > 0
    assert late["shared_folder"]["arriving_files"] == 1
    refused = copied.on("another", "merge")
    assert refused.returncode == 14
    assert "pending" in refused.stderr
    path.write_bytes(whole)
    assert copied.merged("another") == undisturbed


@pytest.mark.slow
def test_a_segment_that_disappears_is_no_loss_of_what_was_seen(copied: Machines) -> None:
    assert copied.status("first")["samples"]["stored"] == 48
    path = copied.segments()[0]
    away = copied.folder / "away.zip"
    path.rename(away)
    assert copied.status("first")["samples"]["stored"] == 48
    refused = copied.on("first", "merge")
    assert refused.returncode == 20
    assert "not visible now" in refused.stderr
    away.rename(path)
    assert copied.on("first", "merge").returncode == 0


@pytest.mark.slow
def test_a_segment_whose_name_changes_after_it_was_seen_is_merged_all_the_same(
    copied: Machines, undisturbed: str
) -> None:
    path = copied.segments()[0]
    other = path.with_name(f"{path.stem} (1).zip")
    path.rename(other)
    assert copied.status("another")["samples"]["stored"] == 48
    other.rename(path)
    assert copied.merged("another") == undisturbed
    assert copied.status("another")["shared_folder"]["duplicated_batches"] == 0


@pytest.mark.slow
def test_sweep_is_refused(made: Machines) -> None:
    refused = made.on("first", "sweep", "--yes")
    assert refused.returncode == 13
    assert "shared folder cannot be swept" in refused.stderr
    assert "hint:" in refused.stderr


@pytest.mark.slow
def test_a_lost_index_is_made_again(copied: Machines, undisturbed: str) -> None:
    shutil.rmtree(copied.folder / "first")
    assert copied.on("first", "worker").returncode == 0  # nothing is left: it looks, and ends
    assert copied.merged("first") == undisturbed


@pytest.mark.slow
def test_a_worker_with_a_limit_publishes_and_releases(tmp_path: Path) -> None:
    machines = planned(tmp_path)
    ran = machines.on("first", "worker", "--max-batches", "2")
    assert ran.returncode == 0, ran.stderr
    seen = machines.status("another")
    assert seen["samples"]["stored"] == 8
    assert sum(shard["slices"]["leased"] + shard["slices"]["expired"] for shard in seen["shards"]) == 0
    none = machines.on("first", "worker", "--deadline", "0.5s")
    assert none.returncode == 0, none.stderr
    assert "limit is reached" in none.stderr
    claims = {path.name.split(".", 1)[1] for path in machines.run.path.glob("workers/*/*/*.claim.*")}
    ended = {
        path.name.split(".", 1)[1].replace(kind, "claim")
        for kind in ("ended", "done")
        for path in machines.run.path.glob(f"workers/*/*/*.{kind}.*")
    }
    assert claims <= {name.replace("ended", "claim") for name in ended}


@pytest.mark.slow
def test_dead_letters_are_tried_again_on_another_machine(tmp_path: Path, undisturbed: str) -> None:
    machines = planned(tmp_path)
    environment = {"SHARDGEN_CACHE": str(tmp_path / "first"), "DEAD_SAMPLES": "5,21"}
    ran = at_step("worker", machines.run.path, "-", environment=environment)
    assert ran.returncode == 0, ran.stderr
    assert machines.status("another")["samples"]["dead_letters"] == 2
    assert machines.on("another", "merge").returncode == 15
    letters = json.loads(machines.on("another", "dead-letters", "--json").stdout)
    assert [letter["sample"] for letter in letters["dead_letters"]] == [5, 21]
    put_back = machines.on("another", "requeue", "--dead-letters")
    assert put_back.returncode == 0, put_back.stderr
    assert machines.status("first")["samples"] == {
        "planned": 48, "stored": 40, "dead_letters": 0, "pending": 8,
    }  # fmt: skip
    assert machines.on("first", "worker").returncode == 0
    assert machines.merged("another") == undisturbed


@pytest.mark.slow
def test_run_makes_and_merges_with_two_workers_of_one_machine(tmp_path: Path, undisturbed: str) -> None:
    machines = planned(tmp_path)
    ran = machines.on("first", "run", "--workers", "2", "-o", tmp_path / "it.zip")
    assert ran.returncode == 0, ran.stderr
    assert sha256_of(tmp_path / "it.zip") == undisturbed
    assert machines.status("another")["shared_folder"]["duplicated_batches"] == 0


@pytest.mark.slow
def test_a_killed_workers_checkpoints_are_published_by_the_next(tmp_path: Path, undisturbed: str) -> None:
    machines = planned(tmp_path, **{"folder.segment_batches": "3", "folder.segment_seconds": "5"})
    environment = {"SHARDGEN_CACHE": str(tmp_path / "first")}
    died = at_step("worker", machines.run.path, "BatchStep.RECORDED", nth=2, environment=environment)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not machines.segments()
    assert machines.status("first")["shared_folder"]["waiting_batches"] == 2
    merge = machines.on("first", "merge")  # which publishes first, so that what is missing is true
    assert merge.returncode == 14
    assert machines.status("another")["samples"]["stored"] == 8
    assert machines.on("first", "worker").returncode == 0
    assert machines.status("another")["shared_folder"]["duplicated_batches"] == 0
    assert machines.merged("another") == undisturbed


def _wait(until: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.mark.slow
def test_sigterm_publishes_what_is_made_and_gives_the_slice_back(tmp_path: Path) -> None:
    machines = planned(tmp_path, **{"compose.grid": "[16, 16]", "shards.size": "4000"})
    process = subprocess.Popen(
        [sys.executable, "-m", "shardgen", "worker", machines.run.path],
        env={**os.environ, "SHARDGEN_CACHE": str(tmp_path / "first")},
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait(lambda: len(machines.segments()) > 2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    seen = machines.status("first")
    assert seen["shared_folder"]["waiting_batches"] == 0
    assert sum(shard["slices"]["leased"] for shard in seen["shards"]) == 0


AUDITED = """
import os, sys
from pathlib import Path

shared = os.path.realpath(os.environ["SHARED"])
wrong = []

def path_of(thing):
    if isinstance(thing, int):
        try:
            return os.readlink(f"/proc/self/fd/{thing}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(thing)) if isinstance(thing, (str, bytes, os.PathLike)) else ""

def inside(thing):
    return path_of(thing).startswith(shared + "/")

def hook(event, args):
    if event.startswith("fcntl."):
        if inside(args[0]):
            wrong.append((event, path_of(args[0])))
    elif event in ("os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate"):
        if any(inside(one) for one in args if not isinstance(one, int)):
            wrong.append((event, args))
    elif event == "open" and inside(args[0]):
        flags = args[2]
        if flags & (os.O_WRONLY | os.O_RDWR) and not flags & os.O_EXCL:
            wrong.append((event, args))

sys.addaudithook(hook)
end = os._exit
os._exit = lambda code: end(code if not wrong else (print(wrong, file=sys.stderr), 99)[1])
from shardgen.cli.app import main
main()
"""


@pytest.mark.slow
def test_a_worker_does_nothing_to_the_folder_but_make_new_files(tmp_path: Path) -> None:
    machines = planned(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", AUDITED, "worker", str(machines.run.path)],
        env={**os.environ, "SHARDGEN_CACHE": str(tmp_path / "first"), "SHARED": str(machines.run.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from shardgen.domain.receipt import DeadLetter
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests import poison
from tests.runs import make_run, plan_run, shardgen

SAMPLES = 2 * 2 * 2 * 6  # in shards of 20, slices of 8, batches of 4
SHORT_LEASES = {"lease.seconds": "6", "lease.heartbeat_seconds": "1", "lease.stall_seconds": "6"}


@pytest.fixture
def planned(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path, changes=SHORT_LEASES)
    return plan_run(run)


def letters(run: RunDirectory) -> list[DeadLetter]:
    with run.manifest(run.plan(), read_only=True) as manifest:
        return list(manifest.receipts.dead_letters())


def images(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if "/" in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason", "trace", "restarts"),
    [
        ("raise", "compose", "ZeroDivisionError: made to fail", 0),
        ("nan", "non-finite", "NaN", 0),
        ("kill", "killed-process", "its process ended", 5),
        ("hang", "hung", "in _hang\n    time.sleep(3600)", 5),
        ("freeze", "hung", "no sign of life", 5),
    ],
)
def test_a_poisoned_sample_becomes_one_dead_letter_and_every_other_sample_is_made(
    planned: RunDirectory, undisturbed_zip: Path, kind: str, reason: str, trace: str, restarts: int
) -> None:
    done = shardgen(
        "run", planned.path, "--allow-dead-letters", environment=poison.environment(kind, 9), timeout=900
    )
    assert done.returncode == 0, done.stderr
    (letter,) = letters(planned)
    assert (letter.sample, letter.reason.value) == (9, reason)
    assert trace in letter.detail, letter.detail
    assert restarts <= done.stderr.count("starts again") <= 2 * restarts, done.stderr
    found, whole = images(planned.path / "dataset.zip"), images(undisturbed_zip)
    missing = {name for name in whole if "/0000009." in name}
    assert len(missing) == 3
    assert found == {name: data for name, data in whole.items() if name not in missing}

    if kind != "raise":  # what is to be done with a dead letter is the same for all of them
        return
    listed = shardgen("dead-letters", planned.path, "--json")
    (row,) = json.loads(listed.stdout)["dead_letters"]
    assert (row["sample"], row["batch"], row["reason"]) == (9, 2, reason)
    refused = shardgen("merge", planned.path)
    assert refused.returncode == 15
    assert shardgen("requeue", planned.path, "--dead-letters").returncode == 0
    healed = shardgen("run", planned.path)
    assert healed.returncode == 0, healed.stderr
    assert (planned.path / "dataset.zip").read_bytes() == undisturbed_zip.read_bytes()


@pytest.mark.slow
def test_neighbours_that_share_a_deadly_photograph_are_all_found_and_no_innocent_with_them(
    planned: RunDirectory, undisturbed_zip: Path
) -> None:
    environment = poison.environment("kill", 8, 9, 10)  # a batch starts at 8
    done = shardgen("run", planned.path, "--allow-dead-letters", environment=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    assert [letter.sample for letter in letters(planned)] == [8, 9, 10]
    found, whole = images(planned.path / "dataset.zip"), images(undisturbed_zip)
    assert len(found) == len(whole) - 9
    assert all(whole[name] == data for name, data in found.items())


@pytest.mark.slow
def test_a_network_that_always_raises_is_tried_three_times_said_once_and_blocks_nothing(
    planned: RunDirectory, undisturbed_zip: Path
) -> None:
    done = shardgen("run", planned.path, environment=poison.environment("broken", 0), timeout=900)
    assert done.returncode == 14, done.stderr
    said = done.stderr.splitlines()
    assert sum("starts again" in line for line in said) == 2, done.stderr
    error = "computing fails for every input: ZeroDivisionError('this network always raises')"
    first, last = (line for line in said if error in line)
    assert first.startswith("error: ")
    assert last.startswith("error: 48 of 48 samples are pending; worker-0 failed 3 times in the same way: ")
    assert said[-1].startswith(f"hint: shardgen doctor {planned.path} checks the device")
    assert letters(planned) == []
    assert report(planned).overview.blocked_total == 0
    healed = shardgen("run", planned.path)
    assert healed.returncode == 0, healed.stderr
    assert (planned.path / "dataset.zip").read_bytes() == undisturbed_zip.read_bytes()


@pytest.mark.slow
def test_a_slice_whose_batch_always_raises_is_blocked_with_its_reason_and_all_others_are_made(
    tmp_path: Path, undisturbed_zip: Path
) -> None:
    planned = plan_run(make_run(tmp_path, changes=SHORT_LEASES | {"lease.max_attempts": "4"}))
    environment = poison.environment("throw", *range(20, 24))  # the first batch of shard 1
    done = shardgen("run", planned.path, environment=environment, timeout=900)
    assert done.returncode == 14, done.stderr
    assert done.stderr.count("starts again") in (3, 4)
    assert done.stderr.count("error: computing failed for every sample of a batch") == 1
    assert letters(planned) == []
    assert report(planned).stored == SAMPLES - 8
    shown = shardgen("status", planned.path)
    assert "4 attempts in a row made no progress" in shown.stdout
    assert "this network raises now" in " ".join(shown.stdout.split())
    assert shardgen("merge", planned.path).returncode == 14
    assert shardgen("requeue", planned.path, "--blocked").returncode == 0
    healed = shardgen("run", planned.path)
    assert healed.returncode == 0, healed.stderr
    assert (planned.path / "dataset.zip").read_bytes() == undisturbed_zip.read_bytes()

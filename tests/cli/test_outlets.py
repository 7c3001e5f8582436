"""Output that nobody takes: exit 1 is for bugs, and a command's own exit code says more than that."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from shardgen.cli.commands import LINES
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.artifacts.attempts import single
from tests.conformance.conftest import POLICY
from tests.runs import shardgen

COMMANDS = [
    "--help",
    "status",
    "status --json",
    "verify",
    "verify --json",
    "plan",
    "dead-letters",
    "--version",
]
CODES = {"verify": 21, "verify --json": 21}

pytestmark = pytest.mark.slow  # each test starts commands


@pytest.fixture
def damaged(run: RunDirectory) -> RunDirectory:
    """One artifact is recorded and gone, so `verify` has a finding; more lines than a pipe's reader takes."""
    plan = run.plan()
    with run.manifest(plan) as manifest:
        lease = manifest.leases.lease(WorkerId("host-a-aaaaaaaa"), POLICY)
        assert isinstance(lease, Lease)
        for batch in manifest.receipts.pending_batches(lease):
            (receipt,) = single(batch).publish(plan, run.artifacts)
            manifest.receipts.record(lease, receipt)
            (run.artifacts / receipt.artifact.name).unlink()
    return run


def said(command: str, run: Path, redirection: str) -> tuple[int, str]:
    """Exit code and stderr of a command line in a shell, of its first command."""
    name, *options = command.split()
    words = [command] if name.startswith("-") else [name, shlex.quote(str(run)), *options]
    line = (
        f"{shlex.quote(sys.executable)} -m shardgen {' '.join(words)} {redirection}; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_an_error_unless_the_command_has_a_worse_one(
    damaged: RunDirectory, command: str
) -> None:
    code, errors = said(command, damaged.path, "> /dev/full")
    assert code == CODES.get(command, 31), errors
    assert f"stdout: the output cannot be written ({os.strerror(errno.ENOSPC)})" in errors
    assert "bug" not in errors
    assert "Traceback" not in errors
    assert "error: " in errors
    assert "hint: " in errors


# Streams that lead nowhere from the start are every command's in one place: the help, a result, a finding.
@pytest.mark.parametrize(
    ("redirection", "lost", "command"),
    [
        *(("| true", 141, command) for command in COMMANDS),
        *((">&-", 0, command) for command in ("--help", "status", "verify")),
        *(("2>&-", 0, command) for command in ("status", "verify")),
        *(("> /dev/null 2> /dev/full", 0, command) for command in ("status", "verify")),
    ],
)
def test_a_reader_that_has_gone_is_no_bug(
    damaged: RunDirectory, redirection: str, lost: int, command: str
) -> None:
    code, errors = said(command, damaged.path, redirection)
    assert code in ({CODES[command]} if command in CODES else {0, lost}), errors
    assert "bug" not in errors
    assert "Exception" not in errors


def test_verify_puts_back_what_is_bad_though_nobody_reads(damaged: RunDirectory) -> None:
    code, errors = said("verify --requeue", damaged.path, "| true")
    assert code == 21, errors
    assert "requeued 2 batches" in errors
    done = shardgen("verify", damaged.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "read 0 samples: no findings\nnot made yet, so not checked: 48 samples\n"


def test_streams_that_were_closed_lead_nowhere() -> None:
    """The next file that is opened must not get the number of stdout or stderr."""
    script = (
        "import os, sys\n"
        "from shardgen.cli import app\n"
        "sys.argv = ['shardgen', '--version']\n"
        "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
        "os._exit(100 + os.open(os.devnull, os.O_RDONLY))\n"
    )
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], check=False, timeout=60)
    assert done.returncode > 102


def test_watching_ends_when_nobody_looks(run: RunDirectory) -> None:
    code, errors = said("status --watch", run.path, "| true")
    assert code == 141, errors


@pytest.mark.parametrize(
    ("command", "redirection"),
    [*product(["merge", "run"], ["> /dev/full", "| true"]), ("merge", ">&- 2>&-")],
)
def test_a_zip_that_is_finished_is_success_whoever_hears_of_it(
    finished_run: RunDirectory, command: str, redirection: str
) -> None:
    code, errors = said(command, finished_run.path, redirection)
    assert code == 0, errors
    assert (finished_run.path / "dataset.zip").is_file()
    assert "bug" not in errors
    if redirection == "> /dev/full":
        lost = f"stdout: the output cannot be written ({os.strerror(errno.ENOSPC)}); everything else was done"
        assert errors.splitlines()[-1] == lost
    assert shardgen("verify", finished_run.path / "dataset.zip").returncode == 0


# Every command, one after the other on one run directory; after the mark, the exit code on full streams.
STORY = """
--help > 31
init {box}/new --foregrounds {box} --backgrounds {box} > 0
plan {run} > 31
preview {run} --samples 1 > 31
worker {run} --max-batches 3 > 0
run {run} > 0
status {run} > 31
status {run} --json > 31
dead-letters {run} > 31
verify {run} > 31
verify {run}/dataset.zip > 31
export {run}/dataset.zip {box}/tars --format webdataset > 0
requeue {run} --batch 1 > 31
ray {run} --address 127.0.0.1:9 > 11
worker {run} > 0
merge {run} > 0
extend {run} > 31
sweep {run} --yes > 31
backup {run} -o {box}/copy.sqlite > 31
rebuild {run} > 13
weights check {weights} > 31
doctor {run} > 31
cut-out {run} > 11
demo {run} > 10
"""


def test_no_command_minds_that_both_streams_are_full(run: RunDirectory) -> None:
    """Their work is the same: the zip is whole, and no file got what was to be printed."""
    lines = [line.rpartition(" > ") for line in STORY.strip().splitlines()]
    told = {words.partition(" ")[0] for words, _, _ in lines}
    assert set(LINES) <= told
    box = run.path.parent
    for words, _, code in lines:
        typed = words.format(run=run.path, box=box, weights=SHIPPED["small"]).split()
        assert warm.start("shardgen", typed, said=Path("/dev/full")).wait(120) == int(code), words
    heard = shardgen("verify", run.path / "dataset.zip")
    assert (heard.returncode, heard.stdout) == (0, "read 48 samples: no findings\n")
    assert shardgen("status", run.path).returncode == 0

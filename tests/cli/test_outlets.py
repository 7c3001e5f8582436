"""Output that nobody takes: exit 1 is for bugs, and a command's own exit code says more than that."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease
from shardgen.settings.run_directory import RunDirectory
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
    assert os.strerror(errno.ENOSPC) in errors
    assert "bug" not in errors
    assert "Traceback" not in errors
    assert "error: " in errors
    assert "hint: " in errors


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("redirection", "lost"), [("| true", 141), (">&-", 0), ("2>&-", 0), ("> /dev/null 2> /dev/full", 0)]
)
@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_bug(
    damaged: RunDirectory, command: str, redirection: str, lost: int
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

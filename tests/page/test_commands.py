from __future__ import annotations

import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardgen.cli.commands import load
from shardgen.errors import InvalidSettings, MachineUnfit
from shardgen.settings.run_directory import RunDirectory
from tests.runs import make_run, shardgen, start
from tests.warm import Command


@contextmanager
def served(*arguments: str | Path) -> Iterator[tuple[Command, str]]:
    """A command that serves, and the address that it has printed."""
    command = start(list(arguments))
    try:
        assert command.stderr is not None
        line = next((line for line in command.stderr if line.startswith(("page: ", "error: "))), "")
        assert line.startswith("page: "), line
        yield command, line.removeprefix("page: ").strip()
    finally:
        command.kill()
        with command:
            pass


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own server
        found: bytes = answer.read()
    return found


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--serve"], ["--serve="]),
        (["people", "--serve"], ["people", "--serve="]),
        (["--serve", "people"], ["--serve=", "people"]),
        (["--serve", "s3://bucket/people"], ["--serve=", "s3://bucket/people"]),
        (["--serve", "127.0.0.1:0", "people"], ["--serve", "127.0.0.1:0", "people"]),
        (["people", "--serve", "[::1]:80"], ["people", "--serve", "[::1]:80"]),
        (["--serve", "--json"], ["--serve=", "--json"]),
        (["--serve=0.0.0.0:80", "people"], ["--serve=0.0.0.0:80", "people"]),
    ],
)
def test_an_address_may_follow_and_a_run_directory_is_none(
    typed: list[str], meant: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "shardgen.cli.options.TyperCommand.parse_args", lambda _self, _context, args: seen.append(args)
    )
    load("status").parse_args(None, list(typed))
    assert seen == [meant]


def test_status_serves_until_it_is_stopped(run: RunDirectory) -> None:
    with served("status", "--serve", "127.0.0.1:0", run.path) as (command, url):
        assert url.startswith("http://127.0.0.1:")
        assert f"shardgen run {run.path}".encode() in get(url)
        assert b"shardgen_up 1" in get(f"{url}metrics")
        command.send_signal(signal.SIGINT)
        assert command.wait(20) == 130


def test_a_taken_port_is_an_error_with_what_to_type(run: RunDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = shardgen("status", run.path, "--serve", address)
    assert done.returncode == MachineUnfit.exit_code
    error, hint = done.stderr.splitlines()[-2:]
    assert error == f"error: {address}: cannot listen there: Address already in use"
    assert hint.endswith("take a free one with --serve 127.0.0.1:0")


def test_what_is_no_address_is_misuse(run: RunDirectory) -> None:
    for address in ("people", "127.0.0.1", "127.0.0.1:99999"):
        done = shardgen("status", run.path, f"--serve={address}")
        assert done.returncode == 2, done
        assert "not an address with a port" in done.stderr


def test_a_weak_token_is_refused(run: RunDirectory) -> None:
    done = shardgen(
        "status", run.path, "--serve", "127.0.0.1:0", environment={"SHARDGEN_TOKEN": "too-short-1"}
    )
    assert done.returncode == InvalidSettings.exit_code
    assert "SHARDGEN_TOKEN" in done.stderr
    assert "too-short-1" not in done.stderr


@pytest.mark.slow
def test_run_serves_while_it_works_and_a_taken_port_comes_before_any_work(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = shardgen("run", run.path, "--serve", address)
        assert f"{address}: cannot listen" in refused.stderr
    assert not list((run.path / "artifacts").rglob("*.zip"))
    with served("run", run.path, "--serve", "127.0.0.1:0") as (command, url):
        with urllib.request.urlopen(f"{url}events", timeout=60) as events:  # noqa: S310
            heard = events.read().decode()
        assert command.wait(60) == 0
    assert "event: over" in heard
    assert "100 %" in heard
    assert (run.path / "dataset.zip").is_file()

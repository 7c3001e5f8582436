from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shardgen.operations.status import report
from tests.postgres import PASSWORD, Server
from tests.runs import make_run, shardgen

pytestmark = pytest.mark.slow


@pytest.fixture
def administrator(postgres_server: Server) -> Iterator[psycopg.Connection]:
    server = postgres_server
    with psycopg.connect(
        host=str(server.folder), port=server.port, user="postgres", dbname="postgres", autocommit=True
    ) as admin:
        admin.execute(f"CREATE ROLE crew LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1".encode())
        admin.execute(b"CREATE DATABASE crew OWNER crew")
        yield admin
        admin.execute(b"DROP DATABASE crew WITH (FORCE)")
        admin.execute(b"DROP ROLE crew")


def test_a_fleet_outlives_a_full_server(
    postgres_server: Server,
    administrator: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full when the workers start: they are started again; full in the middle of their work: they wait."""
    url = postgres_server.loopback_url.set(username="crew", database="crew")
    monkeypatch.setenv("SHARDGEN_MANIFEST", url.render_as_string(hide_password=False))
    run = make_run(tmp_path, changes={"manifest.url": '"${SHARDGEN_MANIFEST}"', "compose.grid": "[10, 8]"})
    planned = shardgen("plan", run.path)
    assert planned.returncode == 0, planned.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "shardgen", "run", str(run.path), "--workers", "2"],
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []

    def wait_for(words: str) -> None:
        for line in process.stderr or ():
            said.append(line)
            if re.search(words, line):
                return
        pytest.fail("".join(said))

    try:
        wait_for("the server is full.*trying again")
        wait_for("ended with exit code 30")
        administrator.execute(b"ALTER ROLE crew CONNECTION LIMIT -1")
        while not report(run).stored:
            assert process.poll() is None, "".join(said)
            time.sleep(0.1)
        administrator.execute(b"ALTER ROLE crew CONNECTION LIMIT 0")
        administrator.execute(
            b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'crew'"
        )
        wait_for("the server is full.*trying again")
        administrator.execute(b"ALTER ROLE crew CONNECTION LIMIT -1")
        _, rest = process.communicate(timeout=240)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, "".join(said) + rest
    assert "refuses this user" not in "".join(said) + rest
    assert report(run).stored == run.plan().samples

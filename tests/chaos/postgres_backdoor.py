"""The way to a manifest on PostgreSQL that goes round shardgen; also the server's own misfortunes."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import psycopg
from psycopg.rows import dict_row
from sqlalchemy import URL, make_url

from tests.chaos.backdoors import Backdoor, Row
from tests.postgres import Server
from tests.stopping import stop

_PATIENCE_SECONDS = 120.0  # for a server that starts, and for tables that somebody holds
_RESTARTS = ("fast", "immediate")
_LONGEST_AWAY_SECONDS = 3.0  # a command that starts waits 10 s for its server
_PURSUIT_SECONDS = 2.0  # until somebody is caught inside a transaction
_SLICE_OF_PID = """
    SELECT slice.* FROM slice JOIN worker ON worker.id = slice.worker
    WHERE worker.pid = %s FOR SHARE OF slice NOWAIT
"""
_SESSIONS = """
    SELECT pid, application_name, xact_start IS NOT NULL AS in_transaction FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND starts_with(application_name, %s)
"""

Connection = psycopg.Connection[dict[str, Any]]


class PostgresBackdoor(Backdoor):
    """To the schema that the URL's search path begins with, which belongs to this run."""

    has_sessions = True

    def __init__(self, url: str, server: Server | None) -> None:
        self._url: URL = make_url(url)
        self._server = server
        self.has_server = server is not None
        self.away: list[tuple[float, float]] = []
        """When the server was stopped, and when it let one in again."""

    def slice_of(self, pid: int) -> Row | None:
        """Under a shared lock: what a stopped process has changed and not committed is not the truth."""
        try:
            with self._connected() as connection:
                return connection.execute(_SLICE_OF_PID, (pid,)).fetchone()
        except psycopg.errors.UndefinedTable:
            return None
        except psycopg.OperationalError as error:  # the row is held, or nobody answers
            raise TimeoutError from error

    def stop(self, pid: int) -> None:
        """Wherever it is: others wait for a row that it holds, and must not mind."""
        stop(pid)

    def lose(self, source: random.Random) -> None:
        """Drop every table, under those who use them; or end their sessions first."""
        if source.random() < 0.5:
            self.end_sessions(source, share=1.0)

        def drop(connection: Connection) -> None:
            connection.execute("SET LOCAL lock_timeout = '60s'")
            schema = connection.execute("SELECT current_schema() AS name").fetchone()
            name = psycopg.sql.Identifier(schema["name"] if schema else "")
            connection.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(name))
            connection.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(name))

        self._until_done(drop)

    def move_half_a_commit_away(self, said: str) -> bool:
        """There is no such thing."""
        del said
        return False

    def end_sessions(self, source: random.Random, *, share: float) -> tuple[int, int]:
        """Let the server end sessions of ours; returns how many, and of these how many in a transaction."""
        found: list[dict[str, Any]] = []

        def end(connection: Connection) -> None:
            sessions = self._sessions(connection)
            found[:] = source.sample(sessions, max(1, round(share * len(sessions)))) if sessions else []
            self._terminate(connection, found)

        self._until_done(end)
        return len(found), sum(session["in_transaction"] for session in found)

    def end_a_transaction(self, source: random.Random) -> bool:
        """Wait until a session of ours is inside a transaction, and let the server end it there."""
        deadline = time.monotonic() + _PURSUIT_SECONDS
        with contextlib.suppress(psycopg.OperationalError), self._connected() as connection:
            while time.monotonic() < deadline:
                inside = [one for one in self._sessions(connection) if one["in_transaction"]]
                if inside:
                    self._terminate(connection, [source.choice(inside)])
                    return True
        return False

    def restart(self, source: random.Random) -> str:
        """Stop the server as an administrator would, or as a crash; start it again a moment later."""
        if self._server is None:
            raise RuntimeError("the server is not ours")
        mode = source.choice(_RESTARTS)
        began = time.monotonic()
        self._server.stop(mode)
        time.sleep(source.uniform(0, _LONGEST_AWAY_SECONDS))
        self._server.start()
        self._until_done(lambda _connection: None)
        self.away.append((began, time.monotonic()))
        return mode

    def _sessions(self, connection: Connection) -> list[dict[str, Any]]:
        """Those of the processes that this one has started, and its own."""
        mine = {os.getpid(), *(one.pid for one in psutil.Process().children(recursive=True))}
        prefix = f"shardgen {socket.gethostname()} "
        sessions = connection.execute(_SESSIONS, (prefix,)).fetchall()
        return [one for one in sessions if int(one["application_name"].rpartition(" ")[2]) in mine]

    def _terminate(self, connection: Connection, sessions: list[dict[str, Any]]) -> None:
        for session in sessions:
            connection.execute("SELECT pg_terminate_backend(%s)", (session["pid"],))

    def _until_done(self, body: Callable[[Connection], None]) -> None:
        """Deadlocks, and a server that is just being restarted, are nobody's fault."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                with self._connected() as connection, connection.transaction():
                    body(connection)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        text = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(text, autocommit=True, row_factory=dict_row, connect_timeout=10) as connection:
            yield connection

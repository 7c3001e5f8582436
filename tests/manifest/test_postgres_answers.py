"""What a real server answers, and what comes of it: each answer of the table, provoked for real."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, Connection, text

from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    LeaseLost,
    ManifestBusy,
    ManifestMismatch,
    ShardgenError,
)
from shardgen.manifest import postgres
from shardgen.manifest.backend import Access
from shardgen.manifest.postgres import PostgresDatabase, PostgresServer
from shardgen.manifest.postgres_errors import ANSWERS, Answer
from shardgen.manifest.sqlite import explained
from tests.postgres import PASSWORD, Server

USER, DATABASE = "fleet", "fleet"
SLOTS, FOR_ANYBODY = 10, 4  # the others are reserved: 3 for superusers, 3 for a role that may use them
# A code that the server knows, for those of the table that stand for several.
EXAMPLES = {"08": "08006", "23": "23505", "28": "28P01", "42": "42P01", "53": "53200", "57P": "57P01"}
EXAMPLES |= {"58": "58030"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One with few slots."""
    made = Server()
    try:
        with _administrator(made) as admin:
            for setting, value in (("max_connections", SLOTS), ("reserved_connections", 3)):
                admin.execute(f"ALTER SYSTEM SET {setting} = {value}".encode())
            admin.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'".encode())
            admin.execute(f"CREATE DATABASE {DATABASE} OWNER {USER}".encode())
        made.stop()
        made.start()
        yield made
    finally:
        made.remove()


def _administrator(server: Server) -> psycopg.Connection:
    return psycopg.connect(
        host=str(server.folder), port=server.port, user="postgres", dbname="postgres", autocommit=True
    )


def _url(server: Server) -> URL:
    return server.loopback_url.set(username=USER, database=DATABASE)


def _session(server: Server) -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user=USER, password=PASSWORD, dbname=DATABASE, autocommit=True
    )


def _tell(server: Server, *orders: str) -> None:
    with _administrator(server) as admin:
        for order in orders:
            admin.execute(order.encode())


@pytest.fixture
def opened(server: Server) -> Iterator[PostgresDatabase]:
    database = PostgresServer(_url(server)).open(Access.WRITE)
    yield database
    database.close()


class OnWaiting(logging.Handler):
    """Does something when it is first said that something is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.then: Callable[[], object] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        if len(self.said) == 1:
            self.then()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnWaiting]:
    monkeypatch.setattr(postgres, "_SILENT_SECONDS", 0.0)
    handler = OnWaiting()
    logger = logging.getLogger("shardgen.manifest.postgres")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_OPEN_SECONDS", 0.2)
    monkeypatch.setattr(postgres, "_RECONNECT_SECONDS", 0.2)


def _fill(server: Server, stack: ExitStack, how: str) -> None:
    """Take every connection that the user may have."""
    if how == "slots":
        sessions = FOR_ANYBODY
    else:
        _tell(server, f"ALTER {how} CONNECTION LIMIT 3")
        stack.callback(_tell, server, f"ALTER {how} CONNECTION LIMIT -1")
        sessions = 3
    for _ in range(sessions):
        stack.enter_context(_session(server))


FULL = ("slots", f"ROLE {USER}", f"DATABASE {DATABASE}")


@pytest.mark.parametrize("how", FULL)
def test_a_full_server_is_waited_for(server: Server, waiting: OnWaiting, how: str) -> None:
    with ExitStack() as stack:
        _fill(server, stack, how)
        waiting.then = stack.close
        PostgresServer(_url(server)).open(Access.WRITE).close()
    assert len(waiting.said) == 1
    assert "the server is full" in waiting.said[0]
    assert "trying again for up to 10 s" in waiting.said[0]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", FULL)
def test_a_server_that_stays_full_is_to_be_tried_later(server: Server, how: str) -> None:
    with ExitStack() as stack:
        _fill(server, stack, how)
        for attempt in (_open, _be_alone):
            with pytest.raises(ManifestBusy, match="the server is full") as caught:
                attempt(PostgresServer(_url(server)))
            assert "max_connections" in caught.value.hint
            assert caught.value.exit_code == 30


def _open(server: PostgresServer) -> None:
    server.open(Access.WRITE).close()


def _be_alone(server: PostgresServer) -> None:
    with server.alone():
        pass


def test_a_server_that_lets_nobody_in_yet_is_waited_for(server: Server, waiting: OnWaiting) -> None:
    session = _session(server)
    running = server.folder / "data" / "postmaster.pid"
    pid = int(running.read_text(encoding="utf-8").split()[0])

    def restart() -> None:
        session.close()
        while running.exists():
            time.sleep(0.01)
        server.start()

    waiting.then = restart
    os.kill(pid, signal.SIGTERM)  # a smart shutdown: whoever is in may stay, nobody else gets in
    _wait_until_refused(server)
    PostgresServer(_url(server)).open(Access.WRITE).close()
    assert "accepts no connections yet" in waiting.said[0]


def _wait_until_refused(server: Server) -> None:
    while True:
        try:
            _session(server).close()
        except psycopg.OperationalError:
            return


def test_a_read_only_server_is_waited_for_by_new_sessions(
    server: Server, opened: PostgresDatabase, waiting: OnWaiting
) -> None:
    """What holds for sessions that begin later stands for another server behind the same name."""
    _tell(server, f"ALTER ROLE {USER} SET default_transaction_read_only = on")
    opened.engine.dispose()
    waiting.then = lambda: _tell(server, f"ALTER ROLE {USER} RESET default_transaction_read_only")
    opened.transact(lambda connection: connection.execute(text("CREATE TABLE songs (title text)")))
    opened.transact(lambda connection: connection.execute(text("DROP TABLE songs")))
    assert "the server is read-only" in waiting.said[0]


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stays_read_only_names_the_primary(server: Server, opened: PostgresDatabase) -> None:
    _tell(server, f"ALTER ROLE {USER} SET default_transaction_read_only = on")
    try:
        opened.engine.dispose()
        with pytest.raises(ManifestBusy, match="read-only") as caught:
            opened.transact(lambda connection: connection.execute(text("CREATE TABLE songs (title text)")))
    finally:
        _tell(server, f"ALTER ROLE {USER} RESET default_transaction_read_only")
    assert "name the primary server" in caught.value.hint


@pytest.mark.usefixtures("impatient")
def test_a_statement_that_takes_too_long_names_the_setting(server: Server, opened: PostgresDatabase) -> None:
    _tell(server, f"ALTER ROLE {USER} SET statement_timeout = '100ms'")
    try:
        opened.engine.dispose()
        with pytest.raises(ManifestBusy, match="statement_timeout") as caught:
            opened.transact(lambda connection: connection.execute(text("SELECT pg_sleep(10)")))
    finally:
        _tell(server, f"ALTER ROLE {USER} RESET statement_timeout")
    assert "raise statement_timeout" in caught.value.hint


@pytest.mark.parametrize("answer", ANSWERS, ids=[answer.code for answer in ANSWERS])
def test_every_answer_does_what_the_table_says(opened: PostgresDatabase, answer: Answer) -> None:
    """The server really says it; what passes is begun anew, the rest is told at once."""
    code = EXAMPLES.get(answer.code, answer.code)
    calls: list[int] = []

    def body(connection: Connection) -> int:
        calls.append(1)
        if len(calls) == 1:
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))
        return 7

    if answer.passes:
        assert opened.transact(body) == 7
        assert len(calls) == 2
    else:
        with pytest.raises(answer.kind, match="no") as caught:
            opened.transact(body)
        assert answer.fact in str(caught.value)
        assert caught.value.hint == answer.hint
        assert len(calls) == 1


def test_rows_that_contradict_the_rules_get_the_same_hint_from_both_databases(tmp_path: Path) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE one (number INTEGER CHECK (number = 1))")
        with pytest.raises(sqlite3.IntegrityError) as broken:
            connection.execute("INSERT INTO one VALUES (2)")
    (of_a_server,) = (answer.hint for answer in ANSWERS if answer.code == "23")
    assert of_a_server == explained(broken.value, tmp_path).hint
    assert of_a_server.startswith("shardgen verify RUN_DIR --requeue")


def test_what_is_no_answer_of_the_server_is_not_waited_for(opened: PostgresDatabase) -> None:
    calls: list[int] = []

    def body(_connection: Connection) -> None:
        calls.append(1)
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        opened.transact(body)
    assert len(calls) == 1


Refusal = tuple[Callable[[URL], URL], type[ShardgenError], str]
REFUSED: dict[str, Refusal] = {
    "wrong password": (lambda url: url.set(password="wrong"), InvalidSettings, "refuses this user"),  # noqa: S106
    "no password": (lambda url: url.set(password=""), InvalidSettings, "refuses this user"),
    "two addresses, wrong password": (
        lambda url: url.set(host=None, port=None, password="wrong").update_query_dict(  # noqa: S106
            {"host": "127.0.0.1,127.0.0.1", "port": f"9,{url.port}"}
        ),
        InvalidSettings,
        "refuses this user",
    ),
    "missing database": (lambda url: url.set(database="nowhere"), InputMissing, "no such database"),
    "a database named like a full server": (
        lambda url: url.set(database="sorry, too many clients already"),
        InputMissing,
        "no such database",
    ),
    "a database that does not let this user in": (
        lambda url: url.set(database="closed"),
        ManifestMismatch,
        "this user lacks permission for that",
    ),
    "an option that the server does not know": (
        lambda url: url.update_query_dict({"options": "-c colour=red"}),
        InvalidSettings,
        "does not accept this kind of connection",
    ),
    "an option that the driver does not know": (
        lambda url: url.update_query_dict({"colour": "red"}),
        InvalidSettings,
        "does not accept this kind of connection",
    ),
    "a mode that the driver does not know": (
        lambda url: url.update_query_dict({"sslmode": "colour"}),
        InvalidSettings,
        "does not accept this kind of connection",
    ),
    "a server without encryption": (
        lambda url: url.update_query_dict({"sslmode": "require"}),
        InvalidSettings,
        "does not accept this kind of connection",
    ),
}


@pytest.fixture
def closed(server: Server) -> Iterator[None]:
    _tell(server, "CREATE DATABASE closed", "REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    _tell(server, "CREATE ROLE caretaker")
    yield
    _tell(server, "DROP DATABASE closed", "DROP ROLE caretaker")


@pytest.mark.usefixtures("closed")
def test_what_is_certain_to_last_is_told_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_waited_for(_state: object) -> float:
        pytest.fail("it was tried again")

    monkeypatch.setattr(postgres, "_PAUSES", is_waited_for)
    for what, (change, kind, words) in REFUSED.items():
        with pytest.raises(kind) as caught:
            _open(PostgresServer(change(_url(server))))
        assert words in str(caught.value), what
        assert caught.value.hint
    # By password a missing role and a wrong password look the same; through the socket anybody is trusted.
    for name in ("nobody-there", "caretaker", "too many connections for role"):
        with pytest.raises(InvalidSettings, match="refuses this user"):
            _open(PostgresServer(server.url.set(username=name)))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("host", ["certificate.invalid", "127.0.0.1"])
def test_a_server_that_nobody_finds_is_to_be_tried_later(server: Server, host: str) -> None:
    with pytest.raises(ManifestBusy, match="tried for 0 s: no connection"):
        _open(PostgresServer(_url(server).set(host=host, port=9)))


@pytest.mark.usefixtures("impatient")
def test_a_server_that_speaks_another_language_is_waited_for_in_vain(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are all that there is while it connects, so that no answer is guessed from those of no table."""

    def refused(*_: object, **__: object) -> object:
        raise psycopg.OperationalError('FATAL:  la connexion limite du role "fleet" est atteinte : password')

    monkeypatch.setattr(psycopg, "connect", refused)
    with pytest.raises(ManifestBusy, match="no connection"):
        _open(PostgresServer(_url(server)))

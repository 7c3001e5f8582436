"""A manifest on a PostgreSQL server, for several machines: its clock decides, its answers may get lost."""

from __future__ import annotations

import logging
import os
import pwd
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Generic

from sqlalchemy import URL, Connection, Engine, TextClause, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from shardgen.domain.steps import OnStep, RebuildStep
from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    MachineUnfit,
    ManifestBusy,
    ManifestMismatch,
    ShardgenError,
)
from shardgen.machine.processes import host_name
from shardgen.manifest.backend import Access, Backend, Body, Database, Happened, Result, StillAlone
from shardgen.manifest.postgres_errors import (
    answer_of,
    cut_off,
    is_lost_connection,
    passes_by_itself,
    translated,
    waiting_for,
)

_RECONNECT_SECONDS = 30.0  # how long one transaction tries to get through: a server restarts in less
_OPEN_SECONDS = 10.0  # the same while a command starts, and a person waits
_SILENT_SECONDS = 2.0  # what passes sooner is not worth a line
_PAUSES = wait_random_exponential(multiplier=0.1, max=2)  # seconds; at random, so that not all come at once
# A connection to a machine that vanished must fail, not wait for ever.
_CONNECT_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    # Servers behind a transaction pooler do not keep what one session prepared.
    "prepare_threshold": None,
}
_UPGRADE, _ALONE = 0x5A4D_0001, 0x5A4D_0002  # advisory locks
# Of this transaction only: what a session sets does not hold behind a transaction pooler.
_BEGIN = text(
    "SELECT set_config('lock_timeout', '30s', true),"
    " set_config('idle_in_transaction_session_timeout', '60s', true),"
    # A receipt that a crash of the server takes back would be work done twice.
    " set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
)
_TRY_TO_BE_ALONE = text("SELECT pg_try_advisory_lock(:key)")
_TRY_TO_BE_ALONE_UNTIL_COMMIT = text("SELECT pg_try_advisory_xact_lock(:key)")
_IS_ALONE = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = 0 AND objid = :key AND objsubid = 1 AND granted"
)
_LOG = logging.getLogger(__name__)
_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")


class PostgresServer(Backend):
    """A database on a server; the schema that its search path begins with belongs to one run."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self.shown = f"postgresql://{url.host or 'localhost'}/{url.database or ''}"

    def is_there(self) -> bool:
        """Always: only a look at the server could tell, and not finding one is no proof."""
        return True

    def open(self, access: Access) -> PostgresDatabase:
        """Connect once, so that a wrong address or user is said at the start."""
        self._refuse_missing_user()
        database = PostgresDatabase(self._engine(), self.shown, reads_only=access is Access.READ)
        try:
            database.check()
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def alone(self) -> Iterator[StillAlone]:
        """One rebuild or sweep at a time, by an advisory lock that ends with the connection."""
        # Opening waits for a session, and keeps it for what follows; the lock ends with it.
        with (
            closing(self.open(Access.WRITE)) as database,
            _translating(self.shown),
            database.engine.connect() as connection,
        ):
            self._refuse_company(connection, _TRY_TO_BE_ALONE)
            connection.commit()  # the lock is the session's; an open transaction would hold back others

            def still_alone() -> None:
                with _translating(self.shown), connection.begin():
                    if not connection.execute(_IS_ALONE, {"key": _ALONE}).scalar_one():
                        raise ManifestBusy(
                            f"{self.shown}: the exclusive lock was lost midway",
                            hint="run the command again, without a pooler between it and the server",
                        )

            yield still_alone

    def refuse_existing(self) -> None:
        """Raise ManifestMismatch when the schema has any table."""
        with closing(self.open(Access.READ)) as database:
            tables = database.transact(lambda connection: inspect(connection).get_table_names())
        if tables:
            raise ManifestMismatch(
                f"{self.shown}: there is already a manifest, and rebuild does not replace it",
                hint="shardgen status RUN_DIR shows it; to give it up, name an empty database instead",
            )

    def build(self, create: Body[None], fill: Body[None], *, on_step: OnStep) -> None:
        """All of it in one transaction: the server keeps nothing of one that does not commit."""
        with closing(self.open(Access.WRITE)) as database:
            with _translating(self.shown), database.engine.begin() as connection:
                # The lock is this transaction's own: whatever ends the one undoes the other.
                self._refuse_company(connection, _TRY_TO_BE_ALONE_UNTIL_COMMIT)
                database.hold_for_upgrade(connection)
                create(connection)
                on_step(RebuildStep.STAGED)
                fill(connection)
                on_step(RebuildStep.FILLED)
            on_step(RebuildStep.LINKED)
            on_step(RebuildStep.SYNCED)

    def copy_to(self, target: Path) -> None:
        """Refuse: the server's own program does that, during a run too; the hint is the line to type."""
        query = self._url.query
        named = {
            "host": self._url.host or query.get("host"),
            "port": self._url.port or query.get("port"),
            "username": self._url.username,
            "dbname": self._url.database,
            "schema": "".join(re.findall(r"search_path=([\w.]+)", str(query.get("options", "")))),
        }
        words = [word for name, value in named.items() if value for word in (f"--{name}", str(value))]
        raise InvalidSettings(
            f"{self.shown}: a database on a server is copied by pg_dump, not by shardgen",
            hint=shlex.join(["pg_dump", "--format=custom", *words, "--file", str(target)]),
        )

    def _refuse_missing_user(self) -> None:
        """Without a name in the URL or around it, the client takes this system's user, who may have none."""
        named = (self._url.username, *(self._url.query.get(key) for key in ("user", "service")))
        if any(named) or os.environ.get("PGUSER") or os.environ.get("PGSERVICE"):
            return
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise MachineUnfit(
                f"{self.shown}: no user is named, and this process's own ({os.geteuid()}) has no name",
                hint="export PGUSER=NAME, or write postgresql+psycopg://NAME@host/database",
            ) from None

    def _refuse_company(self, connection: Connection, attempt: TextClause) -> None:
        if not connection.execute(attempt, {"key": _ALONE}).scalar_one():
            raise ManifestBusy(
                f"{self.shown}: another rebuild or sweep is running", hint="wait until it has ended"
            )

    def _engine(self) -> Engine:
        connect = _connector(self.shown)
        arguments: dict[str, Any] = _CONNECT_ARGUMENTS | {
            "application_name": f"shardgen {host_name()} {os.getpid()}"[:63]
        }
        given = {name: value for name, value in arguments.items() if name not in self._url.query}
        # One connection is kept per process: a hundred workers should fit under a server's usual hundred.
        engine = create_engine(
            self._url, connect_args=given, pool_size=1, max_overflow=7, pool_timeout=60, hide_parameters=True
        )
        event.listen(engine, "do_connect", connect)
        return engine


class PostgresDatabase(Database):
    """An opened database on a server."""

    def __init__(self, engine: Engine, shown: str, *, reads_only: bool = False) -> None:
        super().__init__(engine, shown)
        self._reads_only = reads_only
        self._waits_for = ""

    def check(self) -> None:
        """Connect, and fail soon if that is impossible."""
        self._run(_Transaction(self.engine, _nothing, reading=True), seconds=_OPEN_SECONDS)

    def transact(
        self, body: Body[Result], *, happened: Happened[Result] | None = None, reading: bool = False
    ) -> Result:
        """Run one transaction, again where the connection or the server's choice undid it.

        A commit whose answer is lost is looked up by `happened`; without one, `body` is such that doing it
        twice is the same. Raises ManifestBusy when the server stays away.
        """
        return self._run(
            _Transaction(self.engine, body, happened=happened, reading=reading or self._reads_only),
            seconds=_RECONNECT_SECONDS,
        )

    def _run(self, attempt: _Transaction[Result], *, seconds: float) -> Result:
        def say(state: RetryCallState) -> None:
            if state.outcome is not None and (error := state.outcome.exception()) is not None:
                self._say(_cause(error), seconds, waited=state.seconds_since_start or 0.0)

        retrying = Retrying(
            retry=retry_if_exception(_passes),
            wait=_PAUSES,
            stop=stop_after_delay(seconds),
            before_sleep=say,
            reraise=True,
        )
        try:
            result = retrying(attempt)
        except (_NoConnection, DBAPIError) as error:
            cause = _cause(error)
            waited = seconds if passes_by_itself(cause) else None
            raise translated(cause, self.shown, after=waited) from cause
        self._waits_for = ""
        return result

    def _say(self, error: BaseException, seconds: float, *, waited: float) -> None:
        """Say once what is waited for, by however many threads, until something comes through."""
        fact = answer_of(error).fact
        if waited >= _SILENT_SECONDS and fact != self._waits_for:
            self._waits_for = fact
            _LOG.warning("%s", waiting_for(error, self.shown, seconds))

    def now(self, connection: Connection) -> float:
        """The server's clock, at this moment and not at the transaction's beginning."""
        return float(connection.execute(_CLOCK).scalar_one())

    def hold_for_upgrade(self, connection: Connection) -> None:
        """Until this transaction ends, no other may create or upgrade the manifest."""
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE})


class _NoConnection(Exception):
    """No session could be had; the cause says why."""


def _passes(error: BaseException) -> bool:
    return isinstance(error, (_NoConnection, DBAPIError)) and passes_by_itself(_cause(error))


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ or error if isinstance(error, _NoConnection) else error


def _nothing(_connection: Connection) -> None:
    pass


class _Transaction(Generic[Result]):
    """One transaction over all its attempts; it remembers a commit that was never answered."""

    def __init__(
        self,
        engine: Engine,
        body: Body[Result],
        *,
        happened: Happened[Result] | None = None,
        reading: bool = False,
    ) -> None:
        self._engine = engine
        self._body = body
        self._happened = happened
        self._options: dict[str, Any] = {}
        if reading:
            self._options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._unanswered: list[Result] = []

    def __call__(self) -> Result:
        if self._took_place():
            return self._unanswered[-1]
        try:
            return self._attempt()
        except ShardgenError:
            # The server may have finished the lost commit only now: then we contradicted ourselves.
            if self._took_place():
                return self._unanswered[-1]
            raise

    def _took_place(self) -> bool:
        happened = self._happened
        if not self._unanswered or happened is None:
            return False
        with self._engine.begin() as connection:
            return happened(connection, self._unanswered[-1])

    def _attempt(self) -> Result:
        with self._engine.connect().execution_options(**self._options) as connection:
            transaction = connection.begin()
            try:
                connection.execute(_BEGIN)
                result = self._body(connection)
            except BaseException as error:
                transaction.rollback()
                if isinstance(error, DBAPIError) and answer_of(error).elsewhere:
                    connection.invalidate()  # behind the same name another server may answer next time
                raise
            try:
                transaction.commit()
            except DBAPIError as error:
                if is_lost_connection(error):
                    self._unanswered.append(result)
                raise
            return result


def _connector(shown: str) -> Callable[..., object]:
    try:
        import psycopg  # noqa: PLC0415 - an extra, needed here only
    except ImportError as error:
        raise InputMissing(
            f"{shown}: the driver psycopg is not installed", hint='pip install "shardgen[postgres]"'
        ) from error

    def connect(_dialect: object, _record: object, arguments: Any, options: Any) -> object:
        try:
            connection = psycopg.connect(*arguments, **options)
        except psycopg.Error as error:
            raise _NoConnection from error
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            connection.close()
            raise ManifestMismatch(
                f"{shown}: its encoding is {encoding}, and file names need UTF8",
                hint="createdb --encoding UTF8 --template template0 NAME, and name that one",
            )
        return connection

    return connect


@contextmanager
def _translating(shown: str) -> Iterator[None]:
    try:
        yield
    except _NoConnection as error:
        raise translated(_cause(error), shown) from error
    except DBAPIError as error:
        raise cut_off(error, shown) if is_lost_connection(error) else translated(error, shown) from error

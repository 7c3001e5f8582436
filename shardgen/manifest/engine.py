"""The only place that owns a database connection: how a transaction begins, and what its errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    ManifestBusy,
    ManifestCorrupt,
    ManifestGone,
    ManifestMismatch,
    ShardgenError,
    StorageFailed,
)

_BUSY_TIMEOUT_SECONDS = 30.0  # SQLite's busy handler is unfair: one of 8 saturated writers waited 3.4 s
_STALE_JOURNAL = {sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY}


def sqlite_path(url: URL, run_dir: Path) -> Path:
    """The database file of a `sqlite:///` URL; a relative one is relative to the run directory."""
    if not url.database or url.database == ":memory:":
        raise InvalidSettings(
            f"[manifest] url = {url.render_as_string()!r}: it must name a file",
            hint='url = "sqlite:///manifest.sqlite"',
        )
    return run_dir / url.database


def parse_url(text: str) -> URL:
    """A database URL. Raises InvalidSettings, without repeating a password."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidSettings(
            "[manifest] url is not a database URL", hint='url = "sqlite:///manifest.sqlite"'
        ) from error
    if url.get_backend_name() != "sqlite":
        raise InvalidSettings(
            f"[manifest] url = {url.render_as_string(hide_password=True)!r}: this version knows sqlite only",
            hint='url = "sqlite:///manifest.sqlite"',
        )
    return url


def open_engine(path: Path, *, read_only: bool = False, create: bool = False) -> Engine:
    """An engine on a SQLite file. Raises InputMissing when there is none and `create` is not set.

    Read-only connections begin with a plain BEGIN; all others with BEGIN IMMEDIATE.
    """
    if not create and not path.is_file():
        raise InputMissing(
            f"{path}: there is no manifest",
            hint="shardgen plan RUN_DIR; or, if there are artifacts, shardgen rebuild RUN_DIR",
        )
    mode = "ro" if read_only else "rwc" if create else "rw"
    database = f"file:{_uri_path(path)}"
    url = URL.create("sqlite", database=database, query={"mode": mode, "uri": "true"})
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        # None stops the driver from beginning (deferred) transactions of its own; ours begin below.
        connection.isolation_level = None
        cursor = connection.cursor()
        # EXTRA also syncs the folder after the journal is deleted: durable on power loss, in rollback mode.
        cursor.execute("PRAGMA synchronous=EXTRA")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred BEGIN lets two workers read the same free slice: IMMEDIATE takes the write lock first.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _uri_path(path: Path) -> str:
    # SQLite parses the name as a URI: these would end the path or start an escape.
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def finish_interrupted_commit(path: Path) -> None:
    """Roll back what a killed process left half committed; a read-only connection may not do that itself."""
    engine = open_engine(path)
    try:
        with transaction(engine):
            pass
    finally:
        engine.dispose()


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error; database errors become ours."""
    try:
        with engine.begin() as connection:
            yield connection
    except DatabaseError as error:
        raise translated(error, engine) from error


def is_stale_journal(error: ShardgenError) -> bool:
    """Whether a read failed only because a killed writer's journal must be rolled back first."""
    cause = error.__cause__
    original = cause.orig if isinstance(cause, DatabaseError) else None
    return getattr(original, "sqlite_errorcode", None) in _STALE_JOURNAL


_Meaning = tuple[type[ShardgenError], str, str]
_FULL: _Meaning = (
    StorageFailed,
    "the disk is full or failing",
    "free some space, then run the command again; nothing recorded is lost",
)
_FORBIDDEN: _Meaning = (
    StorageFailed,
    "cannot be opened for this",
    "check the permissions of the file and of its folder",
)
_GONE: _Meaning = (
    ManifestGone,
    "deleted or moved away while it was in use",
    "put it back, or: shardgen rebuild RUN_DIR; then run the command again",
)
_BUSY: _Meaning = (
    ManifestBusy,
    f"locked by other processes for {_BUSY_TIMEOUT_SECONDS:g} s",
    "run the command again; if it stays locked, look for a stopped process that has it open",
)
_OTHER: _Meaning = (
    ManifestMismatch,
    "not this shardgen's manifest",
    "check [manifest] url in shardgen.toml",
)
_MEANINGS: dict[int, _Meaning] = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _FULL,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_READONLY_DBMOVED: _GONE,
    sqlite3.SQLITE_CANTOPEN: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_NOTADB: (
        ManifestMismatch,
        "not a SQLite database",
        "move that file away; then shardgen rebuild RUN_DIR, or shardgen plan RUN_DIR without artifacts",
    ),
    sqlite3.SQLITE_CORRUPT: (
        ManifestCorrupt,
        "the database is damaged",
        "move it away, keep artifacts/ and plan.json, then: shardgen rebuild RUN_DIR",
    ),
    sqlite3.SQLITE_CONSTRAINT: (
        ManifestCorrupt,
        "its rows contradict its rules",
        "keep a copy of it and report this; artifacts and plan.json are untouched",
    ),
}


def translated(error: DatabaseError, engine: Engine) -> ShardgenError:
    """The deliberate error for a database error; decided on SQLite's codes, never on message text."""
    database = (engine.url.database or "").removeprefix("file:")
    code = getattr(error.orig, "sqlite_errorcode", None)
    name = getattr(error.orig, "sqlite_errorname", type(error).__name__)
    # An extended code says more than the plain one in its low byte.
    kind, fact, hint = _OTHER if code is None else _MEANINGS.get(code) or _MEANINGS.get(code & 0xFF, _OTHER)
    if code is not None and code & 0xFF == sqlite3.SQLITE_CANTOPEN and not Path(unquote(database)).exists():
        kind, fact, hint = _GONE  # one thread's connection is opened after the others'
    return kind(f"{database}: {fact} ({name}: {error.orig})", hint=hint)

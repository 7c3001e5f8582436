"""A manifest in a SQLite file on this machine's own disk."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from shardgen.domain.steps import OnStep, RebuildStep
from shardgen.errors import (
    InputMissing,
    ManifestBusy,
    ManifestCorrupt,
    ManifestGone,
    ManifestMismatch,
    ShardgenError,
    StorageFailed,
)
from shardgen.folders import make_folders
from shardgen.manifest.backend import Access, Backend, Body, Database, Happened, Result, StillAlone
from shardgen.manifest.filesystem import refuse_untrusted
from shardgen.manifest.sqlite_building import alone_in, refuse_existing, staged_file

_BUSY_TIMEOUT_SECONDS = 30.0  # SQLite's busy handler is unfair: one of 8 saturated writers waited 3.4 s
_STALE_JOURNAL = {sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY}


class SqliteFile(Backend):
    """A manifest's file, there or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = str(path)

    def is_there(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file()

    def open(self, access: Access) -> Database:
        """Open the file; writing is refused on file systems whose locks cannot be trusted."""
        if access is not Access.READ:
            refuse_untrusted(self.path)
        if access is Access.CREATE:
            _make_folder(self.path.parent)
        return SqliteDatabase(self.path, access)

    def alone(self) -> AbstractContextManager[StillAlone]:
        """One rebuild or sweep at a time, by a lock on the folder."""
        return alone_in(self.path.parent)

    def refuse_existing(self) -> None:
        """Raise ManifestMismatch for a file that is not empty, and for a journal."""
        refuse_existing(self.path)

    def build(self, create: Body[None], fill: Body[None], *, on_step: OnStep) -> None:
        """Fill a file under another name, then give it its own."""
        refuse_untrusted(self.path)
        try:
            make_folders(self.path.parent)
            with self.alone(), staged_file(self.path, on_step=on_step) as staged:
                database = SqliteDatabase(staged, Access.CREATE)
                try:
                    database.transact(create)
                    on_step(RebuildStep.STAGED)
                    database.transact(fill)
                finally:
                    database.close()
        except OSError as error:
            raise StorageFailed(
                f"{self.path}: cannot be rebuilt ({error.strerror})",
                hint="check the folder's permissions and free space, then run the command again",
            ) from error


class SqliteDatabase(Database):
    """An opened file."""

    def __init__(self, path: Path, access: Access) -> None:
        super().__init__(open_engine(path, access), str(path))
        self._path = path

    def transact(
        self, body: Body[Result], *, happened: Happened[Result] | None = None, reading: bool = False
    ) -> Result:
        """Run one transaction; `happened` is not needed, since a commit here always answers."""
        del happened, reading  # every transaction sees one moment only
        try:
            with transaction(self.engine) as connection:
                return body(connection)
        except ShardgenError as error:
            if not _is_stale_journal(error):
                raise
        _finish_interrupted_commit(self._path)
        with transaction(self.engine) as connection:
            return body(connection)

    def now(self, connection: Connection) -> float:
        """This host's clock: a jump of it causes an early takeover at worst, and that is harmless."""
        del connection
        return time.time()

    def hold_for_upgrade(self, connection: Connection) -> None:
        """Nothing to do: BEGIN IMMEDIATE holds the whole file already."""


def _make_folder(folder: Path) -> None:
    try:
        make_folders(folder)
    except OSError as error:
        raise StorageFailed(
            f"{folder}: cannot be made ({error.strerror})",
            hint="check [manifest] url in shardgen.toml and the folder's permissions",
        ) from error


def _finish_interrupted_commit(path: Path) -> None:
    """Roll back what a killed process left; a read-only connection may not do that itself."""
    engine = open_engine(path, Access.WRITE)
    try:
        with transaction(engine):
            pass
    finally:
        engine.dispose()


def open_engine(path: Path, access: Access = Access.WRITE) -> Engine:
    """An engine on a SQLite file. Raises InputMissing when there is none and it is not to be created.

    Read-only connections begin with a plain BEGIN; all others with BEGIN IMMEDIATE.
    """
    if access is not Access.CREATE and not path.is_file():
        raise InputMissing(
            f"{path}: there is no manifest",
            hint="shardgen plan RUN_DIR; or, if there are artifacts, shardgen rebuild RUN_DIR",
        )
    mode = {Access.READ: "ro", Access.WRITE: "rw", Access.CREATE: "rwc"}[access]
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
        connection.exec_driver_sql("BEGIN" if access is Access.READ else "BEGIN IMMEDIATE")

    return engine


def _uri_path(path: Path) -> str:
    # SQLite parses the name as a URI: these would end the path or start an escape.
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error; database errors become ours."""
    try:
        with engine.begin() as connection:
            yield connection
    except DatabaseError as error:
        raise translated(error, engine) from error


def _is_stale_journal(error: ShardgenError) -> bool:
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
_AWAY: _Meaning = (
    StorageFailed,
    "its folder is not there now",
    "mount it, or put it back; then run the command again",
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
    if kind is ManifestGone and not Path(unquote(database)).parent.is_dir():
        kind, fact, hint = _AWAY  # a mount comes back; a file that was deleted from its folder does not
    return kind(f"{database}: {fact} ({name}: {error.orig})", hint=hint)

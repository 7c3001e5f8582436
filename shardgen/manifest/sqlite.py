"""A manifest in a SQLite file on this machine's own disk."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

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
from shardgen.machine.file_systems import refuse_untrusted
from shardgen.manifest.backend import Access, Backend, Body, Damage, Database, Happened, Result, StillAlone
from shardgen.manifest.sqlite_building import alone_in, refuse_existing, staged_file
from shardgen.manifest.sqlite_place import Place, Standing
from shardgen.manifest.tables import MEND, REBUILD
from shardgen.storage.files import is_file, make_folders

_BUSY_TIMEOUT_SECONDS = 30.0  # SQLite's busy handler is unfair: one of 8 saturated writers waited 3.4 s
_READING = "shardgen_reading"  # an execution option of a transaction that changes nothing
_PLACE = "shardgen_place"  # an execution option of every transaction on a file
_INODE = "shardgen_inode"  # of the file that a connection has open
_INTERRUPT_SECONDS = 0.05  # between two attempts to end it
_OF_WHAT_IS_COPIED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CORRUPT_VTAB,
    sqlite3.SQLITE_CORRUPT_SEQUENCE,
    sqlite3.SQLITE_CORRUPT_INDEX,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_BUSY,
}
_STALE_JOURNAL = {sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY}


class SqliteFile(Backend):
    """A manifest's file, there or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = str(path)

    def is_there(self) -> bool:
        """Whether the file is there."""
        return is_file(self.path)

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

    def copy_to(self, target: Path) -> None:
        """Copy it while its writers wait, then read the copy through."""
        try:
            with closing(SqliteDatabase(self.path, Access.READ)) as database:
                database.transact(lambda connection: _copy(connection, target), reading=True)
            with closing(sqlite3.connect(target)) as copy:
                found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            # Pages are copied unread: what is wrong in them is found in the copy, and stands in the source.
            is_read = getattr(error, "sqlite_errorcode", None) in _OF_WHAT_IS_COPIED
            raise explained(error, self.path if is_read else target) from error
        if found != "ok":
            kind, fact, hint = _MEANINGS[sqlite3.SQLITE_CORRUPT]
            raise kind(f"{self.path}: {fact} ({found})", hint=hint)

    def build(self, create: Body[None], fill: Body[None], *, on_step: OnStep) -> None:
        """Fill a file under another name, then give it its own."""
        refuse_untrusted(self.path)
        try:
            make_folders(self.path.parent)
            with (
                self.alone(),
                staged_file(self.path, on_step=on_step) as staged,
                closing(SqliteDatabase(staged, Access.CREATE)) as database,
            ):
                database.transact(create)
                on_step(RebuildStep.STAGED)
                database.transact(fill)
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
        """Run one transaction; `happened` is asked after a commit that failed, but may stand all the same."""
        engine = self.engine.execution_options(**{_READING: reading})
        results = list[Result]()
        try:
            with transaction(engine) as connection:
                results.append(body(connection))
            return results[0]
        except StorageFailed as error:
            if results and happened is not None and self._took_place(happened, results[0]):
                return results[0]
            if not _is_stale_journal(error):
                raise
        # Roll back what a killed process left; a read-only connection may not do that itself.
        with closing(SqliteDatabase(self._path, Access.WRITE)) as writer, transaction(writer.engine):
            pass
        with transaction(engine) as connection:
            return body(connection)

    def _took_place(self, happened: Happened[Result], result: Result) -> bool:
        """A commit whose journal is gone stands; any other is undone by whoever looks first."""
        with suppress(ShardgenError), transaction(self.engine) as connection:
            return happened(connection, result)
        return False

    def damage(self, *, seconds: float) -> Damage:
        """Look through the whole file (PRAGMA quick_check); meanwhile nobody can commit."""
        try:
            return self.transact(lambda connection: _quick_check(connection, seconds))
        except ManifestCorrupt as error:
            return Damage(facts=(str(error).removeprefix(f"{self.shown}: "),))

    def now(self, connection: Connection) -> float:
        """This host's clock: a jump of it causes an early takeover at worst, and that is harmless."""
        del connection
        return time.time()

    def hold_for_upgrade(self, connection: Connection) -> None:
        """Nothing to do: BEGIN IMMEDIATE holds the whole file already."""


def _quick_check(connection: Connection, seconds: float) -> Damage:
    """In a thread, so that this one hears signals: what a progress handler raises, sqlite3 drops."""
    driver, may_begin = _driver(connection), Event()
    found = Future[Sequence[str]]()

    def look() -> None:
        may_begin.wait()
        try:
            found.set_result(connection.exec_driver_sql("PRAGMA quick_check(3)").scalars().all())
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            found.set_exception(error)

    thread = Thread(target=look, daemon=True)
    thread.start()  # a signal in here leaves a thread that never begins
    try:
        may_begin.set()
        facts = [" ".join(fact.split()) for fact in found.result(seconds) if fact != "ok"]
    except TimeoutError:
        return Damage(is_complete=False)
    finally:
        may_begin.set()
        while thread.is_alive():
            driver.interrupt()  # does nothing to a statement that has not begun
            thread.join(_INTERRUPT_SECONDS)
    return Damage(facts=tuple(f"the database is damaged ({fact})" for fact in facts))


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError(f"not a connection to SQLite: {driver!r}")
    return driver


def _make_folder(folder: Path) -> None:
    try:
        make_folders(folder)
    except OSError as error:
        raise StorageFailed(
            f"{folder}: cannot be made ({error.strerror})",
            hint="check [manifest] url in shardgen.toml and the folder's permissions",
        ) from error


def _copy(connection: Connection, target: Path) -> None:
    """All pages in one step: in several, each commit of another process would start the copy anew."""
    source = _driver(connection)
    with closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA journal_mode=OFF")  # nobody needs half a copy, nor a journal of it
        copy.execute("PRAGMA synchronous=OFF")
        source.backup(copy)


def open_engine(path: Path, access: Access = Access.WRITE) -> Engine:
    """An engine on a SQLite file. Raises InputMissing when there is none and it is not to be created.

    Read-only connections begin with a plain BEGIN; all others with BEGIN IMMEDIATE.
    """
    if access is not Access.CREATE and not is_file(path):
        raise InputMissing(
            f"{path}: there is no manifest",
            hint="shardgen plan RUN_DIR; or, if there are artifacts, shardgen rebuild RUN_DIR",
        )
    mode = {Access.READ: "ro", Access.WRITE: "rw", Access.CREATE: "rwc"}[access]
    database = f"file:{_uri_path(path)}"
    url = URL.create("sqlite", database=database, query={"mode": mode, "uri": "true"})
    place = Place.of(path.resolve())
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS}, execution_options={_PLACE: place}
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_INODE] = place.inode()
        # None stops the driver from beginning (deferred) transactions of its own; ours begin below.
        connection.isolation_level = None
        cursor = connection.cursor()
        # EXTRA also syncs the folder after the journal is deleted: durable on power loss, in rollback mode.
        cursor.execute("PRAGMA synchronous=EXTRA")
        cursor.execute("PRAGMA foreign_keys=ON")
        # A large statement's own journal would need a folder for temporary files; there may be none.
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred BEGIN lets two workers read the same free slice: IMMEDIATE takes the write lock first.
        # Who only reads must not wait for a writer, which may hang with that lock in its hand.
        is_reading = access is Access.READ or connection.get_execution_options().get(_READING)
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")
        if is_reading:
            connection.exec_driver_sql("PRAGMA schema_version").scalar()  # takes the lock, after a writer
        # SQLite finds the journal of a commit that was cut short by the file's path. While the folder is away
        # it finds none, and would show as committed what is undone when the folder is back.
        standing = place.look(connection.info[_INODE])
        if standing is not Standing.HERE:
            kind, fact, hint = _MISPLACED[standing]
            raise kind(f"{place.path}: {fact}", hint=hint)

    return engine


def _uri_path(path: Path) -> str:
    # SQLite parses the name as a URI: these would end the path or start an escape.
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error; database errors become ours."""
    try:
        with engine.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            except (DatabaseError, StorageFailed):
                # The pages that it keeps may be undone by others, and a disk that comes back is opened anew.
                connection.invalidate()
                raise
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
    "its folder is not there",
    "mount it, or put it back; then run the command again",
)
_WAS_AWAY: _Meaning = (
    StorageFailed,
    "its folder was away for a moment",
    "run the command again; nothing recorded is lost",
)
_BUSY: _Meaning = (
    ManifestBusy,
    f"locked by other processes for {_BUSY_TIMEOUT_SECONDS:g} s",
    "run the command again; if it stays locked, look for a stopped process that has it open",
)
_OTHER: _Meaning = (
    ManifestMismatch,
    "not a manifest of this version of shardgen",
    "check [manifest] url in shardgen.toml",
)
_MISPLACED = {Standing.AWAY: _AWAY, Standing.GONE: _GONE, Standing.UNFINISHED: _WAS_AWAY}
_MEANINGS: dict[int, _Meaning] = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _FULL,
    sqlite3.SQLITE_IOERR_DELETE_NOENT: _WAS_AWAY,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_READONLY_DBMOVED: _WAS_AWAY,
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
        REBUILD,
    ),
    sqlite3.SQLITE_CONSTRAINT: (
        ManifestCorrupt,
        "its rows contradict its rules",
        MEND,
    ),
}


def translated(error: DatabaseError, engine: Engine) -> ShardgenError:
    """The deliberate error for a database error."""
    place: Place = engine.get_execution_options()[_PLACE]
    return explained(error.orig or error, place.path, place)


def explained(error: BaseException, path: Path, place: Place | None = None) -> ShardgenError:
    """The deliberate error for one of the driver's; decided on SQLite's codes, never on message text."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    # An extended code says more than the plain one in its low byte.
    if code is None and isinstance(error, sqlite3.OperationalError):
        code = sqlite3.SQLITE_CORRUPT  # the module itself speaks: a text that it has read is no UTF-8
    kind, fact, hint = _OTHER if code is None else _MEANINGS.get(code) or _MEANINGS.get(code & 0xFF, _OTHER)
    with suppress(StorageFailed):  # SQLite has many codes for a file that is not there any more
        standing = (place or Place(path)).look()
        if standing in (Standing.AWAY, Standing.GONE):
            kind, fact, hint = _MISPLACED[standing]
    return kind(f"{path}: {fact} ({name}: {error})", hint=hint)

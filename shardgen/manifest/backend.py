"""What a manifest needs from any database: opening it, its clock, transactions that end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine

from shardgen.domain.steps import OnStep
from shardgen.errors import ManifestCorrupt
from shardgen.manifest.tables import REBUILD

Result = TypeVar("Result")
Body = Callable[[Connection], Result]
"""What one transaction does; it may be called again when the first call is known to have changed nothing."""
StillAlone = Callable[[], None]
"""Raises ManifestBusy when the right to be alone is lost; to be asked before each step that needs it."""
Happened = Callable[[Connection, Result], bool]
"""Asked in a new transaction after a commit without an answer: whether what gave this result is there."""


class Access(StrEnum):
    """What an opened database is for."""

    READ = "read"
    WRITE = "write"
    CREATE = "create"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What a database found wrong with its own bytes; not `is_complete`: its time ran out before the end.

    Not `is_looked_for`: a server watches its own files.
    """

    facts: tuple[str, ...] = ()
    is_complete: bool = True
    is_looked_for: bool = True

    def refuse(self, where: str) -> None:
        """Raise ManifestCorrupt, if anything was found."""
        if self.facts:
            raise ManifestCorrupt(f"{where}: {'; '.join(self.facts)}", hint=REBUILD)

    @staticmethod
    def remark(where: str, seconds: float) -> str:
        """What to say of a look that was cut short."""
        return f"looked for damage in {where} for {seconds:g} s only"


class Database(ABC):
    """An opened database. Thread-safe; never carried over a fork."""

    def __init__(self, engine: Engine, shown: str) -> None:
        self.engine = engine
        self.shown = shown

    def close(self) -> None:
        """Give back the connections."""
        self.engine.dispose()

    @abstractmethod
    def transact(
        self, body: Body[Result], *, happened: Happened[Result] | None = None, reading: bool = False
    ) -> Result:
        """Run one transaction: committed when `body` returns, rolled back when it raises.

        Database errors become ours. A `reading` one changes nothing, and sees one moment only.
        """

    @abstractmethod
    def now(self, connection: Connection) -> float:
        """UTC seconds since 1970 by the clock that leases expire by."""

    def damage(self, *, seconds: float) -> Damage:
        """Look for damage, so many seconds at most; nothing on a server, which watches its own files."""
        del seconds
        return Damage(is_looked_for=False)

    @abstractmethod
    def hold_for_upgrade(self, connection: Connection) -> None:
        """Until this transaction ends, no other may create or upgrade the manifest."""


class Backend(ABC):
    """Where a manifest is, or is to be."""

    shown: str
    """For messages: the file, or the server and the database; never a user or a password."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether there is something to open; False only if that is certain."""

    @abstractmethod
    def open(self, access: Access) -> Database:
        """Open it. Raises InputMissing, ManifestMismatch, ManifestBusy, StorageFailed."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[StillAlone]:
        """Neither two rebuilds nor a rebuild and a sweep at once. Raises ManifestBusy."""

    @abstractmethod
    def refuse_existing(self) -> None:
        """Raise ManifestMismatch when a manifest is there, or what would get into a new one's way."""

    @abstractmethod
    def build(self, create: Body[None], fill: Body[None], *, on_step: OnStep) -> None:
        """Make a new manifest, there all at once or not: `create` makes its tables, `fill` its rows."""

    @abstractmethod
    def copy_to(self, target: Path) -> None:
        """Copy one moment of it into an empty file, whoever writes meanwhile; not durable yet.

        Raises InvalidSettings where that is another program's work, ManifestCorrupt for a damaged one.
        """

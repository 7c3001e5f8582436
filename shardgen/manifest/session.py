"""An opened manifest's transactions, and what its parts are made of: SQL that each runs in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from shardgen.domain.layout import Layout
from shardgen.manifest.backend import Body, Database, Happened, Result
from shardgen.manifest.slices import from_seconds

Clock = Callable[[], datetime]
Arguments = ParamSpec("Arguments")


class Session:
    """The transactions of one run's manifest. Thread-safe; never carried over a fork.

    `clock` replaces the database's own, which leases expire by.
    """

    def __init__(self, database: Database, layout: Layout, clock: Clock | None) -> None:
        self.database = database
        self.layout = layout
        self._clock = clock

    def now(self, connection: Connection) -> datetime:
        """The manifest's clock: the one that leases expire by."""
        return from_seconds(self.database.now(connection)) if self._clock is None else self._clock()

    def read(self, body: Body[Result]) -> Result:
        """One transaction that changes nothing."""
        return self.database.transact(body, reading=True)

    def write(self, body: Body[Result], happened: Happened[Result] | None = None) -> Result:
        """`body` must be harmless when it is done twice, or else `happened` tell that it was done."""
        return self.database.transact(body, happened=happened)


class Part:
    """Some of what may be asked of a manifest; each method is one short transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session


Of = TypeVar("Of", bound=Part)


def reading(
    body: Callable[Concatenate[Of, Connection, Arguments], Result],
) -> Callable[Concatenate[Of, Arguments], Result]:
    """Make a part's method of its SQL, which changes nothing."""

    @wraps(body)
    def method(part: Of, /, *given: Arguments.args, **named: Arguments.kwargs) -> Result:
        return part.session.read(lambda connection: body(part, connection, *given, **named))

    return method


def writing(
    body: Callable[Concatenate[Of, Connection, Arguments], Result],
) -> Callable[Concatenate[Of, Arguments], Result]:
    """Make a part's method of its SQL, which is harmless when it is done twice."""

    @wraps(body)
    def method(part: Of, /, *given: Arguments.args, **named: Arguments.kwargs) -> Result:
        return part.session.write(lambda connection: body(part, connection, *given, **named))

    return method

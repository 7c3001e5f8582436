"""An opened manifest's transactions, and what its parts are made of: SQL that each runs in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, select

from shardgen.domain.layout import Layout
from shardgen.domain.plan import Plan
from shardgen.errors import PlanConflict
from shardgen.manifest.backend import Body, Database, Happened, Result
from shardgen.manifest.slices import from_seconds
from shardgen.manifest.tables import RUN

Clock = Callable[[], datetime]
Arguments = ParamSpec("Arguments")


class Session:
    """The transactions of one run's manifest. Thread-safe; never carried over a fork.

    `clock` replaces the database's own, which leases expire by.
    """

    def __init__(self, database: Database, plan: Plan, clock: Clock | None) -> None:
        self.database = database
        self.layout: Layout = plan.layout
        self._fingerprint = plan.fingerprint
        self._clock = clock

    def now(self, connection: Connection) -> datetime:
        """The manifest's clock: the one that leases expire by."""
        return from_seconds(self.database.now(connection)) if self._clock is None else self._clock()

    def hold_plan(self, connection: Connection) -> None:
        """Until this transaction ends, nobody changes the plan. Raises PlanConflict when somebody has.

        To be asked before any row is locked: whoever changes the plan takes this lock first, too.
        """
        # SQLite drops the lock's clause: there BEGIN IMMEDIATE keeps everybody else out.
        query = select(RUN.c.fingerprint).with_for_update(read=True)
        if connection.execute(query).scalar_one_or_none() != self._fingerprint:
            raise planned_anew(self.database.shown)

    def read(self, body: Body[Result]) -> Result:
        """One transaction that changes nothing."""
        return self.database.transact(body, reading=True)

    def write(self, body: Body[Result], happened: Happened[Result] | None = None) -> Result:
        """`body` must be harmless when it is done twice, or else `happened` tell that it was done."""
        return self.database.transact(body, happened=happened)


def planned_anew(where: str) -> PlanConflict:
    """The error of a process that still goes by an earlier plan of this run."""
    return PlanConflict(
        f"{where}: the plan changed after this process had read it",
        hint="start it again to use the new plan",
    )


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

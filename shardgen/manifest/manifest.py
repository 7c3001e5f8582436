"""The manifest of one run: create it, or open it as the parts that callers need."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Self

from sqlalchemy import Connection, select, update

from shardgen.domain.overview import Details, Overview
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestCorrupt
from shardgen.manifest import (
    schema,
)
from shardgen.manifest.backend import Access
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.leases import Leases
from shardgen.manifest.operator import Operator
from shardgen.manifest.overview import read_details, read_overview
from shardgen.manifest.receipts import Receipts
from shardgen.manifest.schema import StoredPlan
from shardgen.manifest.session import Clock, Part, Session, reading, writing
from shardgen.manifest.shared import MachineIndex
from shardgen.manifest.suspicion import Suspicions
from shardgen.manifest.tables import REBUILD, RUN
from shardgen.manifest.workers import MicroBatches, Workers


def create_manifest(url: DatabaseUrl, plan: Plan, *, artifacts_exist: bool = False) -> bool:
    """Create or upgrade the manifest of a plan; twice is harmless. Returns whether it was new.

    Raises PlanConflict when it would be new although artifacts of an earlier one exist: a lost manifest must
    not look like a fresh start.
    """
    database = url.backend.open(Access.CREATE)

    def create(connection: Connection) -> bool:
        database.hold_for_upgrade(connection)
        return schema.create_or_upgrade(
            connection, plan, where=database.shown, artifacts_exist=artifacts_exist
        )

    try:
        return database.transact(create)
    finally:
        database.close()


def read_stored_plan(url: DatabaseUrl, known: str = "") -> StoredPlan | None:
    """What the manifest says of its plan, without its text if its fingerprint is `known`.

    None when there is no manifest.
    """
    if not url.backend.is_there():
        return None
    with closing(url.backend.open(Access.READ)) as database:
        return database.transact(
            lambda connection: schema.read_stored(connection, where=database.shown, known=known), reading=True
        )


class Manifest:
    """One run's manifest, opened: each part is what one kind of caller needs of it.

    Thread-safe; never carried over a fork. Close it, or use it in a `with`. `clock` replaces the database's
    own, which leases expire by.
    """

    def __init__(
        self, url: DatabaseUrl, plan: Plan, *, read_only: bool = False, clock: Clock | None = None
    ) -> None:
        database = url.backend.open(Access.READ if read_only else Access.WRITE)
        self._plan = plan
        self._session = session = Session(database, plan, clock)
        self.workers = Workers(session)
        self.micro_batches = MicroBatches(session)
        self.folder = ArtifactFolder(session)
        self.leases = Leases(session)
        self.suspicion = Suspicions(session)
        self.receipts = Receipts(session)
        self.index = MachineIndex(session)
        self.operator = Operator(session)
        try:
            session.read(lambda connection: self._check(connection, plan))
        except BaseException:
            self.close()
            raise

    def _check(self, connection: Connection, plan: Plan) -> None:
        schema.check_revision(connection, where=self.shown)
        found = connection.execute(select(RUN.c.fingerprint)).scalar_one_or_none()
        if found is None:
            raise ManifestCorrupt(f"{self.shown}: names no plan", hint=REBUILD)
        if found != plan.fingerprint:
            raise schema.other_plan(connection, self.shown, found, plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._session.database.close()

    @property
    def shown(self) -> str:
        """For messages: the file, or the server and the database."""
        return self._session.database.shown

    def now(self) -> datetime:
        """The manifest's clock: the one that leases expire by."""
        return self._session.read(self._session.now)

    def overview(self) -> Overview:
        """The state of the run, in O(shards + workers)."""
        return self._session.read(lambda connection: read_overview(connection, self._session.now(connection)))

    def details(self, *, newest: int) -> Details:
        """What else a person wants to see, with so many newest receipts; in O(slices + batches)."""
        return self._session.read(
            lambda connection: read_details(
                connection, self._plan, self._session.now(connection), newest=newest
            )
        )


class ArtifactFolder(Part):
    """The folder that all workers of the run write to."""

    @reading
    def identity(self, connection: Connection) -> str | None:
        """Its identity; None while no worker has started."""
        return _artifact_folder(connection)

    @writing
    def claim(self, connection: Connection, identity: str) -> str:
        """Make a folder the run's if it has none yet; returns the identity of the one that it has."""
        nobodys = RUN.c.artifact_folder.is_(None)
        connection.execute(update(RUN).where(nobodys).values(artifact_folder=identity))
        return _artifact_folder(connection) or identity

    @writing
    def replace(self, connection: Connection, identity: str) -> None:
        """Make a folder the run's, whichever it had."""
        connection.execute(update(RUN).values(artifact_folder=identity))


def _artifact_folder(connection: Connection) -> str | None:
    found: str | None = connection.execute(select(RUN.c.artifact_folder)).scalar_one()
    return found

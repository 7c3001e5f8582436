"""Which artifact folder a run has: the identity of the first one that a worker wrote to."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from shardgen.manifest.tables import RUN


def read(connection: Connection) -> str | None:
    """The identity of the run's artifact folder; None while no worker has started."""
    found: str | None = connection.execute(select(RUN.c.artifact_folder)).scalar_one()
    return found


def claim(connection: Connection, identity: str) -> str:
    """Make this folder the run's if it has none yet; returns which one it has."""
    nobodys = RUN.c.artifact_folder.is_(None)
    connection.execute(update(RUN).where(nobodys).values(artifact_folder=identity))
    return read(connection) or identity


def replace(connection: Connection, identity: str) -> None:
    """Make this folder the run's, whichever it had."""
    connection.execute(update(RUN).values(artifact_folder=identity))

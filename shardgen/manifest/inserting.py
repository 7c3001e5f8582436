"""Insert what another process may insert at the same time."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import IntegrityError


def insert_unless_there(connection: Connection, table: Table, values: Mapping[str, object]) -> None:
    """Insert a row, or leave the one that another transaction has just committed under the same key."""
    try:
        with connection.begin_nested():
            connection.execute(insert(table), dict(values))
    except IntegrityError:
        pass  # a savepoint was rolled back, and the row is there to be read

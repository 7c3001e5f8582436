"""What every change of a slice's row needs: the fence, the shard's counters, the worker's row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Table, and_, insert, update
from sqlalchemy.exc import IntegrityError

from shardgen.domain.identifiers import ShardIndex, SliceIndex
from shardgen.domain.lease import Lease
from shardgen.errors import LeaseLost, ManifestCorrupt
from shardgen.manifest.tables import MEND, SHARD, SLICE, WORKER


def held(lease: Lease) -> ColumnElement[bool]:
    """The fence: the row is still this worker's, under this grant. Late is fine, taken over is not."""
    return and_(
        SLICE.c.shard == lease.shard,
        SLICE.c.slice == lease.slice,
        SLICE.c.worker == lease.worker,
        SLICE.c.fence == lease.fence,
        SLICE.c.state == "leased",
    )


def lease_lost(lease: Lease) -> LeaseLost:
    """The error of a fenced write that changed nothing."""
    return LeaseLost(
        f"shard {lease.shard} slice {lease.slice}: lease with fence {lease.fence} was taken over",
        hint="nothing to do: the slice's new holder finishes it",
    )


def contradictory(where: str, fact: str) -> ManifestCorrupt:
    """The error of records that cannot both be true, for whoever cannot go on because of them."""
    return ManifestCorrupt(f"{where}: {fact}: the manifest contradicts itself", hint=MEND)


def missing_slice(shard: ShardIndex, slice_: SliceIndex) -> ManifestCorrupt:
    """The error of a receipt whose slice is not there."""
    return contradictory(f"shard {shard} slice {slice_}", "has a receipt, but no row")


def move(connection: Connection, shard: ShardIndex, changes: Mapping[str, int]) -> None:
    """Add to the shard's slice counters, named by state."""
    columns = {f"slices_{state}": SHARD.c[f"slices_{state}"] + change for state, change in changes.items()}
    connection.execute(update(SHARD).where(SHARD.c.shard == shard).values(columns))


def hide_from_worker(
    connection: Connection, worker: str | None, shard: ShardIndex, slice_: SliceIndex
) -> None:
    """The worker's row no longer says that it holds this slice."""
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id == worker, WORKER.c.shard == shard, WORKER.c.slice == slice_)
        .values(shard=None, slice=None, lease_expires_at=None)
    )


def to_seconds(instant: datetime) -> float:
    """UTC seconds since 1970 of an aware datetime."""
    return instant.timestamp()


def from_seconds(seconds: float) -> datetime:
    """The aware UTC datetime of seconds since 1970."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def insert_unless_there(connection: Connection, table: Table, values: Mapping[str, object]) -> None:
    """Insert a row, or leave the one that another transaction has just committed under the same key."""
    try:
        with connection.begin_nested():
            connection.execute(insert(table), dict(values))
    except IntegrityError:
        pass  # a savepoint was rolled back, and the row is there to be read

"""After a commit whose answer was lost: whether it took place. Asked in a new transaction."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select

from shardgen.domain.identifiers import SampleIndex, WorkerId
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.receipt import Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.suspicion import SuspectState
from shardgen.manifest.slices import held
from shardgen.manifest.tables import RECEIPT, SLICE, SUSPECT_SAMPLE


def is_granted(connection: Connection, granted: Lease | NoLease) -> bool:
    """Whether the slice is held under this grant's fence."""
    if isinstance(granted, NoLease):
        return False  # it changed nothing that asking again would not
    return connection.execute(select(SLICE.c.fence).where(held(granted))).first() is not None


def has_ended(connection: Connection, lease: Lease) -> bool:
    """Whether nobody holds the slice, and this lease was its last."""
    same = (SLICE.c.shard == lease.shard, SLICE.c.slice == lease.slice, SLICE.c.fence == lease.fence)
    query = select(SLICE.c.fence).where(*same, SLICE.c.state != SliceState.LEASED)
    return connection.execute(query).first() is not None


def are_free(connection: Connection, workers: Collection[WorkerId], slices: int) -> bool:
    """Whether so many slices were taken from these workers that they hold none any more."""
    query = select(SLICE.c.slice).where(
        SLICE.c.state == SliceState.LEASED, SLICE.c.worker.in_(sorted(workers))
    )
    return slices > 0 and connection.execute(query.limit(1)).first() is None


def is_recorded(connection: Connection, receipt: Receipt) -> bool:
    """Whether this very receipt is there: fence, worker and artifact are its own."""
    query = select(RECEIPT.c.batch).where(
        RECEIPT.c.batch == receipt.record.batch,
        RECEIPT.c.fence == receipt.fence,
        RECEIPT.c.worker == receipt.worker,
        RECEIPT.c.artifact == receipt.artifact.name,
    )
    return connection.execute(query).first() is not None


def are_given_up(connection: Connection, lease: Lease, samples: Collection[SampleIndex]) -> bool:
    """Whether the proof that gave these samples up is there; without any, doing it again is harmless."""
    query = select(SUSPECT_SAMPLE.c.sample).where(
        SUSPECT_SAMPLE.c.shard == lease.shard,
        SUSPECT_SAMPLE.c.slice == lease.slice,
        SUSPECT_SAMPLE.c.state == SuspectState.DEAD.value,
    )
    return bool(samples) and set(samples) <= set(connection.execute(query).scalars())


def are_unblocked(connection: Connection, slices: int) -> bool:
    """Whether so many slices were opened that none is blocked any more."""
    blocked = select(SLICE.c.slice).where(SLICE.c.state == SliceState.BLOCKED).limit(1)
    return slices > 0 and connection.execute(blocked).first() is None

"""Reading the state of a run in O(shards + workers), from counters instead of counting."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from sqlalchemy import Connection, select

from shardgen.domain.identifiers import ShardIndex, SliceIndex
from shardgen.domain.overview import BlockedSlice, Overview, ShardState, SliceCounts
from shardgen.domain.slice_state import SliceState
from shardgen.manifest import workers
from shardgen.manifest.receipts import read_provenance
from shardgen.manifest.tables import PROVENANCE, RUN, SHARD, SLICE

BLOCKED_LISTED = 20


def read_overview(connection: Connection, now: datetime) -> Overview:
    """The whole state at `now`, in one transaction."""
    rows = workers.listed(connection, now)
    expired = Counter(row.shard for row in rows if row.holds_expired_lease(now))
    shards = connection.execute(select(SHARD).order_by(SHARD.c.shard)).mappings()
    blocked = connection.execute(
        select(SLICE.c.shard, SLICE.c.slice, SLICE.c.reason)
        .where(SLICE.c.state == SliceState.BLOCKED)
        .order_by(SLICE.c.shard, SLICE.c.slice)
        .limit(BLOCKED_LISTED)
    )
    mixture = connection.execute(
        select(PROVENANCE).where(PROVENANCE.c.batches > 0).order_by(PROVENANCE.c.batches.desc())
    ).mappings()
    return Overview(
        fingerprint=connection.execute(select(RUN.c.fingerprint)).scalar_one(),
        taken_at=now,
        shards=tuple(
            ShardState(
                shard=ShardIndex(row["shard"]),
                stored=row["stored"],
                dead=row["dead"],
                slices=SliceCounts(
                    never_leased=row["slice_count"] - row["next_slice"],
                    open=row["slices_open"],
                    leased=row["slices_leased"] - expired[ShardIndex(row["shard"])],
                    expired=expired[ShardIndex(row["shard"])],
                    done=row["slices_done"],
                    blocked=row["slices_blocked"],
                ),
            )
            for row in shards
        ),
        blocked=tuple(
            BlockedSlice(shard=ShardIndex(shard), slice=SliceIndex(slice_), reason=reason)
            for shard, slice_, reason in blocked
        ),
        workers=rows,
        mixture=tuple((read_provenance(row["document"]), row["batches"]) for row in mixture),
    )

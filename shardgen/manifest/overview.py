"""Reading the state of a run: from counters, in O(shards + workers), and more closely, by counting."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from sqlalchemy import BigInteger, Connection, case, cast, func, select

from shardgen.domain.identifiers import SampleIndex, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.overview import (
    LETTERS_SHOWN,
    BlockedSlice,
    DeadLetterGroup,
    Details,
    Overview,
    ShardState,
    ShownSlice,
    SliceCounts,
    in_order,
)
from shardgen.domain.plan import Plan
from shardgen.domain.slice_state import SliceState
from shardgen.manifest import workers
from shardgen.manifest.receipts import read_dead_letters, read_newest, read_provenance
from shardgen.manifest.slices import from_seconds, to_seconds
from shardgen.manifest.tables import DEAD_LETTER, PROVENANCE, RECEIPT, RUN, SHARD, SLICE, decoding

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


def read_details(connection: Connection, plan: Plan, now: datetime, *, newest: int) -> Details:
    """What is known beyond the counters at `now`, in one transaction."""
    pace, last_stored_at = _pace(connection, outputs=len(plan.outputs))
    return Details(
        slices=_slices(connection, plan.layout, to_seconds(now)),
        pace=pace,
        last_stored_at=last_stored_at,
        newest=tuple(read_newest(connection, newest)),
        dead_letters=_letters(connection),
    )


def _slices(connection: Connection, layout: Layout, now: float) -> tuple[ShownSlice, ...]:
    names = ("shard", "slice", "state", "batches_left", "worker", "expires_at")
    rows = connection.execute(select(*(SLICE.c[name] for name in names)))
    begun = {(shard, slice_): row for shard, slice_, *row in rows}
    shown = []
    for shard in map(ShardIndex, range(layout.shard_count)):
        for slice_ in map(SliceIndex, range(layout.slice_count(shard))):
            batches = len(layout.slice_batch_range(shard, slice_))
            state, left, worker, expires_at = begun.get(
                (shard, slice_), ("never_leased", batches, None, None)
            )
            if expires_at is not None and now >= expires_at:
                state = "expired"
            shown.append(
                ShownSlice(
                    shard=shard,
                    slice=slice_,
                    state=state,
                    batches=batches,
                    batches_done=batches - left,
                    worker=worker or "",
                )
            )
    return tuple(shown)


def _pace(
    connection: Connection, *, outputs: int
) -> tuple[tuple[tuple[datetime, int], ...], datetime | None]:
    """Samples by the minute, and when the newest receipt was recorded; members are some of each sample."""
    exact = RECEIPT.c.recorded_at / 60
    near = cast(exact, BigInteger)  # SQLite cuts off, a server rounds, and not every SQLite knows `floor`
    minute = case((near > exact, near - 1), else_=near).label("minute")
    members = func.sum(RECEIPT.c.members_stop - RECEIPT.c.members_start)
    query = select(minute, members, func.max(RECEIPT.c.recorded_at))
    known = query.where(RECEIPT.c.recorded_at.is_not(None)).group_by("minute").order_by("minute")
    rows = connection.execute(known).all()
    with decoding("when its receipts were recorded"):
        pace = tuple((from_seconds(60 * at), int(of) // outputs) for at, of, _ in rows if of)
        return pace, from_seconds(rows[-1][2]) if rows else None


def _letters(connection: Connection) -> tuple[DeadLetterGroup, ...]:
    reason = DEAD_LETTER.c.reason
    groups = []
    for text, count in connection.execute(select(reason, func.count()).group_by(reason)).all():
        first = read_dead_letters(connection, reason == text, start=SampleIndex(0), limit=LETTERS_SHOWN)
        groups.append(DeadLetterGroup(reason=first[0].reason, count=count, first=tuple(first)))
    return in_order(groups)

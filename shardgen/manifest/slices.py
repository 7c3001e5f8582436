"""Slices: reading their rows, and the only way to change a slice's state and what depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Table,
    and_,
    case,
    delete,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from shardgen.domain.identifiers import ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease
from shardgen.domain.slice_state import ONLY_IN, Event, Guard, SliceState, starts_afresh, transitions
from shardgen.errors import LeaseLost, ManifestBusy, ManifestCorrupt
from shardgen.manifest.tables import MEND, RUN, SHARD, SLICE, SUSPECT_SAMPLE, WORKER, decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRow:
    """A slice as it is read in a transaction, or added; `expires_at` in UTC seconds since 1970."""

    shard: ShardIndex
    slice: SliceIndex
    state: SliceState
    fence: int
    batches_left: int
    deaths: int = 0
    worker: str | None = None
    expires_at: float | None = None


def slice_row(row: RowMapping) -> SliceRow:
    """What a row of the table says. Raises ManifestCorrupt."""
    with decoding(f"shard {row['shard']} slice {row['slice']}"):
        values = {field.name: row[field.name] for field in fields(SliceRow)}
        return SliceRow(**values | {"state": SliceState(row["state"])})


def lock_slices(
    connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None, passing: bool = False
) -> list[SliceRow]:
    """Slices from the lowest up, locked until the transaction ends; or passing over what others have locked.

    SQLite drops the lock's clause: there BEGIN IMMEDIATE keeps everybody else out.
    """
    query = select(SLICE).where(*conditions).order_by(SLICE.c.shard, SLICE.c.slice).limit(limit)
    return [
        slice_row(row) for row in connection.execute(query.with_for_update(skip_locked=passing)).mappings()
    ]


def lock_slice(connection: Connection, shard: ShardIndex, slice_: SliceIndex) -> SliceRow:
    """This slice, locked. Raises ManifestCorrupt when it is not there: whoever asks has a receipt of it."""
    for row in lock_slices(connection, SLICE.c.shard == shard, SLICE.c.slice == slice_):
        return row
    raise contradictory(f"shard {shard} slice {slice_}", "has a receipt, but no row")


def held(lease: Lease) -> ColumnElement[bool]:
    """The fence: the row is still this worker's, under this grant. Late is fine, taken over is not."""
    return and_(
        SLICE.c.shard == lease.shard,
        SLICE.c.slice == lease.slice,
        SLICE.c.worker == lease.worker,
        SLICE.c.fence == lease.fence,
        SLICE.c.state == SliceState.LEASED,
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


def transition(
    connection: Connection,
    event: Event,
    of: Lease | SliceRow,
    *,
    to: SliceState | None = None,
    is_counted: bool = False,
    **values: object,
) -> SliceState:
    """Change a slice's row as the table of transitions says, and set `values` in it. Returns the new state.

    One statement names what the table demands: of a lease its worker and fence, of a row what was read. Where
    the table leaves it open whether the slice is done, the new `batches_left` decides in that statement.
    Then the shard's counters (unless `is_counted`), the holder's row and what was suspected follow. Locks are
    taken in this order: slice, shard, worker; whoever changes a provenance as well does so after them.

    Raises LeaseLost when the lease was taken over, ManifestBusy when the row is not what was read.
    """
    before = SliceState.LEASED if isinstance(of, Lease) else of.state
    rules = transitions(event, before, to)
    if any((one.guard is Guard.HELD) != isinstance(of, Lease) for one in rules):
        raise ValueError(f"{event}: {rules[0].guard}")
    sets = dict(values)
    if len(rules) == 1:
        sets |= _entering(before, rules[0].after)
    else:
        if {one.after for one in rules} != {before, SliceState.DONE}:
            raise ValueError(f"{event}: to which state?")
        is_last = _typed("batches_left", values["batches_left"]) == 0
        sets |= {
            name: case((is_last, _typed(name, value)), else_=_typed(name, values.get(name, SLICE.c[name])))
            for name, value in _entering(before, SliceState.DONE).items()
        }
    fence = held(of) if isinstance(of, Lease) else _as_read(of)
    changed = connection.execute(update(SLICE).where(fence).values(sets).returning(SLICE.c.state))
    found = changed.scalar_one_or_none()
    if found is None:
        raise lease_lost(of) if isinstance(of, Lease) else _changed_meanwhile(of)
    after = SliceState(found)
    if after is not before and not is_counted:
        move(connection, of.shard, {before: -1, after: 1})
    if after is not before is SliceState.LEASED:
        _hide_from_worker(connection, of)
    if starts_afresh(before, after):
        same = (SUSPECT_SAMPLE.c.shard == of.shard, SUSPECT_SAMPLE.c.slice == of.slice)
        connection.execute(delete(SUSPECT_SAMPLE).where(*same))
    return after


def _entering(before: SliceState, after: SliceState) -> dict[str, object]:
    """What a change of state does to a row: what the new state does not have is cleared, and so are notes."""
    if after is before:
        return {}
    cleared = [name for name, state in ONLY_IN.items() if state is not after]
    entering: dict[str, object] = dict.fromkeys((*cleared, "noted_batch", "noted_sample"))
    if starts_afresh(before, after):
        entering |= {"suspect_batch": None, "deaths": 0}
    return {"state": after, **entering}


def _typed(name: str, value: object) -> ColumnElement[object]:
    """A value of a column of slices, or what computes it: a server takes no NULL without a type in a case."""
    return value if isinstance(value, ColumnElement) else literal(value, SLICE.c[name].type)


def _as_read(row: SliceRow) -> ColumnElement[bool]:
    names = ("shard", "slice", "state", "fence", "worker")
    return and_(*(SLICE.c[name] == getattr(row, name) for name in names))


def _changed_meanwhile(row: SliceRow) -> ManifestBusy:
    return ManifestBusy(
        f"shard {row.shard} slice {row.slice}: another transaction changed it meanwhile",
        hint="run the command again",
    )


def begin(connection: Connection, layout: Layout, shard: ShardIndex, slices: Iterable[int]) -> None:
    """Add the rows of a shard's next slices: open, and counted."""
    floor = connection.execute(select(RUN.c.fence_floor)).scalar_one()
    rows = [new_slice(layout, shard, SliceIndex(one), fence=floor) for one in slices]
    add_slices(connection, Event.BEGIN, rows)
    move(connection, shard, {SliceState.OPEN: len(rows)}, next_slice=len(rows))


def new_slice(
    layout: Layout, shard: ShardIndex, slice_: SliceIndex, *, recorded: int = 0, fence: int = 0
) -> SliceRow:
    """The row of a slice that nobody holds, with so many receipts."""
    left = len(layout.slice_batch_range(shard, slice_)) - recorded
    state = SliceState.OPEN if left else SliceState.DONE
    return SliceRow(shard=shard, slice=slice_, state=state, fence=fence, batches_left=left)


def add_slices(connection: Connection, event: Event, new: Sequence[SliceRow]) -> None:
    """Add the rows of slices that have none. No counter moves."""
    for one in new:
        transitions(event, None, one.state)
    connection.execute(insert(SLICE), [asdict(one) for one in new])


def move(connection: Connection, shard: ShardIndex, states: Mapping[SliceState, int], **others: int) -> None:
    """Add to the shard's counters, which `status` reads: of slices by state, and others by their columns."""
    changes = {f"slices_{state}": change for state, change in states.items()} | others
    values = {name: SHARD.c[name] + change for name, change in changes.items()}
    connection.execute(update(SHARD).where(SHARD.c.shard == shard).values(values))


def _hide_from_worker(connection: Connection, of: Lease | SliceRow) -> None:
    """The worker's row no longer says that it holds this slice."""
    same = (WORKER.c.id == of.worker, WORKER.c.shard == of.shard, WORKER.c.slice == of.slice)
    connection.execute(update(WORKER).where(*same).values(shard=None, slice=None, lease_expires_at=None))


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

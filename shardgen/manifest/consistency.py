"""Whether a manifest agrees with itself and the plan, and how to put it right: only a receipt means done.

A shard, its slices and its receipts change together in one transaction, so each is looked at in one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    RowMapping,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    update,
)

from shardgen.domain.identifiers import BatchIndex, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.slice_state import Event, SliceState
from shardgen.domain.wording import counted
from shardgen.manifest.slices import (
    SliceRow,
    add_slices,
    contradictory,
    new_slice,
    slice_row,
    transition,
)
from shardgen.manifest.tables import DEAD_LETTER, PROVENANCE, RECEIPT, RUN, SHARD, SLICE, SUSPECT_SAMPLE

_PAGE_BATCHES = 10_000  # of the shards that one transaction looks at
_COUNTERS = {
    "slice_count": "slices",
    "next_slice": "slices begun",
    "stored": "samples stored",
    "dead": "dead letters",
    **{f"slices_{state}": f"slices {state}" for state in SliceState},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Two records that cannot both be true: where, and what."""

    subject: str
    fact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a look at a manifest found; `is_complete` is False when its time ran out before the end."""

    contradictions: tuple[Contradiction, ...]
    is_complete: bool = True

    def refuse(self, where: str) -> None:
        """Raise ManifestCorrupt, if anything was found."""
        if self.contradictions:
            first = self.contradictions[0]
            more = f" (and {len(self.contradictions) - 1:,} more)" if self.contradictions[1:] else ""
            raise contradictory(where, f"{first.subject} {first.fact}{more}")


def pages(layout: Layout) -> Iterator[range]:
    """The plan's shards, as many of one block at a time as one transaction looks at."""
    step = max(1, _PAGE_BATCHES // layout.batches_per_shard)
    ends = [block.shard for block in layout.starts[1:]] + [layout.shard_count]
    for block, end in zip(layout.starts, ends, strict=True):
        for start in range(block.shard, end, step):
            yield range(start, min(start + step, end))


# what belongs to no shard of the plan


def find_strays(connection: Connection, layout: Layout) -> list[Contradiction]:
    """Rows that the plan has no place for, and dead letters without a receipt."""
    found = []
    for table, condition in _strays(layout).items():
        key = next(iter(table.primary_key))
        rows, first = connection.execute(select(func.count(), func.min(key)).where(condition)).one()
        if rows:
            what = counted(rows, table.name.replace("_", " "))
            why = "no receipt" if table is DEAD_LETTER else "no place in the plan"
            fact = f"{'have' if rows > 1 else 'has'} {why} (the first: {key.name} {first})"
            found.append(Contradiction(subject=what, fact=fact))
    return found


def remove_stray_receipts(connection: Connection, layout: Layout) -> int:
    """Delete receipts that the plan has no batch for, and dead letters without a receipt. How many rows."""
    strays = _strays(layout)
    of_strays = DEAD_LETTER.c.batch.in_(select(RECEIPT.c.batch).where(strays[RECEIPT]))
    letters = or_(strays[DEAD_LETTER], of_strays)
    return sum(
        connection.execute(delete(table).where(condition)).rowcount
        for table, condition in ((DEAD_LETTER, letters), (RECEIPT, strays[RECEIPT]))
    )


def remove_stray_shards(connection: Connection, layout: Layout) -> int:
    """Delete slices and shards that the plan does not have; every receipt names its own by then."""
    strays = _strays(layout)
    connection.execute(delete(SUSPECT_SAMPLE).where(_is_unplanned(SUSPECT_SAMPLE, layout)))
    return sum(connection.execute(delete(table).where(strays[table])).rowcount for table in (SLICE, SHARD))


def _strays(layout: Layout) -> dict[Table, ColumnElement[bool]]:
    return {
        RECEIPT: or_(RECEIPT.c.batch < 0, RECEIPT.c.batch >= layout.batch_count),
        DEAD_LETTER: not_(exists().where(RECEIPT.c.batch == DEAD_LETTER.c.batch)),
        SLICE: _is_unplanned(SLICE, layout),
        SHARD: or_(SHARD.c.shard < 0, SHARD.c.shard >= layout.shard_count),
    }


def _is_unplanned(table: Table, layout: Layout) -> ColumnElement[bool]:
    """Whether a slice is outside the plan; all shards of a block but its last have as many slices."""
    shard, slice_ = table.c.shard, table.c.slice
    firsts = [block.shard for block in layout.starts[1:]]
    lasts = [ShardIndex(first - 1) for first in (*firsts, layout.shard_count)]
    most = max(layout.slice_count(ShardIndex(block.shard)) for block in layout.starts)
    return or_(
        shard < 0,
        shard >= layout.shard_count,
        slice_ < 0,
        slice_ >= most,
        *(and_(shard == last, slice_ >= layout.slice_count(last)) for last in lasts),
    )


# what batches were made by


def find_miscounted_provenances(
    connection: Connection, layout: Layout, refuse_late: Callable[[], None] = lambda: None
) -> list[Contradiction]:
    """Kinds of devices and versions that count other batches than the receipts name.

    `refuse_late` is called between the pages of its one transaction, and may raise to end it.
    """
    return [
        Contradiction(
            subject=f"provenance {number}", fact=f"counts {batches:,} batches, its receipts are {receipts:,}"
        )
        for number, batches, receipts in _provenances(connection, layout, refuse_late)
    ]


def recount_provenances(connection: Connection, layout: Layout) -> int:
    """Count them anew. Returns how many were wrong."""
    # Held before anything is counted: whoever records a batch changes one of these rows, and so waits.
    connection.execute(select(PROVENANCE.c.id).order_by(PROVENANCE.c.id).with_for_update()).all()
    wrong = _provenances(connection, layout)
    for number, _, receipts in wrong:
        connection.execute(update(PROVENANCE).where(PROVENANCE.c.id == number).values(batches=receipts))
    return len(wrong)


def _provenances(
    connection: Connection, layout: Layout, refuse_late: Callable[[], None] = lambda: None
) -> list[tuple[int, int, int]]:
    receipts = Counter[int]()
    query = select(RECEIPT.c.provenance, func.count()).group_by(RECEIPT.c.provenance)
    batch, count = RECEIPT.c.batch, layout.batch_count
    strays = or_(batch < 0, batch >= count)
    starts = range(0, count, _PAGE_BATCHES)
    parts = [and_(batch >= start, batch < min(start + _PAGE_BATCHES, count)) for start in starts]
    for page in (strays, *parts):
        refuse_late()
        for number, found in connection.execute(query.where(page)):
            receipts[number] += found
    counts = connection.execute(select(PROVENANCE.c.id, PROVENANCE.c.batches).order_by(PROVENANCE.c.id))
    return [(number, batches, receipts[number]) for number, batches in counts if batches != receipts[number]]


# shards


def find_contradictions(connection: Connection, layout: Layout, shards: range) -> list[Contradiction]:
    """Where counters, slices and receipts of these shards disagree with each other or with the plan."""
    return [Contradiction(subject=one.subject, fact=one.fact) for one in _wrong(connection, layout, shards)]


def mend(connection: Connection, layout: Layout, shards: range) -> int:
    """Make slices and counters of these shards what their receipts say. Returns how many records were wrong.

    A leased slice stays leased, unless all its batches have receipts.
    """
    # In the order that everybody keeps: slices first, then the shard, which every change of theirs needs.
    for table in (SLICE, SHARD):
        keys = list(table.primary_key)
        connection.execute(select(*keys).where(_of(table, shards)).order_by(*keys).with_for_update()).all()
    found = list(_wrong(connection, layout, shards))
    for one in found:
        one.mend(connection)
    return len(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrong:
    subject: str
    fact: str
    mend: Callable[[Connection], object]


@dataclass(slots=True)
class _Recorded:
    """What the receipts of one shard say; batches and highest fence by slice."""

    batches: dict[int, int] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    samples: int = 0
    dead: int = 0


def _wrong(connection: Connection, layout: Layout, shards: range) -> Iterator[_Wrong]:
    """Everything that is wrong, in an order in which it can be mended: rows refer to those before them."""
    recorded = _recorded(connection, layout, shards)
    counters = {row["shard"]: row for row in _rows(connection, SHARD, shards)}
    slices: dict[int, dict[int, SliceRow]] = {shard: {} for shard in shards}
    for row in map(slice_row, _rows(connection, SLICE, shards)):
        slices[row.shard][row.slice] = row
    floor = connection.execute(select(RUN.c.fence_floor)).scalar_one()
    misplaced = _misplaced(connection, layout, shards)  # before anything is changed
    for shard in map(ShardIndex, shards):
        receipts, rows = recorded[shard], slices[shard]
        begun = 1 + max(
            (one for one in (*rows, *receipts.batches) if 0 <= one < layout.slice_count(shard)), default=-1
        )
        wrong_slices = []
        states = dict.fromkeys(SliceState, 0)
        for slice_ in map(SliceIndex, range(begun)):
            size, with_receipt = len(layout.slice_batch_range(shard, slice_)), receipts.batches.get(slice_, 0)
            left = size - with_receipt
            found = rows.get(slice_)
            if found is None:
                fence = max(floor, receipts.fences.get(slice_, 0))
                new = new_slice(layout, shard, slice_, recorded=with_receipt, fence=fence)
                wrong_slices.append(_missing_slice(new))
                states[new.state] += 1
                continue
            state = _state(found, left=left)
            states[state] += 1
            if (found.state, found.batches_left) != (state, left):
                wrong_slices.append(_wrong_slice(found, state=state, left=left, size=size))
        right = {
            "slice_count": layout.slice_count(shard),
            "next_slice": begun,
            "stored": receipts.samples - receipts.dead,
            "dead": receipts.dead,
        } | {f"slices_{state}": count for state, count in states.items()}
        yield from _wrong_counters(shard, counters.get(shard), right)
        yield from wrong_slices
    yield from misplaced


def _rows(connection: Connection, table: Table, shards: range) -> list[RowMapping]:
    return list(connection.execute(select(table).where(_of(table, shards))).mappings())


def _of(table: Table, shards: range) -> ColumnElement[bool]:
    return and_(table.c.shard >= shards.start, table.c.shard < shards.stop)


def _recorded(connection: Connection, layout: Layout, shards: range) -> dict[int, _Recorded]:
    """Count the receipts by the numbers of their batches: whose these are, the plan says."""
    found = {shard: _Recorded() for shard in shards}
    shard, slice_ = _slice_of_receipt(layout, shards)
    here = _planned_for(layout, shards)
    query = select(shard, slice_, func.count(), func.max(RECEIPT.c.batch), func.max(RECEIPT.c.fence))
    for number, of_slice, batches, last, fence in connection.execute(
        query.where(here).group_by(shard, slice_)
    ):
        one = found[number]
        one.batches[of_slice], one.fences[of_slice] = batches, fence
        # Every batch of a shard is full but perhaps its last.
        one.samples += (batches - 1) * layout.batch_size + len(layout.batch_samples(BatchIndex(last)))
    joined = RECEIPT.join(DEAD_LETTER, DEAD_LETTER.c.batch == RECEIPT.c.batch)
    dead = select(shard, func.count()).select_from(joined).where(here).group_by(shard)
    for number, letters in connection.execute(dead):
        found[number].dead = letters
    return found


def _slice_of_receipt(layout: Layout, shards: range) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """Shard and slice by the plan of a receipt of these shards, which are of one block.

    Numbers are written out: a server groups by no parameter.
    """
    block = layout.block_of_shard(ShardIndex(shards[0]))
    first, batch, per_shard, per_slice = (
        literal(number, literal_execute=True)
        for number in (block.shard, block.batch, layout.batches_per_shard, layout.slice_batches)
    )
    inside = RECEIPT.c.batch - batch
    return first + inside // per_shard, (inside % per_shard) // per_slice


def _planned_for(layout: Layout, shards: range) -> ColumnElement[bool]:
    start = layout.shard_batches(ShardIndex(shards[0])).start
    stop = layout.shard_batches(ShardIndex(shards[-1])).stop
    return and_(RECEIPT.c.batch >= start, RECEIPT.c.batch < stop)


def _state(row: SliceRow, *, left: int) -> SliceState:
    """What a slice with so many batches left is: what its row says, where that can be."""
    if not left:
        return SliceState.DONE
    is_nobodys = row.state is SliceState.LEASED and None in (row.worker, row.expires_at)
    return SliceState.OPEN if is_nobodys or row.state is SliceState.DONE else row.state


def _wrong_row(subject: str, fact: str, statement: Executable) -> _Wrong:
    """What one statement puts right."""
    return _Wrong(subject=subject, fact=fact, mend=lambda connection: connection.execute(statement))


def _missing_slice(new: SliceRow) -> _Wrong:
    return _Wrong(
        subject=f"shard {new.shard} slice {new.slice}",
        fact="has no row",
        mend=lambda connection: add_slices(connection, Event.RESTORE, [new]),
    )


def _wrong_slice(row: SliceRow, *, state: SliceState, left: int, size: int) -> _Wrong:
    says = f"is {row.state} with {counted(row.batches_left, 'batch')} left"

    def mend(connection: Connection) -> None:
        # The shard's counters have been put right before.
        transition(connection, Event.MEND, row, to=state, is_counted=True, batches_left=left)

    fact = f"{says}, but {size - left:,} of its {counted(size, 'batch')} have receipts"
    if row.state is SliceState.LEASED and left and left == row.batches_left:
        fact = "is leased to nobody"
    return _Wrong(subject=f"shard {row.shard} slice {row.slice}", fact=fact, mend=mend)


def _wrong_counters(shard: ShardIndex, row: RowMapping | None, right: dict[str, int]) -> Iterator[_Wrong]:
    if row is None:
        yield _wrong_row(f"shard {shard}", "has no row", insert(SHARD).values(shard=shard, **right))
        return
    wrong = [name for name, value in right.items() if row[name] != value]
    if wrong:
        fact = "; ".join(f"counts {row[name]:,} {_COUNTERS[name]}, has {right[name]:,}" for name in wrong)
        yield _wrong_row(f"shard {shard}", fact, update(SHARD).where(SHARD.c.shard == shard).values(right))


def _misplaced(connection: Connection, layout: Layout, shards: range) -> list[_Wrong]:
    """Receipts that name another slice than that of their batch."""
    shard, slice_ = _slice_of_receipt(layout, shards)
    is_elsewhere = or_(RECEIPT.c.shard != shard, RECEIPT.c.slice != slice_)
    query = select(RECEIPT.c.batch, RECEIPT.c.shard, RECEIPT.c.slice).where(
        _planned_for(layout, shards), is_elsewhere
    )
    found = []
    for batch, named, of in connection.execute(query.order_by(RECEIPT.c.batch)):
        right = layout.shard_of_batch(batch), layout.slice_of_batch(batch)
        fact = f"its receipt names shard {named} slice {of}, the plan shard {right[0]} slice {right[1]}"
        moving = update(RECEIPT).where(RECEIPT.c.batch == batch).values(shard=right[0], slice=right[1])
        found.append(_wrong_row(f"batch {batch}", fact, moving))
    return found

"""Recording finished batches, reading them back in pages, and undoing them on the operator's request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, RowMapping, case, delete, insert, null, select, update

from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import (
    ArtifactRef,
    BatchRecord,
    DeadLetter,
    DeadLetterReason,
    OutputSums,
    Provenance,
    Receipt,
    Sums,
)
from shardgen.domain.slice_state import Event, SliceState
from shardgen.errors import ReceiptConflict
from shardgen.manifest import lookups, suspicion
from shardgen.manifest.schema import has_receipts
from shardgen.manifest.session import Part, reading
from shardgen.manifest.slices import (
    held,
    insert_unless_there,
    lease_lost,
    lock_slice,
    move,
    to_seconds,
    transition,
)
from shardgen.manifest.tables import DEAD_LETTER, PROVENANCE, RECEIPT, SLICE, decoding

_PAGE = 2_000  # rows read between two chances for a writer to commit
Row = TypeVar("Row")


class Receipts(Part):
    """What is done. A ReceiptSource."""

    @reading
    def pending_batches(self, connection: Connection, lease: Lease) -> list[BatchIndex]:
        """The slice's batches without a receipt, in order. Raises LeaseLost."""
        return pending_batches(connection, self.session.layout, lease)

    def record(self, lease: Lease, receipt: Receipt) -> bool:
        """Record a finished batch; returns whether it was the slice's last. Raises LeaseLost."""
        return self.session.write(
            lambda connection: record_batch(
                connection, self.session.layout, lease, receipt, now=self.session.now(connection)
            ),
            lambda connection, _: lookups.is_recorded(connection, receipt),
        )

    def receipts(self) -> Iterator[Receipt]:
        """All receipts in batch order; every page is a transaction of its own."""
        return self._paged(read_page, lambda receipt: receipt.record.batch)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters in sample order, with their details."""
        return self._paged(read_dead_letters, lambda letter: letter.sample)

    def artifacts(self) -> Iterator[tuple[BatchIndex, str]]:
        """Every recorded batch with its artifact's name, in order; every page is a transaction of its own."""
        return self._paged(read_artifacts, itemgetter(0))

    def _paged(self, read: Callable[..., list[Row]], number: Callable[[Row], int]) -> Iterator[Row]:
        start = 0
        while True:
            page = self.session.read(partial(read, start=start, limit=_PAGE))
            yield from page
            if len(page) < _PAGE:
                return
            start = number(page[-1]) + 1

    def receipts_of(self, batches: range) -> list[Receipt]:
        """The receipts of consecutive batches, in order."""
        start = BatchIndex(batches.start)
        page = self.session.read(partial(read_page, start=start, limit=len(batches)))
        return [receipt for receipt in page if receipt.record.batch in batches]

    @reading
    def batches_with_dead_letters(self, connection: Connection) -> list[BatchIndex]:
        """The batches that a `requeue --dead-letters` undoes, in order."""
        found = connection.execute(select(DEAD_LETTER.c.batch).distinct().order_by(DEAD_LETTER.c.batch))
        return [BatchIndex(batch) for batch in found.scalars()]

    @reading
    def are_there(self, connection: Connection) -> bool:
        """Whether anything is done."""
        return has_receipts(connection)

    @reading
    def recorded_among(self, connection: Connection, batches: Sequence[BatchIndex]) -> list[BatchIndex]:
        """Those of the batches that have a receipt, in order."""
        return recorded_among(connection, batches)


def pending_batches(connection: Connection, layout: Layout, lease: Lease) -> list[BatchIndex]:
    """The slice's batches without a receipt, in order: what is to do, without a cursor. Raises LeaseLost."""
    if connection.execute(select(SLICE.c.fence).where(held(lease))).first() is None:
        raise lease_lost(lease)
    done = recorded_in_slice(connection, lease.shard, lease.slice)
    return [BatchIndex(b) for b in layout.slice_batch_range(lease.shard, lease.slice) if b not in done]


def recorded_in_slice(connection: Connection, shard: ShardIndex, slice_: SliceIndex) -> set[int]:
    """The batches of a slice that have a receipt."""
    query = select(RECEIPT.c.batch).where(RECEIPT.c.shard == shard, RECEIPT.c.slice == slice_)
    return set(connection.execute(query).scalars())


def record_batch(
    connection: Connection, layout: Layout, lease: Lease, receipt: Receipt, *, now: datetime
) -> bool:
    """Record a finished batch; the last one of the slice ends the lease. Returns whether it did.

    The slice's row changes first, under the fence: it guards the rest of this transaction. Raises
    LeaseLost when the slice was taken over, ReceiptConflict when the batch has a receipt already.
    """
    batch = receipt.record.batch
    state = transition(
        connection,
        Event.RECORD,
        lease,
        batches_left=SLICE.c.batches_left - 1,
        deaths=0,
        noted_batch=None,
        noted_sample=None,
        suspect_batch=case((SLICE.c.suspect_batch == batch, null()), else_=SLICE.c.suspect_batch),
    )
    if connection.execute(select(RECEIPT.c.batch).where(RECEIPT.c.batch == batch)).first() is not None:
        raise ReceiptConflict(
            f"batch {batch}: has a receipt already",
            hint="shardgen verify RUN_DIR says which bytes are right",
        )
    dead = len(receipt.record.dead_letters)
    move(connection, receipt.shard, {}, stored=len(layout.batch_samples(batch)) - dead, dead=dead)
    made_by = provenance_id(connection, receipt.record.provenance)
    insert_receipts(connection, [receipt], [made_by], recorded_at=to_seconds(now))
    suspicion.forget_samples(connection, lease, layout.batch_samples(batch))
    return state is SliceState.DONE


def insert_receipts(
    connection: Connection,
    receipts: Sequence[Receipt],
    provenances: Sequence[int],
    *,
    recorded_at: float | None = None,
) -> None:
    """Add receipts, with the ids of their provenances, and their dead letters.

    `recorded_at`: UTC seconds since 1970; None of what is not new, only new here. Nothing is checked, and no
    counter moves.
    """
    rows = [
        {
            "batch": receipt.record.batch,
            "shard": receipt.shard,
            "slice": receipt.slice,
            "fence": receipt.fence,
            "worker": receipt.worker,
            "artifact": receipt.artifact.name,
            "artifact_bytes": receipt.artifact.size_bytes,
            "artifact_sha256": receipt.artifact.sha256,
            "members_start": receipt.record.members_start,
            "members_stop": receipt.record.members_stop,
            "members_sha256": receipt.record.members_sha256,
            "sums": _sums_to_json(receipt.record.sums),
            "provenance": provenance,
            "recorded_at": recorded_at,
        }
        for receipt, provenance in zip(receipts, provenances, strict=True)
    ]
    connection.execute(insert(RECEIPT), rows)
    letters = [
        {"sample": d.sample, "batch": receipt.record.batch, "reason": d.reason.value, "detail": d.detail}
        for receipt in receipts
        for d in receipt.record.dead_letters
    ]
    if letters:
        connection.execute(insert(DEAD_LETTER), letters)


def provenance_id(connection: Connection, provenance: Provenance, *, batches: int = 1) -> int:
    """The id of a provenance, which so many batches more have."""
    found = connection.execute(
        update(PROVENANCE)
        .where(PROVENANCE.c.document == provenance.text)
        .values(batches=PROVENANCE.c.batches + batches)
        .returning(PROVENANCE.c.id)
    ).scalar_one_or_none()
    if found is None:
        insert_unless_there(connection, PROVENANCE, {"document": provenance.text, "batches": 0})
        return provenance_id(connection, provenance, batches=batches)
    return int(found)


def read_provenance(document: str) -> Provenance:
    """What a row says made its batches. Raises ManifestCorrupt."""
    found = Provenance(text=document)
    with decoding("a provenance"):
        _ = found.facts
    return found


def read_page(connection: Connection, *, start: BatchIndex, limit: int) -> list[Receipt]:
    """Receipts with a batch number of at least `start`, in order, at most `limit` of them."""
    query = select(RECEIPT).where(RECEIPT.c.batch >= start).order_by(RECEIPT.c.batch).limit(limit)
    rows = connection.execute(query).mappings().all()
    if not rows:
        return []
    return _receipts(connection, rows, DEAD_LETTER.c.batch.between(rows[0]["batch"], rows[-1]["batch"]))


def read_newest(connection: Connection, limit: int) -> list[Receipt]:
    """The receipts recorded last, newest first; after those the ones of unknown age, highest batch first."""
    is_known, batch = RECEIPT.c.recorded_at.is_not(None), RECEIPT.c.batch.desc()
    rows: list[RowMapping] = []
    for query in (
        select(RECEIPT).where(is_known).order_by(RECEIPT.c.recorded_at.desc(), batch),
        select(RECEIPT).where(~is_known).order_by(batch),
    ):
        if len(rows) < limit:
            rows += connection.execute(query.limit(limit - len(rows))).mappings()
    return _receipts(connection, rows, DEAD_LETTER.c.batch.in_([row["batch"] for row in rows]))


def _receipts(
    connection: Connection, rows: Sequence[RowMapping], have_letters: ColumnElement[bool]
) -> list[Receipt]:
    if not rows:
        return []
    provenances = {
        row["id"]: read_provenance(row["document"])
        for row in connection.execute(select(PROVENANCE)).mappings()
    }
    dead: dict[int, list[DeadLetter]] = {}
    letters = connection.execute(select(DEAD_LETTER).where(have_letters).order_by(DEAD_LETTER.c.sample))
    for letter in letters.mappings():
        dead.setdefault(letter["batch"], []).append(_dead_letter(letter))
    return [_receipt(row, provenances, dead.get(row["batch"], [])) for row in rows]


def _receipt(row: RowMapping, provenances: dict[int, Provenance], dead: Sequence[DeadLetter]) -> Receipt:
    with decoding(f"the receipt of batch {row['batch']}"):
        sums, provenance = _sums_from_json(row["sums"]), provenances[row["provenance"]]
    return Receipt(
        shard=ShardIndex(row["shard"]),
        slice=SliceIndex(row["slice"]),
        fence=Fence(row["fence"]),
        worker=WorkerId(row["worker"]),
        artifact=ArtifactRef(
            name=row["artifact"], size_bytes=row["artifact_bytes"], sha256=row["artifact_sha256"]
        ),
        record=BatchRecord(
            batch=BatchIndex(row["batch"]),
            members_start=row["members_start"],
            members_stop=row["members_stop"],
            members_sha256=row["members_sha256"],
            sums=sums,
            dead_letters=tuple(dead),
            provenance=provenance,
        ),
    )


def _dead_letter(row: RowMapping) -> DeadLetter:
    with decoding(f"dead letter {row['sample']}"):
        reason = DeadLetterReason(row["reason"])
    return DeadLetter(sample=SampleIndex(row["sample"]), reason=reason, detail=row["detail"])


def read_dead_letters(
    connection: Connection, *conditions: ColumnElement[bool], start: SampleIndex, limit: int
) -> list[DeadLetter]:
    """Dead letters from sample `start` on, in order, at most `limit` of them."""
    query = select(DEAD_LETTER).where(DEAD_LETTER.c.sample >= start, *conditions)
    rows = connection.execute(query.order_by(DEAD_LETTER.c.sample).limit(limit))
    return [_dead_letter(row) for row in rows.mappings()]


def read_artifacts(connection: Connection, *, start: BatchIndex, limit: int) -> list[tuple[BatchIndex, str]]:
    """Recorded batches from `start` on, in order, with their artifacts' names, at most `limit` of them."""
    query = select(RECEIPT.c.batch, RECEIPT.c.artifact).where(RECEIPT.c.batch >= start)
    rows = connection.execute(query.order_by(RECEIPT.c.batch).limit(limit))
    return [(BatchIndex(batch), artifact) for batch, artifact in rows]


def recorded_among(connection: Connection, batches: Iterable[BatchIndex]) -> list[BatchIndex]:
    """Those of the batches that have a receipt, in order."""
    return [
        batch
        for batch in sorted(set(batches))
        if connection.execute(select(RECEIPT.c.batch).where(RECEIPT.c.batch == batch)).first()
    ]


def delete_receipts(connection: Connection, layout: Layout, batches: Iterable[BatchIndex]) -> int:
    """Undo receipts: their slices have these batches to do again. Returns how many there were."""
    provenances = Counter[int]()
    for batch in batches:
        row = connection.execute(select(RECEIPT).where(RECEIPT.c.batch == batch)).mappings().one_or_none()
        if row is None:
            continue
        provenances[row["provenance"]] += 1
        dead = connection.execute(delete(DEAD_LETTER).where(DEAD_LETTER.c.batch == batch)).rowcount
        connection.execute(delete(RECEIPT).where(RECEIPT.c.batch == batch))
        shard = ShardIndex(row["shard"])
        its_slice = lock_slice(connection, shard, SliceIndex(row["slice"]))
        transition(connection, Event.UNDO, its_slice, batches_left=SLICE.c.batches_left + 1)
        stored = len(layout.batch_samples(batch)) - dead
        move(connection, shard, {}, stored=-stored, dead=-dead)
    for number, count in sorted(provenances.items()):  # after every shard, as whoever records does
        same = PROVENANCE.c.id == number
        connection.execute(update(PROVENANCE).where(same).values(batches=PROVENANCE.c.batches - count))
    return provenances.total()


def _sums_to_json(sums: Sums) -> str:
    # Sorted, so that a row which is read back from `receipt.json` is the row that a worker writes.
    return json.dumps(
        {name: asdict(part) for name, part in sums.items()}, separators=(",", ":"), sort_keys=True
    )


def _sums_from_json(text: str) -> Sums:
    return {
        name: OutputSums(
            images=part["images"],
            pixels=part["pixels"],
            sum=tuple(part["sum"]),
            squares=tuple(part["squares"]),
        )
        for name, part in json.loads(text).items()
    }

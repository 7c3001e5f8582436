"""Recording finished batches, reading them back in pages, and undoing them on the operator's request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, RowMapping, case, delete, insert, null, select, update

from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import (
    ArtifactRef,
    BatchRecord,
    DeadLetter,
    DeadLetterReason,
    ImageKind,
    KindSums,
    Provenance,
    Receipt,
    Sums,
)
from shardgen.domain.slice_state import Event, SliceState
from shardgen.errors import ReceiptConflict
from shardgen.manifest import suspicion
from shardgen.manifest.slices import held, insert_unless_there, lease_lost, lock_slice, move, transition
from shardgen.manifest.tables import DEAD_LETTER, PROVENANCE, RECEIPT, SLICE, decoding


def pending_batches(connection: Connection, layout: Layout, lease: Lease) -> list[BatchIndex]:
    """The slice's batches without a receipt, in order: what is to do, without a cursor. Raises LeaseLost."""
    if connection.execute(select(SLICE.c.fence).where(held(lease))).first() is None:
        raise lease_lost(lease)
    done = set(
        connection.execute(
            select(RECEIPT.c.batch).where(RECEIPT.c.shard == lease.shard, RECEIPT.c.slice == lease.slice)
        ).scalars()
    )
    return [BatchIndex(b) for b in layout.slice_batch_range(lease.shard, lease.slice) if b not in done]


def record_batch(connection: Connection, layout: Layout, lease: Lease, receipt: Receipt) -> bool:
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
            hint="shardgen verify RUN_DIR tells which bytes are right",
        )
    dead = len(receipt.record.dead_letters)
    move(connection, receipt.shard, {}, stored=len(layout.batch_samples(batch)) - dead, dead=dead)
    insert_receipts(connection, [receipt], [provenance_id(connection, receipt.record.provenance)])
    suspicion.forget_samples(connection, lease, layout.batch_samples(batch))
    return state is SliceState.DONE


def insert_receipts(connection: Connection, receipts: Sequence[Receipt], provenances: Sequence[int]) -> None:
    """Add receipts, with the ids of their provenances, and their dead letters.

    Nothing is checked here, and no counter moves.
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
    values = asdict(provenance)
    same = [PROVENANCE.c[name] == value for name, value in values.items()]
    found = connection.execute(
        update(PROVENANCE)
        .where(*same)
        .values(batches=PROVENANCE.c.batches + batches)
        .returning(PROVENANCE.c.id)
    ).scalar_one_or_none()
    if found is None:
        insert_unless_there(connection, PROVENANCE, values | {"batches": 0})
        return provenance_id(connection, provenance, batches=batches)
    return int(found)


def read_page(connection: Connection, *, start: BatchIndex, limit: int) -> list[Receipt]:
    """Receipts with a batch number of at least `start`, in order, at most `limit` of them."""
    provenances = {
        row["id"]: Provenance(**{key: row[key] for key in row if key not in ("id", "batches")})
        for row in connection.execute(select(PROVENANCE)).mappings()
    }
    rows = (
        connection.execute(
            select(RECEIPT).where(RECEIPT.c.batch >= start).order_by(RECEIPT.c.batch).limit(limit)
        )
        .mappings()
        .all()
    )
    if not rows:
        return []
    dead: dict[int, list[DeadLetter]] = {}
    letters = connection.execute(
        select(DEAD_LETTER)
        .where(DEAD_LETTER.c.batch.between(rows[0]["batch"], rows[-1]["batch"]))
        .order_by(DEAD_LETTER.c.sample)
    ).mappings()
    for letter in letters:
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


def read_dead_letters(connection: Connection, *, start: SampleIndex, limit: int) -> list[DeadLetter]:
    """Dead letters from sample `start` on, in order, at most `limit` of them."""
    rows = connection.execute(
        select(DEAD_LETTER).where(DEAD_LETTER.c.sample >= start).order_by(DEAD_LETTER.c.sample).limit(limit)
    )
    return [_dead_letter(row) for row in rows.mappings()]


def read_artifacts(connection: Connection, *, start: BatchIndex, limit: int) -> list[tuple[BatchIndex, str]]:
    """Recorded batches from `start` on, in order, with their artifacts' names, at most `limit` of them."""
    query = select(RECEIPT.c.batch, RECEIPT.c.artifact).where(RECEIPT.c.batch >= start)
    rows = connection.execute(query.order_by(RECEIPT.c.batch).limit(limit))
    return [(BatchIndex(batch), artifact) for batch, artifact in rows]


def batches_with_dead_letters(connection: Connection) -> list[BatchIndex]:
    """The batches of all dead letters, in order."""
    found = connection.execute(select(DEAD_LETTER.c.batch).distinct().order_by(DEAD_LETTER.c.batch))
    return [BatchIndex(batch) for batch in found.scalars()]


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
    return json.dumps({kind.value: asdict(part) for kind, part in sums.items()}, separators=(",", ":"))


def _sums_from_json(text: str) -> Sums:
    document = json.loads(text)
    return {
        kind: KindSums(
            images=document[kind.value]["images"],
            pixels=document[kind.value]["pixels"],
            sum=tuple(document[kind.value]["sum"]),
            squares=tuple(document[kind.value]["squares"]),
        )
        for kind in ImageKind
    }

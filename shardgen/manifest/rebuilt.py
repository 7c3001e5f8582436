"""A new manifest from receipts found in artifacts: there all at once, or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from sqlalchemy import Connection, insert, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.manifest import schema
from shardgen.manifest.place import Place
from shardgen.manifest.receipts import insert_receipt
from shardgen.manifest.tables import MICRO_BATCH, PROVENANCE, RUN, SHARD, SLICE


def rebuild_manifest(
    place: Place,
    plan: Plan,
    receipts: Iterable[Receipt],
    *,
    highest_fence: Callable[[], Fence],
    on_step: OnStep = ignore_step,
) -> None:
    """Make the manifest of a plan from these receipts, batches ascending, one per batch.

    `highest_fence` is asked once the receipts have run out: every grant of the new manifest is above it.
    Raises ManifestMismatch when a manifest is there, ManifestBusy while another rebuild is at work.
    """
    backend = place.backend
    backend.refuse_existing()
    backend.build(
        lambda connection: schema.create(connection, plan),
        lambda connection: _fill(connection, plan, receipts, highest_fence=highest_fence),
        on_step=on_step,
    )


def _fill(
    connection: Connection,
    plan: Plan,
    receipts: Iterable[Receipt],
    *,
    highest_fence: Callable[[], Fence],
) -> None:
    for (shard, slice_), group in groupby(receipts, lambda found: (found.shard, found.slice)):
        add_slice(connection, plan.layout, shard, slice_)
        count = 0
        for receipt in group:
            insert_receipt(connection, plan.layout, receipt)
            count += 1
        _count_done(connection, shard, slice_, count)
    _agree_again(connection)
    # What the lost manifest granted is not known; what it granted and was used, is.
    fence = highest_fence()
    connection.execute(update(RUN).values(fence_floor=fence))
    connection.execute(update(SLICE).values(fence=fence))


def _agree_again(connection: Connection) -> None:
    """Keep each device model at the micro-batch that made most of its batches: it decides depth's bytes."""
    made: dict[tuple[str, int], int] = {}
    rows = connection.execute(
        select(PROVENANCE.c.device_model, PROVENANCE.c.micro_batch, PROVENANCE.c.batches)
    )
    for device_model, micro_batch, batches in rows:
        made[device_model, micro_batch] = made.get((device_model, micro_batch), 0) + batches
    for device_model in sorted({device_model for device_model, _ in made}):
        ranked = [(count, -size) for (model, size), count in made.items() if model == device_model]
        values = {"device_model": device_model, "micro_batch": -max(ranked)[1]}
        connection.execute(insert(MICRO_BATCH), values)


def add_slice(connection: Connection, layout: Layout, shard: ShardIndex, slice_: SliceIndex) -> None:
    """Add this slice's row, and those of the slices before it that have none: all of them open."""
    query = select(SHARD.c.next_slice).where(SHARD.c.shard == shard)
    missing = range(connection.execute(query).scalar_one(), slice_ + 1)
    if not missing:
        return
    rows = [
        {
            "shard": shard,
            "slice": number,
            "state": "open",
            "fence": 0,
            "batches_left": len(layout.slice_batch_range(shard, SliceIndex(number))),
            "deaths": 0,
        }
        for number in missing
    ]
    connection.execute(insert(SLICE), rows)
    connection.execute(
        update(SHARD)
        .where(SHARD.c.shard == shard)
        .values(next_slice=SHARD.c.next_slice + len(missing), slices_open=SHARD.c.slices_open + len(missing))
    )


def _count_done(connection: Connection, shard: ShardIndex, slice_: SliceIndex, batches: int) -> None:
    same = (SLICE.c.shard == shard, SLICE.c.slice == slice_)
    left = connection.execute(select(SLICE.c.batches_left).where(*same)).scalar_one() - batches
    state = "done" if left == 0 else "open"
    connection.execute(update(SLICE).where(*same).values(batches_left=left, state=state))
    if state == "done":
        connection.execute(
            update(SHARD)
            .where(SHARD.c.shard == shard)
            .values(slices_open=SHARD.c.slices_open - 1, slices_done=SHARD.c.slices_done + 1)
        )

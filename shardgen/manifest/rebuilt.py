"""A new manifest from receipts found in artifacts: there all at once, or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from sqlalchemy import Connection, insert, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance, Receipt
from shardgen.domain.slice_state import Event, SliceState
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.manifest import schema
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.receipts import insert_receipts, provenance_id, read_provenance
from shardgen.manifest.slices import add_slices, move, new_slice
from shardgen.manifest.tables import MICRO_BATCH, PROVENANCE, RUN, SLICE


def rebuild_manifest(
    url: DatabaseUrl,
    plans: Sequence[Plan],
    receipts: Iterable[Receipt],
    *,
    highest_fence: Callable[[], Fence],
    on_step: OnStep = ignore_step,
) -> None:
    """Make the manifest of the last of these plans from these receipts, batches ascending, one per batch.

    The other plans are those that the run had before. `highest_fence` is asked once the receipts have run
    out: every grant of the new manifest is above it. Raises ManifestMismatch when a manifest is there,
    ManifestBusy while another rebuild is at work.
    """
    *earlier, plan = plans
    backend = url.backend
    backend.refuse_existing()
    backend.build(
        lambda connection: schema.create(connection, plan, earlier=[one.fingerprint for one in earlier]),
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
    # Rows go in slice by slice, counters once a shard: one by one they would take a server most of the time.
    batches = Counter[Provenance]()
    ids: dict[Provenance, int] = {}

    def id_of(receipt: Receipt) -> int:
        provenance = receipt.record.provenance
        batches[provenance] += 1
        if provenance not in ids:
            ids[provenance] = provenance_id(connection, provenance, batches=0)
        return ids[provenance]

    for shard, of_shard in groupby(receipts, attrgetter("shard")):
        _fill_shard(connection, plan.layout, shard, of_shard, id_of)
    for provenance, count in batches.items():
        provenance_id(connection, provenance, batches=count)
    _agree_again(connection)
    # What the lost manifest granted is not known; what it granted and was used, is.
    fence = highest_fence()
    connection.execute(update(RUN).values(fence_floor=fence))
    connection.execute(update(SLICE).values(fence=fence))


def _agree_again(connection: Connection) -> None:
    """Keep each device model at the micro-batch that made most of its batches: it decides depth's bytes."""
    made = Counter[tuple[str, int]]()
    rows = connection.execute(select(PROVENANCE.c.document, PROVENANCE.c.batches))
    for document, batches in rows:
        provenance = read_provenance(document)
        if provenance.micro_batch is not None:
            made[provenance.device_model, provenance.micro_batch] += batches
    for device_model in sorted({device_model for device_model, _ in made}):
        ranked = [(count, -size) for (model, size), count in made.items() if model == device_model]
        values = {"device_model": device_model, "micro_batch": -max(ranked)[1]}
        connection.execute(insert(MICRO_BATCH), values)


def _fill_shard(
    connection: Connection,
    layout: Layout,
    shard: ShardIndex,
    receipts: Iterable[Receipt],
    id_of: Callable[[Receipt], int],
) -> None:
    """Add the shard's receipts and slices; of slices before one that has a receipt, too: those are open."""
    states, stored, dead = Counter[SliceState](), 0, 0
    for slice_, group in groupby(receipts, attrgetter("slice")):
        found = list(group)
        rows = [new_slice(layout, shard, SliceIndex(one)) for one in range(states.total(), slice_)]
        rows.append(new_slice(layout, shard, slice_, recorded=len(found)))
        add_slices(connection, Event.RESTORE, rows)
        states.update(row.state for row in rows)
        insert_receipts(connection, found, [id_of(receipt) for receipt in found])
        for receipt in found:
            letters = len(receipt.record.dead_letters)
            stored += len(layout.batch_samples(receipt.record.batch)) - letters
            dead += letters
    move(connection, shard, states, next_slice=states.total(), stored=stored, dead=dead)

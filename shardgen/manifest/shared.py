"""What the index of a shared folder needs beside a manifest's ordinary writes.

On a shared folder a manifest is one machine's own: it leases among the workers of this machine, and keeps
receipts of what they have made and of what others have published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby

from sqlalchemy import Connection, and_, not_, or_, select, update

from shardgen.domain.claims import Claim, SliceId
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.receipt import ArtifactRef, Receipt
from shardgen.domain.slice_state import Event, SliceState
from shardgen.manifest import lookups
from shardgen.manifest.leases import LeaseRequest, lease_slice
from shardgen.manifest.receipts import delete_receipts, insert_receipts, provenance_id, recorded_in_slice
from shardgen.manifest.session import Part, reading, writing
from shardgen.manifest.slices import begin, lock_slice, move, to_seconds, transition
from shardgen.manifest.tables import RECEIPT, SHARD, SLICE

PUBLISHED = "workers/"
"""What a published artifact's name begins with; a checkpoint on this machine's disk has none of it."""


class MachineIndex(Part):
    """What this machine knows of a shared folder, and does for it."""

    def lease_claimed(
        self, worker: WorkerId, policy: LeasePolicy, claim: Claim, *, gone: Collection[WorkerId] = ()
    ) -> Lease | NoLease:
        """Grant the slice of a claim in a shared folder, if no other worker of this machine holds it."""
        session = self.session

        def take(connection: Connection) -> Lease | NoLease:
            request = LeaseRequest(
                worker=worker,
                now=session.now(connection),
                policy=policy,
                shard=claim.shard,
                slice=claim.slice,
                least_fence=claim.fence,
                gone=gone,
            )
            return lease_claimed(connection, session.layout, request)

        return session.write(take, lookups.is_granted)

    @writing
    def adopt(
        self, connection: Connection, receipts: Sequence[Receipt], lease: Lease | None = None
    ) -> set[BatchIndex]:
        """Take receipts of what others have published; slices that are held here, but `lease`, are left.

        Returns those of the batches that have a receipt here now.
        """
        return adopt(connection, self.session.layout, receipts, lease)

    @writing
    def forget_undone(self, connection: Connection, undone: Mapping[BatchIndex, Fence]) -> int:
        """Delete receipts up to these fences, where nobody here holds the slice. Returns how many."""
        return forget_undone(connection, self.session.layout, undone)

    @reading
    def unpublished(self, connection: Connection) -> list[BatchIndex]:
        """The batches that lie on this machine's disk only, in order."""
        query = select(RECEIPT.c.batch).where(not_(RECEIPT.c.artifact.startswith(PUBLISHED)))
        return [BatchIndex(batch) for batch in connection.execute(query.order_by(RECEIPT.c.batch)).scalars()]

    @writing
    def note_published(self, connection: Connection, batches: Iterable[BatchIndex], ref: ArtifactRef) -> None:
        """From now on these batches' receipts name a published artifact."""
        values = {"artifact": ref.name, "artifact_bytes": ref.size_bytes, "artifact_sha256": ref.sha256}
        connection.execute(update(RECEIPT).where(RECEIPT.c.batch.in_(list(batches))).values(values))

    @reading
    def fence_here(self, connection: Connection, slice_id: SliceId) -> Fence:
        """The highest fence that this machine has granted of a slice; 0 for none."""
        query = select(SLICE.c.fence).where(SLICE.c.shard == slice_id[0], SLICE.c.slice == slice_id[1])
        return Fence(connection.execute(query).scalar_one_or_none() or 0)

    @reading
    def unavailable(self, connection: Connection) -> dict[SliceId, SliceState]:
        """The slices that this machine's workers need not, or may not, claim: their state.

        One that is leased to nobody who renews it is free: whoever claims it takes it over.
        """
        now = to_seconds(self.session.now(connection))
        is_held = and_(SLICE.c.state == SliceState.LEASED, SLICE.c.expires_at > now)
        is_over = SLICE.c.state.in_([SliceState.DONE, SliceState.BLOCKED])
        query = select(SLICE.c.shard, SLICE.c.slice, SLICE.c.state).where(or_(is_held, is_over))
        return {
            (ShardIndex(shard), SliceIndex(slice_)): SliceState(state)
            for shard, slice_, state in connection.execute(query)
        }


def lease_claimed(connection: Connection, layout: Layout, request: LeaseRequest) -> Lease | NoLease:
    """Grant the claimed slice, whose fence will be the claim's or more; NoLease while it is not free here."""
    if request.shard is None or request.slice is None:
        raise ValueError("a claim names a slice")
    _add_slice(connection, layout, request.shard, request.slice)
    return lease_slice(connection, layout, request)


def _add_slice(connection: Connection, layout: Layout, shard: ShardIndex, slice_: SliceIndex) -> None:
    """Add this slice's row, and those of the slices before it that have none: all of them open.

    Nothing if it has one: of a run in a bucket a process has the rows of single slices.
    """
    row = select(SLICE.c.slice).where(SLICE.c.shard == shard, SLICE.c.slice == slice_)
    if connection.execute(row).first() is not None:
        return
    query = select(SHARD.c.next_slice).where(SHARD.c.shard == shard)
    missing = range(connection.execute(query).scalar_one(), slice_ + 1)
    if missing:
        begin(connection, layout, shard, missing)


def adopt(
    connection: Connection, layout: Layout, receipts: Iterable[Receipt], lease: Lease | None
) -> set[BatchIndex]:
    """Take receipts of what others have published; returns those of the batches that have a receipt here now.

    Slices that workers of this machine hold are left alone, but for that of `lease`. The last receipt of a
    slice ends its lease, as `record` does.
    """
    present: set[BatchIndex] = set()
    ordered = sorted(receipts, key=lambda one: one.record.batch)
    for (shard, slice_), group in groupby(ordered, lambda one: (one.shard, one.slice)):
        _add_slice(connection, layout, shard, slice_)
        row = lock_slice(connection, shard, slice_)
        grant = None if lease is None else (lease.shard, lease.slice, lease.worker, lease.fence)
        own = lease if grant == (shard, slice_, row.worker, row.fence) else None
        if row.state is SliceState.LEASED and own is None:
            continue
        here = recorded_in_slice(connection, shard, slice_)
        offered = list(group)
        new = [receipt for receipt in offered if receipt.record.batch not in here]
        present.update(receipt.record.batch for receipt in offered)
        if not new:
            continue
        insert_receipts(connection, new, [provenance_id(connection, one.record.provenance) for one in new])
        samples = sum(len(layout.batch_samples(one.record.batch)) for one in new)
        dead = sum(len(one.record.dead_letters) for one in new)
        move(connection, shard, {}, stored=samples - dead, dead=dead)
        transition(connection, Event.ADOPT, own or row, batches_left=SLICE.c.batches_left - len(new))
    return present


def forget_undone(connection: Connection, layout: Layout, undone: Mapping[BatchIndex, Fence]) -> int:
    """Delete receipts that a requeue has undone, where no worker of this machine holds the slice."""
    if not undone:
        return 0
    same = and_(SLICE.c.shard == RECEIPT.c.shard, SLICE.c.slice == RECEIPT.c.slice)
    rows = connection.execute(
        select(RECEIPT.c.batch, RECEIPT.c.fence)
        .join(SLICE, same)
        .where(SLICE.c.state != SliceState.LEASED, RECEIPT.c.fence <= max(undone.values()))
    )
    batches = [BatchIndex(batch) for batch, fence in rows if fence <= undone.get(batch, -1)]
    return delete_receipts(connection, layout, batches)

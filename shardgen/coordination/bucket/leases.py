"""Leases in a bucket: claim a slice by creating the next version of its row."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from sqlalchemy import Connection

from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.protocol import ReceiptKey, VersionKey
from shardgen.coordination.bucket.rows import FAR, Version, drop, load
from shardgen.coordination.bucket.session import BucketSession
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.slice_state import Event, SliceState
from shardgen.domain.worker import WorkerState, file_name
from shardgen.errors import ManifestCorrupt
from shardgen.manifest.leases import (
    Holder,
    LeaseRequest,
    MayStillCount,
    block,
    check_shard,
    fail,
    free_slices_of,
    lease_slice,
    release,
)
from shardgen.manifest.shared import adopt
from shardgen.manifest.slices import lease_lost, lock_slice, to_seconds, transition

_PASSES = 4  # over the slices, when others were quicker at every one
_NEVER = datetime.fromtimestamp(FAR, UTC)


class BucketLeases:
    """Who holds which slice, by the latest versions."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session
        self._given: set[tuple[SliceId, int]] = set()

    def lease(
        self,
        worker: WorkerId,
        policy: LeasePolicy,
        *,
        shard: ShardIndex | None = None,
        gone: Collection[WorkerId] = (),
    ) -> Lease | NoLease:
        """Claim one slice: a free one, else a silent or gone worker's, else one that nobody has begun.

        Of each kind the lowest; where another was quicker, one farther on, farther each time.
        """
        session = self._session
        check_shard(session.layout, shard)
        session.beat_seconds = policy.heartbeat.total_seconds()
        session.silent_seconds = policy.duration.total_seconds()
        found = NoLease(leased=0, blocked=0)
        is_anew = False
        for _ in range(_PASSES):
            session.view.look(anew=is_anew)
            session.read_ahead(shard)
            candidates, nothing = self._candidates(worker, policy, shard, gone)
            lost = blocked = 0
            while candidates:
                skipped = random.randrange(min(len(candidates), 2**lost))  # noqa: S311 - no secret
                slice_id, seen = candidates.pop(skipped)
                granted = self._claim(slice_id, seen, worker, policy, gone)
                if isinstance(granted, Lease):
                    self._given.add((slice_id, granted.fence))
                    return granted
                if granted is None:
                    lost += 1
                else:
                    blocked += granted.blocked
            # What others were quicker at they hold now; who is told that nothing is leased ends.
            found = NoLease(leased=nothing.leased + lost, blocked=nothing.blocked + blocked)
            if not lost and (found.leased or is_anew):
                break
            is_anew = not lost  # before anybody ends: a rebuild may have removed a receipt
        return found

    def _candidates(
        self, worker: WorkerId, policy: LeasePolicy, shard: ShardIndex | None, gone: Collection[WorkerId]
    ) -> tuple[list[tuple[SliceId, int]], NoLease]:
        """The slices to try, in this order, by the version that was seen; and what there is else."""
        session, view = self._session, self._session.view
        free, silent, new = (list[tuple[SliceId, int]]() for _ in range(3))
        leased = blocked = 0
        for slice_id in view.slices(shard):
            if view.is_done(slice_id):
                continue
            seen, version = view.numbered(slice_id)
            if version is None or version.fingerprint != session.plan.fingerprint:
                new.append((slice_id, seen))
                continue
            is_leased = version.state is SliceState.LEASED
            is_own = self._is_unknown_claim(slice_id, version, worker)
            is_silent = is_leased and (
                is_own or self._is_free_of(slice_id, version.worker or "", policy, gone)
            )
            if protocol.may_claim(version.state, is_silent=is_silent):
                (silent if is_leased and not is_own else free).append((slice_id, seen))
            elif is_leased:
                leased += 1
            else:
                blocked += 1
        return free + silent + new, NoLease(leased=leased, blocked=blocked)

    def _is_unknown_claim(self, slice_id: SliceId, version: Version, worker: WorkerId) -> bool:
        """Whether it is the worker's own claim, and nothing that it holds.

        A request failed for good before it was told of the claim; or it made all of the slice, of which a
        requeue that began before the claim has then undone something.
        """
        if version.state is not SliceState.LEASED or version.worker != worker:
            return False
        return (slice_id, version.fence) not in self._given or not self._session.is_held(
            _grant(slice_id, version)
        )

    def _is_free_of(
        self, slice_id: SliceId, holder: str, policy: LeasePolicy, gone: Collection[WorkerId]
    ) -> bool:
        """Whether the holder of a slice is known to have ended, or is silent."""
        session = self._session
        if holder in gone or session.has_stopped(holder):
            return True
        return session.view.is_silent(slice_id, file_name(holder), policy.duration.total_seconds())

    def _claim(
        self,
        slice_id: SliceId,
        judged: int,
        worker: WorkerId,
        policy: LeasePolicy,
        gone: Collection[WorkerId],
    ) -> Lease | NoLease | None:
        """Create the version after the one that was judged: a grant, or the end of one attempt too many.

        None: another was quicker.
        """
        session = self._session
        seen, row = session.row(slice_id)
        if seen != judged:
            return None
        if row is not None and self._is_unknown_claim(slice_id, row, worker):
            return self._take(self._own(slice_id, row, policy))
        number = protocol.next_version(seen)
        holder = None if row is None or row.worker is None else session.sign_of_worker(row.worker)

        def decide(connection: Connection) -> Lease | NoLease:
            session.count_finished(connection)
            load(connection, session.layout, slice_id, row, expires_at=0.0)
            session.know_worker(connection, holder)
            if holder is not None and holder.state is WorkerState.STOPPED:  # it could not give the slice back
                transition(connection, Event.WITHDRAW, lock_slice(connection, *slice_id))
            request = LeaseRequest(
                worker=worker,
                now=self._session.sql.now(connection),
                policy=policy,
                shard=slice_id[0],
                slice=slice_id[1],
                least_fence=number,
                gone=gone,
            )
            return lease_slice(connection, session.layout, request)

        changed = session.change(slice_id, number, Event.GRANT, decide)
        if changed is None:
            return None
        (granted,) = changed
        if isinstance(granted, NoLease):
            return NoLease(leased=0, blocked=1)
        return self._take(granted)

    def _own(self, slice_id: SliceId, row: Version, policy: LeasePolicy) -> Lease:
        """A grant of this worker that it did not get to know."""
        lease = _grant(slice_id, row, expires_at=self._session.now() + policy.duration)
        seconds = to_seconds(lease.expires_at)
        self._session.sql.write(
            lambda connection: load(connection, self._session.layout, slice_id, row, expires_at=seconds)
        )
        return lease

    def _take(self, lease: Lease) -> Lease | NoLease:
        """After the claim: learn which batches have receipts. If all have, there is nothing to hold."""
        session, slice_id = self._session, (lease.shard, lease.slice)
        session.view.look_at(slice_id)
        try:
            found = list(session.read_receipts(self._winners(slice_id)))
        except ManifestCorrupt:  # a rebuild has removed one; else the second look says the same
            session.view.look(anew=True)
            found = list(session.read_receipts(self._winners(slice_id)))
        self._session.sql.write(lambda connection: adopt(connection, session.layout, found, lease))
        return lease if session.is_held(lease) else NoLease(leased=0, blocked=0)

    def _winners(self, slice_id: SliceId) -> list[ReceiptKey]:
        winners, batches = self._session.view.winners, self._session.layout.slice_batch_range(*slice_id)
        return [winners[one] for one in map(BatchIndex, batches) if one in winners]

    def renew(self, lease: Lease, policy: LeasePolicy) -> None:
        """Look whether a later version is there, and show life. Raises LeaseLost."""
        session, slice_id = self._session, (lease.shard, lease.slice)
        self._session.rows.leases.renew(lease, policy)
        following = protocol.next_version(lease.fence)
        if session.objects.size(str(VersionKey(slice_id=slice_id, number=following))) is not None:
            session.view.note_version(slice_id, following)
            self._session.sql.write(lambda connection: drop(connection, slice_id))
            raise lease_lost(lease)
        session.beat_seconds = policy.heartbeat.total_seconds()
        session.show_life(lease.worker, gap=session.beat_seconds / 2)
        session.view.note_life(slice_id)

    def release(self, lease: Lease) -> bool:
        """Give a slice back unfinished; no death. Returns False when it was not held any more."""
        return self._end(lease, Event.RELEASE, lambda connection: release(connection, lease)) or False

    def fail(self, lease: Lease, failure: str, policy: LeasePolicy) -> bool:
        """Give a slice back that failed for no sample's fault; returns whether it is blocked. LeaseLost."""
        most = policy.max_attempts
        found = self._end(
            lease, Event.FAIL, lambda connection: fail(connection, lease, failure, max_attempts=most)
        )
        if found is None:
            raise lease_lost(lease)
        return found

    def block(self, lease: Lease, reason: str) -> None:
        """Give a slice back that an operator must look at first. Raises LeaseLost."""

        def blocked(connection: Connection) -> bool:
            block(connection, lease, reason)
            return True

        if self._end(lease, Event.BLOCK, blocked) is None:
            raise lease_lost(lease)

    def _end(self, lease: Lease, event: Event, body: Callable[[Connection], bool]) -> bool | None:
        """End a grant by the version after it; None when it has ended already."""
        session, slice_id = self._session, (lease.shard, lease.slice)
        if not session.is_held(lease) and not self._restored(lease):
            return None
        changed = session.change(slice_id, protocol.next_version(lease.fence), event, body)
        if changed is None:
            self._session.sql.write(lambda connection: drop(connection, slice_id))
            return None
        return changed[0]

    def _restored(self, lease: Lease) -> bool:
        """For who did not claim it himself: whether it is the latest version; then its row is here."""
        session, slice_id = self._session, (lease.shard, lease.slice)
        if (slice_id, lease.fence) in self._given:
            return False
        session.view.look()
        number, row = session.row(slice_id)
        if row is None or (number, row.state, row.worker) != (lease.fence, SliceState.LEASED, lease.worker):
            return False
        seconds = to_seconds(lease.expires_at)
        session.sql.write(
            lambda connection: load(connection, session.layout, slice_id, row, expires_at=seconds)
        )
        return True

    def free_slices_of(
        self, gone: Collection[WorkerId], policy: LeasePolicy, *, innocent: Collection[WorkerId] = ()
    ) -> int:
        """Free what ended processes held, at once; no death of those that are `innocent`. How many slices."""
        session = self._session
        session.view.looked_at = float("-inf")  # a worker has ended: whoever asks for the state must look
        if not gone:
            return 0
        session.view.look()
        freed = 0
        for slice_id, version in list(session.view.holders()):
            worker = WorkerId(version.worker or "")
            if worker in gone:
                freed += self._free(slice_id, worker, policy, innocent)
        for worker in gone:
            session.say_of(worker, state=WorkerState.DEAD, samples_per_second=0.0)
        return freed

    def _free(
        self, slice_id: SliceId, worker: WorkerId, policy: LeasePolicy, innocent: Collection[WorkerId]
    ) -> bool:
        session = self._session
        seen, row = session.row(slice_id)
        sign = session.sign_of_worker(worker)

        def end(connection: Connection) -> int:
            load(connection, session.layout, slice_id, row, expires_at=FAR)
            session.know_worker(connection, sign)
            return free_slices_of(connection, [worker], innocent=innocent, max_attempts=policy.max_attempts)

        event = Event.WITHDRAW if worker in innocent else Event.DIE
        return session.change(slice_id, protocol.next_version(seen), event, end) is not None

    def may_still_count(self) -> MayStillCount:
        """Which attempts could still be recorded and count: by the receipts that are there, no holder."""
        view = self._session.view
        view.look(anew=True)

        def may_count(
            shard: ShardIndex, slice_: SliceIndex, *, fence: Fence, worker: str, batches: range
        ) -> bool:
            del shard, slice_, worker
            return any(
                protocol.may_still_count(
                    fence,
                    best=view.winners[batch].fence if batch in view.winners else None,
                    undone=view.undone.get(batch),
                )
                for batch in map(BatchIndex, batches)
            )

        return may_count

    def holders(self) -> list[Holder]:
        """Who holds which slice under which fence, silent or not."""
        self._session.view.look()
        return [
            (slice_id[0], slice_id[1], Fence(version.fence), WorkerId(version.worker or ""))
            for slice_id, version in self._session.view.holders()
        ]


def _grant(slice_id: SliceId, version: Version, *, expires_at: datetime = _NEVER) -> Lease:
    """The lease that a version grants."""
    return Lease(
        shard=slice_id[0],
        slice=slice_id[1],
        worker=WorkerId(version.worker or ""),
        fence=Fence(version.fence),
        expires_at=expires_at,
    )

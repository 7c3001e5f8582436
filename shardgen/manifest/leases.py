"""Granting, renewing and ending leases. Every change names slice, worker and fence in its statement."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.lease import JUDGED_AFTER, Lease, LeasePolicy, NoLease
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.slice_state import Event, SliceState
from shardgen.domain.worker import ENDED_STATES, WorkerState
from shardgen.errors import InvalidSettings, LeaseLost, ManifestBusy, TooManyDead
from shardgen.manifest import lookups, suspicion
from shardgen.manifest.session import Part, reading, writing
from shardgen.manifest.slices import (
    SliceRow,
    begin,
    contradictory,
    held,
    lease_lost,
    lock_slice,
    lock_slices,
    to_seconds,
    transition,
)
from shardgen.manifest.suspicion import Death
from shardgen.manifest.tables import DEAD_LETTER, SHARD, SLICE, WORKER

Holder = tuple[ShardIndex, SliceIndex, Fence, WorkerId]
"""A leased slice, the fence of its grant, and who got it."""


class MayStillCount(Protocol):
    """Whether what an attempt made of some batches of a slice may be recorded from now on, and then count."""

    def __call__(
        self, shard: ShardIndex, slice_: SliceIndex, /, *, fence: Fence, worker: str, batches: range
    ) -> bool:
        """`worker` is the random part of the id, the end of it, as in an artifact's name."""
        ...


_ALL = 100  # per cent
_REASONS = 3  # named in a refusal
_DETAIL_CHARACTERS = 120
_ATTEMPTS = 1_000  # in one transaction; a death that blocks a slice takes one, too


def check_shard(layout: Layout, shard: ShardIndex | None) -> None:
    """Raise InvalidSettings unless the plan has that shard, or none is named."""
    if shard is not None and not 0 <= shard < layout.shard_count:
        raise InvalidSettings(
            f"shard {shard}: the plan's shards are 0 to {layout.shard_count - 1}",
            hint="shardgen status RUN_DIR lists them",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Who asks, when, and for what. `gone` are workers whose process is known to have ended.

    `slice` narrows to one slice of the shard, which has a row already; the fence is `least_fence` or more.
    """

    worker: WorkerId
    now: datetime
    policy: LeasePolicy
    shard: ShardIndex | None = None
    slice: SliceIndex | None = None
    least_fence: int = 0
    gone: Collection[WorkerId] = ()


class Leases(Part):
    """Who holds which slice."""

    def lease(
        self,
        worker: WorkerId,
        policy: LeasePolicy,
        *,
        shard: ShardIndex | None = None,
        gone: Collection[WorkerId] = (),
    ) -> Lease | NoLease:
        """Grant one slice, in one transaction, under a new fence; `gone` workers' slices are free.

        `shard` narrows to one shard. Raises PlanConflict when the run has another plan by now.
        """
        session = self.session
        check_shard(session.layout, shard)

        def take(connection: Connection) -> Lease | NoLease:
            session.hold_plan(connection)
            now = session.now(connection)
            request = LeaseRequest(worker=worker, now=now, policy=policy, shard=shard, gone=gone)
            return lease_slice(connection, session.layout, request)

        return session.write(take, lookups.is_granted)

    @writing
    def renew(self, connection: Connection, lease: Lease, policy: LeasePolicy) -> None:
        """Extend a lease. Raises LeaseLost."""
        renew(connection, lease, expires_at=self.session.now(connection) + policy.duration)

    def release(self, lease: Lease) -> bool:
        """Give a slice back unfinished; no death. Returns False when it was not held any more."""
        return self.session.write(
            lambda connection: release(connection, lease),
            lambda connection, _: lookups.has_ended(connection, lease),
        )

    def fail(self, lease: Lease, failure: str, policy: LeasePolicy) -> bool:
        """Give a slice back that failed for no sample's fault; returns whether it is blocked. LeaseLost."""
        return self.session.write(
            lambda connection: fail(connection, lease, failure, max_attempts=policy.max_attempts),
            lambda connection, _: lookups.has_ended(connection, lease),
        )

    def block(self, lease: Lease, reason: str) -> None:
        """Give a slice back that an operator must look at first. Raises LeaseLost."""
        self.session.write(
            lambda connection: block(connection, lease, reason),
            lambda connection, _: lookups.has_ended(connection, lease),
        )

    def free_slices_of(
        self, gone: Collection[WorkerId], policy: LeasePolicy, *, innocent: Collection[WorkerId] = ()
    ) -> int:
        """Free what ended processes held, at once; no death of those that are `innocent`. How many slices."""
        return self.session.write(
            lambda connection: free_slices_of(
                connection, gone, innocent=innocent, max_attempts=policy.max_attempts
            ),
            lambda connection, slices: lookups.are_free(connection, gone, slices),
        )

    def may_still_count(self) -> MayStillCount:
        """Which attempts could still be recorded: those of who holds a slice, since fences are not reused.

        A lease that has expired counts, too: its holder may record late until somebody takes the slice.
        """
        held = {(shard, slice_, fence, worker[-8:]) for shard, slice_, fence, worker in self.holders()}

        def is_held(
            shard: ShardIndex, slice_: SliceIndex, *, fence: Fence, worker: str, batches: range
        ) -> bool:
            del batches
            return (shard, slice_, fence, worker) in held

        return is_held

    @reading
    def holders(self, connection: Connection) -> list[Holder]:
        """Who holds which slice under which fence; those whose lease has expired may still write."""
        held_ones = select(SLICE.c.shard, SLICE.c.slice, SLICE.c.fence, SLICE.c.worker)
        rows = connection.execute(held_ones.where(SLICE.c.state == SliceState.LEASED))
        return [
            (ShardIndex(shard), SliceIndex(slice_), Fence(fence), WorkerId(worker))
            for shard, slice_, fence, worker in rows
        ]


def lease_slice(connection: Connection, layout: Layout, request: LeaseRequest) -> Lease | NoLease:
    """Grant the lowest open slice, else the lowest expired or orphaned one, else a new one.

    On a server, rows that another transaction is changing are passed over: lowest is a preference there. If
    only such rows were left, it asks again and waits for them, before it says that there is nothing.
    """
    for attempt in range(_ATTEMPTS):
        passing = attempt == 0  # over the rows that others are changing
        row = _lowest(connection, request, SLICE.c.state == SliceState.OPEN, passing=passing)
        if row is not None:
            return _grant(connection, request, row)
        row = _lowest(connection, request, _takeable(request), passing=passing)
        if row is None and request.slice is not None:
            return NoLease(leased=1, blocked=0)
        if row is None:
            found = _grant_new(connection, layout, request) or _nothing(connection, request)
            if found is not None:
                return found
            continue
        death = _death(connection, row, gone=request.gone, seen_by=request.worker)
        if _note_death(connection, row, death, max_attempts=request.policy.max_attempts) is SliceState.OPEN:
            return _grant(connection, request, lock_slice(connection, row.shard, row.slice))
    _refuse_miscounted(connection)
    raise ManifestBusy(
        f"{_ATTEMPTS} times another worker was quicker", hint="run the command again, with fewer workers"
    )


def _takeable(request: LeaseRequest) -> ColumnElement[bool]:
    expired = SLICE.c.expires_at <= to_seconds(request.now)
    return and_(SLICE.c.state == SliceState.LEASED, or_(expired, SLICE.c.worker.in_(sorted(request.gone))))


def _lowest(
    connection: Connection, request: LeaseRequest, condition: ColumnElement[bool], *, passing: bool
) -> SliceRow | None:
    if request.shard is not None:
        condition = and_(condition, SLICE.c.shard == request.shard)
    if request.slice is not None:
        condition = and_(condition, SLICE.c.slice == request.slice)
    return next(iter(lock_slices(connection, condition, limit=1, passing=passing)), None)


def _grant(connection: Connection, request: LeaseRequest, row: SliceRow) -> Lease:
    _refuse_dead_share(connection, request.policy.max_dead_share)
    lease = Lease(
        shard=row.shard,
        slice=row.slice,
        worker=request.worker,
        fence=Fence(max(row.fence + 1, request.least_fence)),
        expires_at=request.now + request.policy.duration,
    )
    seconds = to_seconds(lease.expires_at)
    transition(connection, Event.GRANT, row, worker=lease.worker, fence=lease.fence, expires_at=seconds)
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id == lease.worker)
        .values(shard=lease.shard, slice=lease.slice, lease_expires_at=seconds)
    )
    return lease


def _refuse_dead_share(connection: Connection, limit: float) -> None:
    """Raise TooManyDead when more per cent of the finished samples than this are dead letters."""
    if limit >= _ALL:
        return
    counts = connection.execute(select(func.sum(SHARD.c.stored), func.sum(SHARD.c.dead))).one()
    stored, dead = (int(count or 0) for count in counts)
    finished = stored + dead
    if finished < JUDGED_AFTER or dead * _ALL <= limit * finished:
        return
    raise TooManyDead(
        f"{dead:,} of {finished:,} finished samples are dead letters: {dead * _ALL / finished:.1f} %, more "
        f"than [lease] max_dead_share = {limit:g}: {'; '.join(_frequent_reasons(connection))}",
        hint="shardgen dead-letters RUN_DIR lists them; once the cause is fixed: shardgen requeue RUN_DIR "
        "--dead-letters, or set a higher max_dead_share, then run again",
    )


def _frequent_reasons(connection: Connection) -> Iterator[str]:
    """The most frequent reasons of dead letters, the first sample of each as its example."""
    count, example = func.count(), func.min(DEAD_LETTER.c.sample)
    query = select(DEAD_LETTER.c.reason, count, example).group_by(DEAD_LETTER.c.reason)
    ranked = query.order_by(count.desc(), DEAD_LETTER.c.reason).limit(_REASONS)
    for reason, times, sample in connection.execute(ranked).all():
        text = select(DEAD_LETTER.c.detail).where(DEAD_LETTER.c.sample == sample)
        detail = str(connection.execute(text).scalar_one()).partition("\n")[0][:_DETAIL_CHARACTERS]
        # On a shared folder the text stays with the machine that gave the sample up.
        yield f"{reason} {times:,} times, such as sample {sample:,}" + (f" ({detail})" if detail else "")


def _grant_new(connection: Connection, layout: Layout, request: LeaseRequest) -> Lease | None:
    query = select(SHARD.c.shard, SHARD.c.next_slice).where(SHARD.c.next_slice < SHARD.c.slice_count)
    if request.shard is not None:
        query = query.where(SHARD.c.shard == request.shard)
    # Waited for, not passed over: its counters change with every receipt, and shards should fill in order.
    waiting = query.order_by(SHARD.c.shard).limit(1).with_for_update()
    row = connection.execute(waiting).mappings().one_or_none()
    if row is None:
        return None
    shard, slice_ = ShardIndex(row["shard"]), SliceIndex(row["next_slice"])
    begin(connection, layout, shard, [slice_])
    return _grant(connection, request, lock_slice(connection, shard, slice_))


def _nothing(connection: Connection, request: LeaseRequest) -> NoLease | None:
    """What keeps the worker waiting; None if there is something after all, seen in this one statement."""
    left = SHARD.c.slice_count - SHARD.c.next_slice + SHARD.c.slices_open
    query = select(func.sum(SHARD.c.slices_leased), func.sum(SHARD.c.slices_blocked), func.sum(left))
    if request.shard is not None:
        query = query.where(SHARD.c.shard == request.shard)
    leased, blocked, free = connection.execute(query).one()
    if leased and not free:  # whoever waits for a slice that nobody has waits for ever
        _refuse_miscounted(connection)
    return None if free else NoLease(leased=int(leased or 0), blocked=int(blocked or 0))


def _refuse_miscounted(connection: Connection) -> None:
    """Raise ManifestCorrupt when the shards count other open or leased slices than there are."""
    counts = [
        (func.sum(SHARD.c[f"slices_{state}"]), select(func.count()).where(SLICE.c.state == state))
        for state in (SliceState.OPEN, SliceState.LEASED)
    ]
    # In one statement, which sees one moment only, whatever others commit meanwhile.
    query = select(*(one for total, rows in counts for one in (total, rows.scalar_subquery())))
    opened, open_rows, leased, leased_rows = connection.execute(query).one()
    if (int(opened or 0), int(leased or 0)) != (open_rows, leased_rows):
        raise contradictory(
            "shards", f"count {opened} open and {leased} leased slices, have {open_rows} and {leased_rows}"
        )


def _death(
    connection: Connection, row: SliceRow, *, gone: Collection[WorkerId], seen_by: WorkerId | None
) -> Death:
    """How the holder ended, as far as this host can tell."""
    query = select(WORKER.c.state, WORKER.c.note, WORKER.c.host).where(WORKER.c.id == row.worker)
    state, note, host = connection.execute(query).first() or ("", "", "")
    here = connection.execute(select(WORKER.c.host).where(WORKER.c.id == seen_by)).scalar_one_or_none()
    reason, how = DeadLetterReason.KILLED_PROCESS, "its process ended"
    if state == WorkerState.HUNG.value:
        reason, how = DeadLetterReason.HUNG, f"it hung: {note}"
    elif row.worker not in gone:
        how = "its lease expired"
        if host == here:  # its process is still there, so it hangs where not even its watchdog gets through
            reason = DeadLetterReason.HUNG
    return Death(shard=row.shard, slice=row.slice, reason=reason, detail=f"worker {row.worker}: {how}")


def _note_death(connection: Connection, row: SliceRow, death: Death, *, max_attempts: int) -> SliceState:
    """Take the slice from its holder, who died or expired; open or blocked, and count it. The new state."""
    deaths = 1 if suspicion.blame_death(connection, death) else row.deaths + 1
    failure = death.detail.partition("\n")[0]
    if deaths < max_attempts:
        return transition(connection, Event.DIE, row, to=SliceState.OPEN, deaths=deaths)
    reason = _too_often(deaths, failure)
    return transition(connection, Event.DIE, row, to=SliceState.BLOCKED, deaths=deaths, reason=reason)


def _too_often(deaths: int, failure: str) -> str:
    return f"{deaths} attempts in a row made no progress; the last: {failure}"


def fail(connection: Connection, lease: Lease, failure: str, *, max_attempts: int) -> bool:
    """Give a slice back that failed for no sample's fault; returns whether it is blocked now.

    Raises LeaseLost.
    """
    rows = lock_slices(connection, held(lease))
    if not rows:
        raise lease_lost(lease)
    deaths = rows[0].deaths + 1
    if deaths < max_attempts:
        transition(connection, Event.FAIL, lease, to=SliceState.OPEN, deaths=deaths)
        return False
    reason = _too_often(deaths, failure)
    transition(connection, Event.FAIL, lease, to=SliceState.BLOCKED, deaths=deaths, reason=reason)
    return True


def block(connection: Connection, lease: Lease, reason: str) -> None:
    """Give a slice back that nobody should lease again before an operator has looked. Raises LeaseLost."""
    transition(connection, Event.BLOCK, lease, reason=reason)


def free_slices_of(
    connection: Connection, gone: Collection[WorkerId], *, innocent: Collection[WorkerId], max_attempts: int
) -> int:
    """Free what ended processes held, at once. Returns how many slices.

    Each counts as a death, except of those workers that are known to have ended for another reason.
    """
    orphaned = and_(SLICE.c.state == SliceState.LEASED, SLICE.c.worker.in_(sorted(gone)))
    rows = lock_slices(connection, orphaned)
    for row in rows:
        if row.worker in innocent:
            transition(connection, Event.WITHDRAW, row)
            continue
        death = _death(connection, row, gone=gone, seen_by=None)
        _note_death(connection, row, death, max_attempts=max_attempts)
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id.in_(sorted(gone)), WORKER.c.state.not_in(sorted(ENDED_STATES)))
        .values(state=WorkerState.DEAD.value, samples_per_second=0.0)
    )
    return len(rows)


def renew(connection: Connection, lease: Lease, *, expires_at: datetime) -> None:
    """Extend a lease, even one that has expired, as long as nobody took it over. Raises LeaseLost."""
    seconds = to_seconds(expires_at)
    transition(connection, Event.RENEW, lease, expires_at=seconds)
    connection.execute(update(WORKER).where(WORKER.c.id == lease.worker).values(lease_expires_at=seconds))


def release(connection: Connection, lease: Lease) -> bool:
    """Give a slice back unfinished; no death. Returns False when it was not held any more."""
    try:
        transition(connection, Event.RELEASE, lease)
    except LeaseLost:
        return False
    return True


def fence_of_unheld_slice(
    connection: Connection, shard: ShardIndex, slice_: SliceIndex, *, now: datetime
) -> Fence:
    """The fence of a slice that nobody may record in any more; one whose holder has expired is opened.

    Raises ManifestBusy while a worker holds it.
    """
    row = lock_slice(connection, shard, slice_)
    if row.state is SliceState.LEASED:
        refuse_live(row, now)
        transition(connection, Event.WITHDRAW, row)
    return Fence(row.fence)


def refuse_live(row: SliceRow, now: datetime) -> None:
    """Raise ManifestBusy when a worker holds this slice under a lease that has not expired."""
    if row.expires_at is not None and row.expires_at > to_seconds(now):
        raise ManifestBusy(
            f"shard {row.shard} slice {row.slice}: worker {row.worker} holds it under a live lease",
            hint="stop that worker (or wait until it has finished the slice), then run the command again",
        )


def unblock(connection: Connection) -> int:
    """Open every blocked slice again, its deaths forgotten. Returns how many."""
    rows = lock_slices(connection, SLICE.c.state == SliceState.BLOCKED)
    for row in rows:
        transition(connection, Event.UNBLOCK, row)
    return len(rows)

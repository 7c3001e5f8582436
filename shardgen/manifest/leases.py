"""Granting, renewing and ending leases. Every change names slice, worker and fence in its statement."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.worker import WorkerState
from shardgen.errors import InvalidSettings, ManifestBusy
from shardgen.manifest import lookups, suspicion
from shardgen.manifest.session import Part, reading, writing
from shardgen.manifest.slices import (
    contradictory,
    held,
    hide_from_worker,
    lease_lost,
    missing_slice,
    move,
    to_seconds,
)
from shardgen.manifest.suspicion import Death
from shardgen.manifest.tables import RUN, SHARD, SLICE, WORKER

Holder = tuple[ShardIndex, SliceIndex, Fence, WorkerId]
"""A leased slice, the fence of its grant, and who got it."""


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

        `shard` narrows to one shard.
        """
        session = self.session
        check_shard(session.layout, shard)

        def take(connection: Connection) -> Lease | NoLease:
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

    @reading
    def holders(self, connection: Connection) -> list[Holder]:
        """Who holds which slice under which fence; those whose lease has expired may still write."""
        held_ones = select(SLICE.c.shard, SLICE.c.slice, SLICE.c.fence, SLICE.c.worker)
        rows = connection.execute(held_ones.where(SLICE.c.state == "leased"))
        return [
            (ShardIndex(shard), SliceIndex(slice_), Fence(fence), WorkerId(worker))
            for shard, slice_, fence, worker in rows
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    shard: ShardIndex
    slice: SliceIndex
    fence: int
    deaths: int
    state: str
    worker: str | None


_COLUMNS = [SLICE.c[field.name] for field in fields(_Row)]
_OPEN = {"state": "open", "worker": None, "expires_at": None, "noted_batch": None, "noted_sample": None}


def lease_slice(connection: Connection, layout: Layout, request: LeaseRequest) -> Lease | NoLease:
    """Grant the lowest open slice, else the lowest expired or orphaned one, else a new one.

    On a server, rows that another transaction is changing are passed over: lowest is a preference there. If
    only such rows were left, it asks again and waits for them, before it says that there is nothing.
    """
    for attempt in range(_ATTEMPTS):
        passing = attempt == 0  # over the rows that others are changing
        row = _lowest(connection, request, SLICE.c.state == "open", passing=passing)
        if row is not None:
            return _grant(connection, request, row, deaths=row.deaths)
        row = _lowest(connection, request, _takeable(request), passing=passing)
        if row is None and request.slice is not None:
            return NoLease(leased=1, blocked=0)
        if row is None:
            found = _grant_new(connection, layout, request) or _nothing(connection, request)
            if found is not None:
                return found
            continue
        death = _death(connection, row, gone=request.gone, seen_by=request.worker)
        if _note_death(connection, row, death, max_attempts=request.policy.max_attempts) == "open":
            same = and_(SLICE.c.shard == row.shard, SLICE.c.slice == row.slice)
            freed = _lowest(connection, request, same, passing=False)
            if freed is not None:
                return _grant(connection, request, freed, deaths=freed.deaths)
    _refuse_miscounted(connection)
    raise ManifestBusy(
        f"{_ATTEMPTS} times another worker was quicker", hint="run the command again, with fewer workers"
    )


def _takeable(request: LeaseRequest) -> ColumnElement[bool]:
    expired = SLICE.c.expires_at <= to_seconds(request.now)
    return and_(SLICE.c.state == "leased", or_(expired, SLICE.c.worker.in_(sorted(request.gone))))


def _lowest(
    connection: Connection, request: LeaseRequest, condition: ColumnElement[bool], *, passing: bool
) -> _Row | None:
    if request.shard is not None:
        condition = and_(condition, SLICE.c.shard == request.shard)
    if request.slice is not None:
        condition = and_(condition, SLICE.c.slice == request.slice)
    return _lowest_row(connection, condition, passing=passing)


def _lowest_row(connection: Connection, condition: ColumnElement[bool], *, passing: bool) -> _Row | None:
    query = select(*_COLUMNS).where(condition).order_by(SLICE.c.shard, SLICE.c.slice).limit(1)
    # SQLite drops this clause: there BEGIN IMMEDIATE keeps everybody else out.
    row = connection.execute(query.with_for_update(skip_locked=passing)).mappings().one_or_none()
    return None if row is None else _Row(**row)


def _grant(connection: Connection, request: LeaseRequest, row: _Row, *, deaths: int) -> Lease:
    lease = Lease(
        shard=row.shard,
        slice=row.slice,
        worker=request.worker,
        fence=Fence(max(row.fence + 1, request.least_fence)),
        expires_at=request.now + request.policy.duration,
    )
    changed = connection.execute(
        update(SLICE)
        .where(SLICE.c.shard == lease.shard, SLICE.c.slice == lease.slice)
        .where(SLICE.c.state == row.state, SLICE.c.fence == row.fence)
        .values(
            state="leased",
            worker=lease.worker,
            fence=lease.fence,
            expires_at=to_seconds(lease.expires_at),
            deaths=deaths,
            noted_batch=None,
            noted_sample=None,
        )
    )
    if changed.rowcount != 1:
        raise lease_lost(lease)
    move(connection, lease.shard, {"open": -1, "leased": 1})
    _show_on_worker(connection, lease)
    return lease


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
    floor = connection.execute(select(RUN.c.fence_floor)).scalar_one()
    fresh = _Row(shard=shard, slice=slice_, state="open", fence=floor, deaths=0, worker=None)
    left = len(layout.slice_batch_range(shard, slice_))
    connection.execute(SLICE.insert(), {**asdict(fresh), "batches_left": left})
    connection.execute(
        update(SHARD)
        .where(SHARD.c.shard == shard)
        .values(next_slice=SHARD.c.next_slice + 1, slices_open=SHARD.c.slices_open + 1)
    )
    return _grant(connection, request, fresh, deaths=0)


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
        for state in ("open", "leased")
    ]
    # In one statement, which sees one moment only, whatever others commit meanwhile.
    query = select(*(one for total, rows in counts for one in (total, rows.scalar_subquery())))
    opened, open_rows, leased, leased_rows = connection.execute(query).one()
    if (int(opened or 0), int(leased or 0)) != (open_rows, leased_rows):
        raise contradictory(
            "shards", f"count {opened} open and {leased} leased slices, have {open_rows} and {leased_rows}"
        )


def _death(
    connection: Connection, row: _Row, *, gone: Collection[WorkerId], seen_by: WorkerId | None
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


def _note_death(connection: Connection, row: _Row, death: Death, *, max_attempts: int) -> str:
    """Take the slice from its holder, who died or expired; open or blocked, and count it. The new state."""
    if suspicion.blame_death(connection, death):
        row = replace(row, deaths=0)
    failure = death.detail.partition("\n")[0]
    same = (SLICE.c.worker == row.worker, SLICE.c.fence == row.fence)
    state = _count_failure(connection, row, and_(*same), failure=failure, max_attempts=max_attempts)
    if state is None:
        raise RuntimeError(f"shard {row.shard} slice {row.slice}: changed inside one transaction")
    hide_from_worker(connection, row.worker, row.shard, row.slice)
    return state


def _count_failure(
    connection: Connection, row: _Row, fence: ColumnElement[bool], *, failure: str, max_attempts: int
) -> str | None:
    """End an attempt that made no progress; the slice is open again, or blocked. None: not held."""
    deaths = row.deaths + 1
    state = "blocked" if deaths >= max_attempts else "open"
    reason = f"{deaths} attempts in a row made no progress; the last: {failure}"
    changed = connection.execute(
        update(SLICE)
        .where(SLICE.c.shard == row.shard, SLICE.c.slice == row.slice, SLICE.c.state == "leased", fence)
        .values(
            state=state,
            deaths=deaths,
            worker=None,
            expires_at=None,
            noted_batch=None,
            noted_sample=None,
            reason=reason if state == "blocked" else None,
        )
    )
    if changed.rowcount != 1:
        return None
    move(connection, row.shard, {"leased": -1, state: 1})
    return state


def fail(connection: Connection, lease: Lease, failure: str, *, max_attempts: int) -> bool:
    """Give a slice back that failed for no sample's fault; returns whether it is blocked now.

    Raises LeaseLost.
    """
    row = _lowest_row(connection, held(lease), passing=False)
    state = row and _count_failure(connection, row, held(lease), failure=failure, max_attempts=max_attempts)
    if state is None:
        raise lease_lost(lease)
    hide_from_worker(connection, lease.worker, lease.shard, lease.slice)
    return state == "blocked"


def block(connection: Connection, lease: Lease, reason: str) -> None:
    """Give a slice back that nobody should lease again before an operator has looked. Raises LeaseLost."""
    changed = connection.execute(
        update(SLICE).where(held(lease)).values(_OPEN | {"state": "blocked", "reason": reason})
    )
    if changed.rowcount != 1:
        raise lease_lost(lease)
    move(connection, lease.shard, {"leased": -1, "blocked": 1})
    hide_from_worker(connection, lease.worker, lease.shard, lease.slice)


def free_slices_of(
    connection: Connection, gone: Collection[WorkerId], *, innocent: Collection[WorkerId], max_attempts: int
) -> int:
    """Free what ended processes held, at once. Returns how many slices.

    Each counts as a death, except of those workers that are known to have ended for another reason.
    """
    orphaned = and_(SLICE.c.state == "leased", SLICE.c.worker.in_(sorted(gone)))
    query = select(*_COLUMNS).where(orphaned).order_by(SLICE.c.shard, SLICE.c.slice).with_for_update()
    rows = [_Row(**row) for row in connection.execute(query).mappings()]
    for row in rows:
        if row.worker in innocent:
            _open(connection, row)
            continue
        death = _death(connection, row, gone=gone, seen_by=None)
        _note_death(connection, row, death, max_attempts=max_attempts)
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id.in_(sorted(gone)), WORKER.c.state.not_in(["stopped", "hung"]))
        .values(state=WorkerState.DEAD.value, samples_per_second=0.0)
    )
    return len(rows)


def renew(connection: Connection, lease: Lease, *, expires_at: datetime) -> None:
    """Extend a lease, even one that has expired, as long as nobody took it over. Raises LeaseLost."""
    seconds = to_seconds(expires_at)
    if connection.execute(update(SLICE).where(held(lease)).values(expires_at=seconds)).rowcount != 1:
        raise lease_lost(lease)
    connection.execute(update(WORKER).where(WORKER.c.id == lease.worker).values(lease_expires_at=seconds))


def release(connection: Connection, lease: Lease) -> bool:
    """Give a slice back unfinished; no death. Returns False when it was not held any more."""
    changed = connection.execute(update(SLICE).where(held(lease)).values(_OPEN))
    hide_from_worker(connection, lease.worker, lease.shard, lease.slice)
    if changed.rowcount != 1:
        return False
    move(connection, lease.shard, {"leased": -1, "open": 1})
    return True


def _open(connection: Connection, row: _Row) -> None:
    """Take a slice from its holder without blaming anybody."""
    same = (SLICE.c.shard == row.shard, SLICE.c.slice == row.slice, SLICE.c.fence == row.fence)
    connection.execute(update(SLICE).where(*same, SLICE.c.state == "leased").values(_OPEN))
    move(connection, row.shard, {"leased": -1, "open": 1})
    hide_from_worker(connection, row.worker, row.shard, row.slice)


def fence_of_unheld_slice(
    connection: Connection, shard: ShardIndex, slice_: SliceIndex, *, now: datetime
) -> Fence:
    """The fence of a slice that nobody may record in any more; one whose holder has expired is opened.

    Raises ManifestBusy while a worker holds it.
    """
    same = (SLICE.c.shard == shard, SLICE.c.slice == slice_)
    row = connection.execute(select(SLICE).where(*same).with_for_update()).mappings().one_or_none()
    if row is None:
        raise missing_slice(shard, slice_)
    if row["state"] == "leased":
        if row["expires_at"] > to_seconds(now):
            raise ManifestBusy(
                f"shard {shard} slice {slice_}: worker {row['worker']} holds it under a live lease",
                hint="stop that worker (or wait until it has finished the slice), then run the command again",
            )
        _open(connection, _Row(**{field.name: row[field.name] for field in fields(_Row)}))
    return Fence(row["fence"])


def unblock(connection: Connection) -> int:
    """Open every blocked slice again, its deaths forgotten. Returns how many."""
    blocked = connection.execute(
        update(SLICE)
        .where(SLICE.c.state == "blocked")
        .values(state="open", reason=None, suspect_batch=None, deaths=0)
        .returning(SLICE.c.shard, SLICE.c.slice)
    )
    slices = [(ShardIndex(shard), SliceIndex(slice_)) for shard, slice_ in blocked]
    for shard, slice_ in sorted(slices):
        move(connection, shard, {"blocked": -1, "open": 1})
        suspicion.forget_slice(connection, shard, slice_)
    return len(slices)


def _show_on_worker(connection: Connection, lease: Lease) -> None:
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id == lease.worker)
        .values(shard=lease.shard, slice=lease.slice, lease_expires_at=to_seconds(lease.expires_at))
    )

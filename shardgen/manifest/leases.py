"""Granting, renewing and ending leases. Every change names slice, worker and fence in its statement."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.domain.worker import WorkerState
from shardgen.errors import LeaseLost, ManifestBusy
from shardgen.manifest.instants import to_seconds
from shardgen.manifest.tables import RUN, SHARD, SLICE, WORKER


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Who asks, when, and for what. `gone` are workers whose process is known to have ended."""

    worker: WorkerId
    now: datetime
    policy: LeasePolicy
    shard: ShardIndex | None = None
    gone: Collection[WorkerId] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    shard: ShardIndex
    slice: SliceIndex
    fence: int
    deaths: int
    state: str
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLease:
    """Nothing to lease now: slices that others hold (wait for them), and blocked ones (nobody may)."""

    leased: int
    blocked: int


def held(lease: Lease) -> ColumnElement[bool]:
    """The fence: the row is still this worker's, under this grant. Late is fine, taken over is not."""
    return and_(
        SLICE.c.shard == lease.shard,
        SLICE.c.slice == lease.slice,
        SLICE.c.worker == lease.worker,
        SLICE.c.fence == lease.fence,
        SLICE.c.state == "leased",
    )


def lease_lost(lease: Lease) -> LeaseLost:
    """The error of a fenced write that changed nothing."""
    return LeaseLost(
        f"shard {lease.shard} slice {lease.slice}: lease with fence {lease.fence} was taken over",
        hint="nothing to do: the slice's new holder finishes it",
    )


def lease_slice(connection: Connection, layout: Layout, request: LeaseRequest) -> Lease | NoLease:
    """Grant the lowest open slice, else the lowest expired or orphaned one, else a new one."""
    while True:
        row = _lowest(connection, request, SLICE.c.state == "open")
        if row is not None:
            return _grant(connection, request, row, deaths=row.deaths)
        row = _lowest(connection, request, _takeable(request))
        if row is None:
            return _grant_new(connection, layout, request) or _nothing(connection, request)
        if _note_death(connection, row, max_attempts=request.policy.max_attempts) == "open":
            return _grant(connection, request, replace(row, state="open"), deaths=row.deaths + 1)


def _takeable(request: LeaseRequest) -> ColumnElement[bool]:
    expired = SLICE.c.expires_at <= to_seconds(request.now)
    return and_(SLICE.c.state == "leased", or_(expired, SLICE.c.worker.in_(sorted(request.gone))))


def _lowest(connection: Connection, request: LeaseRequest, condition: ColumnElement[bool]) -> _Row | None:
    query = select(SLICE.c.shard, SLICE.c.slice, SLICE.c.fence, SLICE.c.deaths, SLICE.c.state, SLICE.c.worker)
    query = query.where(condition).order_by(SLICE.c.shard, SLICE.c.slice).limit(1)
    if request.shard is not None:
        query = query.where(SLICE.c.shard == request.shard)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _Row(**row)


def _grant(connection: Connection, request: LeaseRequest, row: _Row, *, deaths: int) -> Lease:
    lease = Lease(
        shard=row.shard,
        slice=row.slice,
        worker=request.worker,
        fence=Fence(row.fence + 1),
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
    row = connection.execute(query.order_by(SHARD.c.shard).limit(1)).mappings().one_or_none()
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


def _nothing(connection: Connection, request: LeaseRequest) -> NoLease:
    query = select(func.sum(SHARD.c.slices_leased), func.sum(SHARD.c.slices_blocked))
    if request.shard is not None:
        query = query.where(SHARD.c.shard == request.shard)
    leased, blocked = connection.execute(query).one()
    return NoLease(leased=leased or 0, blocked=blocked or 0)


def _note_death(connection: Connection, row: _Row, *, max_attempts: int) -> str:
    """Take the slice from its holder, who died or expired; open or blocked, and count it. The new state."""
    deaths = row.deaths + 1
    state = "blocked" if deaths >= max_attempts else "open"
    reason = f"{deaths} workers in a row died or stalled in it without finishing a batch"
    connection.execute(
        update(SLICE)
        .where(SLICE.c.shard == row.shard, SLICE.c.slice == row.slice)
        .where(SLICE.c.worker == row.worker, SLICE.c.fence == row.fence, SLICE.c.state == "leased")
        .values(
            state=state,
            deaths=deaths,
            worker=None,
            expires_at=None,
            reason=reason if state == "blocked" else None,
        )
    )
    move(connection, row.shard, {"leased": -1, state: 1})
    hide_from_worker(connection, row.worker, row.shard, row.slice)
    return state


def free_slices_of(connection: Connection, gone: Collection[WorkerId], *, max_attempts: int) -> int:
    """Free what ended processes held, at once; each counts as a death. Returns how many slices."""
    query = select(SLICE.c.shard, SLICE.c.slice, SLICE.c.fence, SLICE.c.deaths, SLICE.c.state, SLICE.c.worker)
    rows = connection.execute(
        query.where(SLICE.c.state == "leased", SLICE.c.worker.in_(sorted(gone)))
    ).mappings()
    freed = [_note_death(connection, _Row(**row), max_attempts=max_attempts) for row in rows.all()]
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id.in_(sorted(gone)), WORKER.c.state.not_in(["stopped", "hung"]))
        .values(state=WorkerState.DEAD.value, samples_per_second=0.0)
    )
    return len(freed)


def renew(connection: Connection, lease: Lease, *, expires_at: datetime) -> None:
    """Extend a lease, even one that has expired, as long as nobody took it over. Raises LeaseLost."""
    seconds = to_seconds(expires_at)
    if connection.execute(update(SLICE).where(held(lease)).values(expires_at=seconds)).rowcount != 1:
        raise lease_lost(lease)
    connection.execute(update(WORKER).where(WORKER.c.id == lease.worker).values(lease_expires_at=seconds))


def release(connection: Connection, lease: Lease) -> bool:
    """Give a slice back unfinished; no death. Returns False when it was not held any more."""
    changed = connection.execute(
        update(SLICE).where(held(lease)).values(state="open", worker=None, expires_at=None)
    )
    hide_from_worker(connection, lease.worker, lease.shard, lease.slice)
    if changed.rowcount != 1:
        return False
    move(connection, lease.shard, {"leased": -1, "open": 1})
    return True


def fence_of_unheld_slice(
    connection: Connection, shard: ShardIndex, slice_: SliceIndex, *, now: datetime
) -> Fence:
    """The fence of a slice that nobody may record in any more; one whose holder has expired is opened.

    Raises ManifestBusy while a worker holds it.
    """
    same = (SLICE.c.shard == shard, SLICE.c.slice == slice_)
    row = connection.execute(select(SLICE).where(*same)).mappings().one()
    if row["state"] == "leased":
        if row["expires_at"] > to_seconds(now):
            raise ManifestBusy(
                f"shard {shard} slice {slice_}: worker {row['worker']} holds it under a live lease",
                hint="stop that worker (or wait until it has finished the slice), then run the command again",
            )
        connection.execute(update(SLICE).where(*same).values(state="open", worker=None, expires_at=None))
        move(connection, shard, {"leased": -1, "open": 1})
        hide_from_worker(connection, row["worker"], shard, slice_)
    return Fence(row["fence"])


def move(connection: Connection, shard: ShardIndex, changes: Mapping[str, int]) -> None:
    """Add to the shard's slice counters, named by state."""
    columns = {f"slices_{state}": SHARD.c[f"slices_{state}"] + change for state, change in changes.items()}
    connection.execute(update(SHARD).where(SHARD.c.shard == shard).values(columns))


def _show_on_worker(connection: Connection, lease: Lease) -> None:
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id == lease.worker)
        .values(shard=lease.shard, slice=lease.slice, lease_expires_at=to_seconds(lease.expires_at))
    )


def hide_from_worker(
    connection: Connection, worker: str | None, shard: ShardIndex, slice_: SliceIndex
) -> None:
    """The worker's row no longer says that it holds this slice."""
    connection.execute(
        update(WORKER)
        .where(WORKER.c.id == worker, WORKER.c.shard == shard, WORKER.c.slice == slice_)
        .values(shard=None, slice=None, lease_expires_at=None)
    )

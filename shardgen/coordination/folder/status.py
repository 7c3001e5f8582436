"""The state of a run in a shared folder, as one machine sees it: the same table that a manifest gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from shardgen.coordination.folder.leases import opened_view
from shardgen.coordination.folder.seen import instant
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.overview import BlockedSlice, FolderNews, Overview, ShardState, SliceCounts
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance
from shardgen.domain.slice_state import SliceState
from shardgen.domain.worker import LISTED_AFTER_END, WorkerRow
from shardgen.settings.run_directory import RunDirectory

_SHOWN_TROUBLES = 5


def oversee(run: RunDirectory, plan: Plan) -> tuple[Overview, FolderNews]:
    """Look through the folder, and tell."""
    blocked: tuple[BlockedSlice, ...] = ()
    busy: dict[SliceId, SliceState] = {}
    waiting = 0
    if run.database.backend.is_there():
        with run.database_manifest(plan, read_only=True) as manifest:
            blocked = manifest.overview().blocked
            busy = manifest.index.unavailable()
            waiting = len(manifest.index.unpublished())
    with opened_view(run, plan) as view:
        overview = _overview(view, run, blocked, busy)
        beats = [worker.beat for worker in view.workers.values() if worker.beat is not None]
        lags = sorted(beat.lag_seconds for beat in beats if beat.lag_seconds is not None)
        news = FolderNews(
            lag_seconds=lags[len(lags) // 2] if lags else None,
            slowest_lag_seconds=max((beat.slowest_lag_seconds or 0.0 for beat in beats), default=None)
            if lags
            else None,
            waiting=waiting,
            arriving=len(view.not_whole),
            duplicated=view.duplicated_batches,
            troubles=tuple(view.troubles[:_SHOWN_TROUBLES]),
            scan_seconds=run.settings.engine.folder.scan_seconds,
        )
    return overview, news


def _overview(
    view: FolderView, run: RunDirectory, blocked: tuple[BlockedSlice, ...], busy: dict[SliceId, SliceState]
) -> Overview:
    now = datetime.now(UTC)
    silent = run.settings.folder_policy.silent
    stored: Counter[ShardIndex] = Counter()
    dead: Counter[ShardIndex] = Counter()
    made: Counter[Provenance] = Counter()
    for batch, receipt in view.winners.items():
        lost = len(receipt.record.dead_letters)
        dead[receipt.shard] += lost
        stored[receipt.shard] += len(view.plan.layout.batch_samples(batch)) - lost
        made[receipt.record.provenance] += 1
    return Overview(
        fingerprint=view.plan.fingerprint,
        taken_at=now,
        shards=tuple(
            ShardState(
                shard=shard,
                stored=stored[shard],
                dead=dead[shard],
                slices=_slices(view, shard, now=now, silent=silent, busy=busy),
            )
            for shard in map(ShardIndex, range(view.plan.layout.shard_count))
        ),
        blocked=blocked,
        workers=_rows(view, now),
        mixture=tuple(made.most_common()),
    )


def _slices(
    view: FolderView, shard: ShardIndex, *, now: datetime, silent: timedelta, busy: dict[SliceId, SliceState]
) -> SliceCounts:
    counts: Counter[str] = Counter()
    for slice_id in view.slices(shard):
        missing = view.missing(slice_id)
        claims = list(view.claims.get(slice_id, {}).values())
        if not missing:
            counts[SliceState.DONE] += 1
        elif busy.get(slice_id) is SliceState.BLOCKED:
            counts[SliceState.BLOCKED] += 1
        elif any(_is_live(view, seen.claim.worker, now, silent) for seen in claims if view.stands(seen)):
            counts[SliceState.LEASED] += 1
        elif any(not seen.is_ended for seen in claims):
            counts["expired"] += 1
        elif claims or len(missing) < len(view.plan.layout.slice_batch_range(*slice_id)):
            counts[SliceState.OPEN] += 1
        else:
            counts["never_leased"] += 1
    return SliceCounts(**{name: counts[name] for name in SliceCounts.__dataclass_fields__})


def _is_live(view: FolderView, folder: str, now: datetime, silent: timedelta) -> bool:
    """By the workers' clocks, for people: who only looks once cannot wait for a sign of life."""
    worker = view.workers.get(folder)
    if worker is None or worker.has_stopped:
        return worker is None
    return now - instant(worker.written_at) < silent


def _rows(view: FolderView, now: datetime) -> tuple[WorkerRow, ...]:
    rows = []
    for seen in view.workers.values():
        row = seen.row()
        if row is None or (seen.has_stopped and now - row.last_beat_at > LISTED_AFTER_END):
            continue
        shard, slice_ = (None, None) if seen.has_stopped else _place_of(view, seen.folder)
        rows.append(replace(row, shard=shard, slice=slice_))
    return tuple(sorted(rows, key=lambda row: (row.started_at, row.identity.id)))


def _place_of(view: FolderView, folder: str) -> SliceId | tuple[None, None]:
    """The slice of the oldest claim of a worker that still stands; a newer one is its next."""
    own = [
        seen.claim
        for claims in view.claims.values()
        for seen in claims.values()
        if seen.claim.worker == folder and view.stands(seen) and seen.done_at is None
    ]
    first = min(own, key=lambda claim: claim.written_at, default=None)
    return (None, None) if first is None else first.slice_id

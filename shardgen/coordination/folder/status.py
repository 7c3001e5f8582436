"""The state of a run in a shared folder, as one machine sees it: the same table that a manifest gives."""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.folder.files import DiskFolder
from shardgen.coordination.folder.index import SegmentIndex
from shardgen.coordination.folder.leases import open_view
from shardgen.coordination.folder.records import SegmentReader
from shardgen.coordination.folder.seen import SeenClaim, instant
from shardgen.coordination.folder.view import FolderView
from shardgen.coordination.report import Report, make_report
from shardgen.domain.claims import SliceId
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.overview import (
    BlockedSlice,
    Details,
    FolderNews,
    Overview,
    ShardState,
    ShownSlice,
    count_by_minute,
    count_slices,
    group_letters,
)
from shardgen.domain.receipt import DeadLetter, Provenance, Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.worker import LISTED_AFTER_END, WorkerRow
from shardgen.manifest.manifest import Manifest
from shardgen.manifest.session import planned_anew
from shardgen.settings.plan_file import FILE_NAME, MAX_BYTES
from shardgen.storage.bounded import read_regular
from shardgen.storage.files import storing

_SHOWN_TROUBLES = 5


class FolderLooks:
    """One view for all looks; it looks through the folder as seldom as the workers do."""

    def __init__(self, opened: OpenedRun) -> None:
        self._run, self._plan = opened.run, opened.plan
        self._kept: tuple[FolderView, SegmentIndex] | None = None
        self._looked_at = float("-inf")
        self._stored_at: dict[str, datetime | None] = {}

    def report(self) -> Report:
        """What the folder shows, and what of it is this machine's own."""
        with self._own() as own:
            blocked = () if own is None else own.overview().blocked
            waiting = 0 if own is None else len(own.index.unpublished())
            view = self._view()
            slices = self._slices(view, own)
        news = _news(view, waiting=waiting, scan_seconds=self._run.settings.engine.folder.scan_seconds)
        return replace(make_report(self._run, self._plan, _overview(view, slices, blocked)), folder=news)

    def details(self, *, newest: int) -> Details:
        """What the folder shows; of dead letters the text that stayed on this machine, if it made them."""
        view = self._view()
        winners = list(view.winners.values())
        stored = [(at, receipt) for receipt in winners if (at := self._time_of(receipt)) is not None]
        last = heapq.nlargest(newest, stored, key=lambda one: (one[0], one[1].record.batch))
        with self._own() as own:
            slices, letters = self._slices(view, own), _letters(winners, own)
        return Details(
            slices=slices,
            pace=count_by_minute(
                (at, len(view.plan.layout.batch_samples(one.record.batch)) - len(one.record.dead_letters))
                for at, one in stored
            ),
            last_stored_at=max((at for at, _ in stored), default=None),
            newest=tuple(receipt for _, receipt in last),
            dead_letters=group_letters(letters),
        )

    @property
    def store(self) -> SegmentReader:
        """The segments."""
        return SegmentReader(DiskFolder(self._run.path))

    def close(self) -> None:
        """The index; what was seen is in it."""
        if self._kept is not None:
            self._kept[1].close()
        self._kept = None

    @contextmanager
    def _own(self) -> Iterator[Manifest | None]:
        """This machine's manifest, if it has worked on the run."""
        if not self._run.database.backend.is_there():
            yield None
            return
        with self._run.database_manifest(self._plan, read_only=True) as manifest:
            yield manifest

    def _view(self) -> FolderView:
        is_first = self._kept is None
        if self._kept is None:
            self._kept = open_view(self._run, self._plan)
        view = self._kept[0]
        if time.monotonic() - self._looked_at >= self._run.settings.engine.folder.scan_seconds:
            if not is_first:  # the plan has just been read
                self._refuse_other_plan()
            with storing(self._run.path):
                view.gather()
            self._looked_at = time.monotonic()
        return view

    def _refuse_other_plan(self) -> None:
        """Not to see it is no proof that it is gone."""
        with suppress(OSError):
            data = read_regular(self._run.path / FILE_NAME, limit=MAX_BYTES)
            if hashlib.sha256(data).hexdigest() != self._plan.fingerprint:
                raise planned_anew(str(self._run.path))

    def _slices(self, view: FolderView, own: Manifest | None) -> tuple[ShownSlice, ...]:
        busy = {} if own is None else own.index.unavailable()
        return _slices(view, now=datetime.now(UTC), silent=self._run.settings.folder_policy.silent, busy=busy)

    def _time_of(self, receipt: Receipt) -> datetime | None:
        """When its segment was written: by its maker's clock, as far as the folder keeps that; else never.

        A segment says nothing of time, so that its bytes depend on the plan alone; the word that a slice is
        done tells it of a whole slice, and only of one that was finished; and when this machine first saw a
        segment says when it began to look. All batches of a segment have its time, and so the pace is uneven.
        """
        path = receipt.artifact.name
        if path not in self._stored_at:
            try:
                self._stored_at[path] = instant((self._run.path / path).stat().st_mtime)
            except OSError:  # not visible just now, or by another name
                return None
        return self._stored_at[path]


def _letters(winners: Iterable[Receipt], own: Manifest | None) -> Iterable[DeadLetter]:
    """Their dead letters, with the text of those that this machine's workers gave up."""
    letters = {letter.sample: letter for one in winners for letter in one.record.dead_letters}
    if letters and own is not None:
        for one in own.receipts.dead_letters():
            if one.sample in letters and letters[one.sample].reason is one.reason:
                letters[one.sample] = one
    return letters.values()


def _news(view: FolderView, *, waiting: int, scan_seconds: float) -> FolderNews:
    beats = [worker.beat for worker in view.workers.values() if worker.beat is not None]
    lags = sorted(beat.lag_seconds for beat in beats if beat.lag_seconds is not None)
    return FolderNews(
        lag_seconds=lags[len(lags) // 2] if lags else None,
        slowest_lag_seconds=max((beat.slowest_lag_seconds or 0.0 for beat in beats), default=None)
        if lags
        else None,
        waiting=waiting,
        arriving=len(view.not_whole),
        duplicated=view.duplicated_batches,
        troubles=tuple(view.troubles[:_SHOWN_TROUBLES]),
        scan_seconds=scan_seconds,
    )


def _overview(
    view: FolderView, slices: tuple[ShownSlice, ...], blocked: tuple[BlockedSlice, ...]
) -> Overview:
    now = datetime.now(UTC)
    counts = count_slices(slices)
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
                slices=counts[shard],
            )
            for shard in map(ShardIndex, range(view.plan.layout.shard_count))
        ),
        blocked=blocked,
        workers=_rows(view, now),
        mixture=tuple(made.most_common()),
    )


def _slices(
    view: FolderView, *, now: datetime, silent: timedelta, busy: dict[SliceId, SliceState]
) -> tuple[ShownSlice, ...]:
    shown = []
    for slice_id in view.slices():
        batches, missing = len(view.plan.layout.slice_batch_range(*slice_id)), len(view.missing(slice_id))
        claims = list(view.claims.get(slice_id, {}).values())
        live = [
            seen for seen in claims if view.stands(seen) and _is_live(view, seen.claim.worker, now, silent)
        ]
        holder = ""
        if not missing:
            state = SliceState.DONE.value
        elif busy.get(slice_id) is SliceState.BLOCKED:
            state = SliceState.BLOCKED.value
        elif live:
            state, holder = SliceState.LEASED.value, _worker_of(view, live)
        elif left := [seen for seen in claims if not seen.is_ended]:
            state, holder = "expired", _worker_of(view, left)
        elif claims or missing < batches:
            state = SliceState.OPEN.value
        else:
            state = "never_leased"
        shown.append(
            ShownSlice(
                shard=slice_id[0],
                slice=slice_id[1],
                state=state,
                batches=batches,
                batches_done=batches - missing,
                worker=holder,
            )
        )
    return tuple(shown)


def _worker_of(view: FolderView, claims: Sequence[SeenClaim]) -> str:
    """Whose the oldest of these claims is: by its id, or its folder's name while it has not told that."""
    folder = min(claims, key=lambda seen: seen.claim.written_at).claim.worker
    worker = view.workers.get(folder)
    return folder if worker is None or worker.beat is None else worker.beat.worker


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

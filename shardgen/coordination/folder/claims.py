"""Claim: how a worker shares a folder with others whose files it sees late: start at once, yield early.

A claim is advice: two workers may make one slice. What that costs is kept small (each picks slices in an
order of its own, looks again before each segment, and works from the other end when it is not alone on a
slice), and it changes nothing: of two attempts at a batch one wins, the same one for everybody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from shardgen.coordination.base import OnLook, unheard
from shardgen.coordination.folder import notices
from shardgen.coordination.folder.files import FolderFiles
from shardgen.coordination.folder.notices import Kind, NoticeName
from shardgen.coordination.folder.seen import SeenClaim
from shardgen.coordination.folder.segments import Desk, Publisher
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.claims import Claim, FolderPolicy, SliceId, next_fence, picking_order
from shardgen.domain.identifiers import BatchIndex, ShardIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.slice_state import SliceState
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from shardgen.machine.processes import gone
from shardgen.manifest.manifest import Manifest

_LOG = logging.getLogger(__name__)
_LONGEST_BEAT_GAP = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """`monotonic` decides; `wall` (UTC seconds since 1970) only settles ties, and is shown."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass(slots=True, kw_only=True)
class _Own:
    """A claim of this worker; `at` is when it was written (monotonic)."""

    claim: Claim
    at: float
    path: str


@dataclass(slots=True)
class _State:
    number: int = 0
    held: _Own | None = None
    next: _Own | None = None
    told: WorkerState | None = None
    beat_at: float = float("-inf")
    wants_more: bool = True
    has_left: bool = False
    trouble: str = ""


class FolderWork:
    """One worker's part in a shared folder. `tick` is called by one thread, the rest by the worker's.

    `reports` is called by any, and never waits: who watches for hangs must not hang with the folder.
    """

    def __init__(
        self,
        desk: Desk,
        identity: WorkerIdentity,
        *,
        shard: ShardIndex | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        self._desk = desk
        self._view: FolderView = desk.view
        self._manifest: Manifest = desk.manifest
        self._files: FolderFiles = desk.view.files
        self._policy: FolderPolicy = desk.policy
        self._identity = identity
        self._shard = shard
        self._clocks = clocks or Clocks()
        self._on_look = desk.on_look
        self._report = WorkerReport(state=WorkerState.STARTING)
        self._publisher = Publisher(desk)
        self._state = _State()
        self._began = self._clocks.wall()
        self._lock = threading.RLock()
        self._agreed: set[str] = set()
        self._adopted: set[BatchIndex] = set()

    # the thread that looks through the folder

    def tick(self, *, on_look: OnLook = unheard) -> None:
        """Look, take over what others have made, publish what is due, prepare the next slice.

        Trouble with the folder is said once and tried again at the next tick.
        """
        try:
            self._view.gather(on_look=on_look)
            self._adopt()
            self._publisher.publish(on_look=on_look)
            with self._lock:
                if not self._state.has_left:  # a late look must not follow the goodbye
                    self._beat(self._report)
                    self._prepare()
        except OSError as error:
            self._have_trouble(f"the shared folder: {error.strerror or error}; trying again")
        else:
            self._have_trouble(self._view.troubles[0] if self._view.troubles else "")

    def _have_trouble(self, trouble: str) -> None:
        if trouble and trouble != self._state.trouble:
            _LOG.warning(trouble)
        self._state.trouble = trouble

    def _adopt(self) -> None:
        self._notice_ended_processes()
        if self._manifest.index.forget_undone(self._view.undone):
            self._adopted.clear()
        winners = [
            receipt for batch, receipt in list(self._view.winners.items()) if batch not in self._adopted
        ]
        self._adopted |= self._manifest.index.adopt(winners)
        for receipt in winners:
            made = receipt.record.provenance
            device, size = made.device_model, made.micro_batch
            if size is not None and device not in self._agreed:  # bytes depend on it: all take the same
                self._agreed.add(device)
                self._manifest.micro_batches.agreed(device, size)

    def _notice_ended_processes(self) -> None:
        """What processes of this host claimed is free as soon as they are gone."""
        beats = {folder: seen.beat for folder, seen in self._view.workers.items() if seen.beat is not None}
        for folder, beat in beats.items():
            identity = WorkerIdentity(
                id=WorkerId(beat.worker), host=beat.host, pid=beat.pid, process_started=beat.process_started
            )
            self._view.workers[folder].is_gone = bool(gone([identity]))

    def _write(self, name: NoticeName, content: notices.Notice | notices.Done | notices.Beat) -> str:
        path = name.path(self._desk.own_folder)
        self._state.number += 1  # also when it fails: a name is used once
        self._files.write(path, notices.encoded(content))
        return path

    def _name(self, kind: Kind, claim: Claim | None = None) -> NoticeName:
        if claim is None:
            return NoticeName(number=self._state.number, kind=kind)
        return NoticeName(
            number=self._state.number, kind=kind, shard=claim.shard, slice=claim.slice, fence=claim.fence
        )

    def _notice(self) -> notices.Notice:
        return notices.Notice(fingerprint=self._view.plan.fingerprint, written_at=self._clocks.wall())

    def _beat(self, report: WorkerReport) -> None:
        """Show life now and then, and every change of state at once: a live worker must never look silent."""
        gap = min(_LONGEST_BEAT_GAP, self._policy.silent.total_seconds() / 4)
        is_early = self._clocks.monotonic() - self._state.beat_at < gap
        if is_early and report.state is self._state.told:
            return
        identity = self._identity
        claims = [own.claim for own in (self._state.held, self._state.next) if own is not None]
        self._write(
            self._name(Kind.BEAT),
            notices.Beat(
                fingerprint=self._view.plan.fingerprint,
                written_at=self._clocks.wall(),
                worker=identity.id,
                host=identity.host,
                pid=identity.pid,
                process_started=identity.process_started,
                started_at=self._began,
                state=report.state.value,
                samples_done=report.samples_done,
                samples_per_second=report.samples_per_second,
                note=report.note.partition("\n")[0][:200],
                lag_seconds=self._view.lag_seconds,
                slowest_lag_seconds=self._view.slowest_lag_seconds,
                claims=tuple((claim.shard, claim.slice, claim.fence) for claim in claims),
            ),
        )
        self._state.beat_at = self._clocks.monotonic()  # one that failed is tried again at the next look
        self._state.told = report.state

    # claims

    def _silent(self) -> float:
        return self._policy.silent.total_seconds()

    def _prepare(self) -> None:
        """Have a claim ready for when the current slice is done; give up one that others go before."""
        state = self._state
        if state.next is not None and not self._still_wanted(state.next):
            self._end(state.next)
            state.next = None
        if state.next is None and state.wants_more:
            state.next = self._claim_one()

    def _still_wanted(self, own: _Own) -> bool:
        """Of a slice that is not begun yet: unless somebody else is at it, or goes before."""
        return bool(self._view.missing(own.claim.slice_id)) and not any(
            rival.has_segments or rival.claim.goes_before(own.claim)
            for rival in self._rivals(own.claim.slice_id)
        )

    def _rivals(self, slice_id: SliceId) -> list[SeenClaim]:
        return self._view.rivals(slice_id, self._desk.own_folder, self._silent())

    def _claim_one(self) -> _Own | None:
        busy = self._manifest.index.unavailable()
        free = [
            slice_id
            for slice_id in self._view.slices(self._shard)
            if slice_id not in busy and self._view.missing(slice_id) and not self._is_claimed(slice_id)
        ]
        if not free:
            return None
        slice_id = min(free, key=lambda one: picking_order(self._desk.own_folder, one))
        fence = next_fence(
            (self._view.fences.get(slice_id, 0), self._manifest.index.fence_here(slice_id)),
            self._view.generations.get(slice_id, 0),
        )
        claim = Claim(
            shard=slice_id[0],
            slice=slice_id[1],
            fence=fence,
            worker=self._desk.own_folder,
            written_at=self._clocks.wall(),
        )
        path = self._write(self._name(Kind.CLAIM, claim), self._notice())
        self._view.fences[slice_id] = fence
        return _Own(claim=claim, at=self._clocks.monotonic(), path=path)

    def _is_claimed(self, slice_id: SliceId) -> bool:
        state = self._state
        if any(own is not None and own.claim.slice_id == slice_id for own in (state.held, state.next)):
            return True
        return bool(self._view.rivals(slice_id, self._desk.own_folder, self._silent()))

    def _end(self, own: _Own) -> None:
        self._write(self._name(Kind.ENDED, own.claim), self._notice())

    def _done(self, own: _Own) -> None:
        segments = tuple(self._publisher.published.get(own.claim.slice_id, ()))
        if not segments:
            self._end(own)
            return
        name = self._name(Kind.DONE, own.claim)
        fingerprint = self._view.plan.fingerprint
        content = notices.Done(fingerprint=fingerprint, written_at=self._clocks.wall(), segments=segments)
        self._write(name, content)

    # the worker's thread

    def lease(
        self, worker: WorkerId, policy: LeasePolicy, *, ended: Collection[WorkerId] = ()
    ) -> Lease | NoLease:
        """Begin the prepared slice. NoLease: what is left is in others' hands, or blocked here."""
        with self._lock:
            own, self._state.next = self._state.next, None
            self.ended(is_complete=False)  # one that was lost on the way
            if own is None:
                return self._nothing()
            granted = self._manifest.index.lease_claimed(worker, policy, own.claim, gone=ended)
            if isinstance(granted, NoLease):
                self._quietly(lambda: self._end(own))
                return NoLease(leased=max(1, granted.leased), blocked=granted.blocked)
            self._state.held = own
            return granted

    def _nothing(self) -> NoLease:
        """Blocked slices are those that this machine has given up; others may still make them."""
        busy = self._manifest.index.unavailable()
        open_slices = [
            slice_id for slice_id in self._view.slices(self._shard) if self._view.missing(slice_id)
        ]
        blocked = sum(busy.get(slice_id) is SliceState.BLOCKED for slice_id in open_slices)
        # What is done here and waits for its segment is nobody's work any more.
        waiting = sum(
            busy.get(slice_id) not in (SliceState.BLOCKED, SliceState.DONE) for slice_id in open_slices
        )
        return NoLease(leased=waiting, blocked=blocked)

    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex] | None:
        """The batches to make next, at most a segment's; [] when the slice is complete, None: yield it.

        `batch_seconds` is what a batch takes, 0.0 while that is not known.
        """
        with self._lock:
            own, slice_id = self._state.held, (lease.shard, lease.slice)
            batches = map(BatchIndex, self._view.plan.layout.slice_batch_range(*slice_id))
            winners = self._view.winners
            self._manifest.index.adopt([winners[batch] for batch in batches if batch in winners], lease)
            if self._manifest.index.unavailable().get(slice_id) is SliceState.DONE:
                return []
            pending = self._manifest.receipts.pending_batches(lease)
            rivals = [] if own is None else self._rivals(slice_id)
            is_behind = own is not None and any(rival.claim.goes_before(own.claim) for rival in rivals)
            if own is not None and is_behind and self._is_settling(own):
                return None
            count = self._portion_size(batch_seconds)
            return pending[-count:] if is_behind else pending[:count]

    def _is_settling(self, own: _Own) -> bool:
        """So early a worker leaves a slice to an older claim; later it helps, from the other end."""
        return self._clocks.monotonic() - own.at < self._policy.settle.total_seconds()

    def _portion_size(self, batch_seconds: float) -> int:
        most = self._policy.segment_batches
        if batch_seconds <= 0:
            return min(most, 4)  # to learn how long one takes
        return max(1, min(most, int(self._policy.segment.total_seconds() / batch_seconds)))

    def ended(self, *, is_complete: bool) -> None:
        """The slice in hand is made, or given back: publish what waits, and say so."""
        with self._lock:
            own, self._state.held = self._state.held, None
            if own is None:
                return
            tell = self._done if is_complete else self._end
            self._quietly(lambda: self._publisher.publish(everything=True, on_look=self._on_look))
            self._quietly(lambda: tell(own))

    def reports(self, report: WorkerReport) -> None:
        """What the next beat says."""
        self._report = report

    def _stop_claiming(self) -> None:
        self._state.wants_more = False
        own, self._state.next = self._state.next, None
        if own is not None:
            self._quietly(lambda: self._end(own))

    def leave(self) -> int:
        """Publish everything, give up all claims, say goodbye; returns the batches that stay unpublished."""
        with self._lock:
            self._stop_claiming()
            own, self._state.held = self._state.held, None
            self._manifest.index.forget_undone(self._view.undone)
            self._quietly(lambda: self._publisher.publish(everything=True, on_look=self._on_look))
            if own is not None:
                self._quietly(lambda: self._end(own))
            self._quietly(lambda: self._beat(replace(self._report, state=WorkerState.STOPPED, note="")))
            self._state.has_left = True
        return len(self._manifest.index.unpublished())

    def not_uploaded(self, *, on_look: OnLook = unheard) -> list[str]:
        """Own segments that have not left this machine yet; none where that cannot be known."""
        waiting = []
        for path in [ref.path for refs in self._publisher.published.values() for ref in refs]:
            on_look("files to be uploaded")
            if self._files.is_uploaded(path) is False:
                waiting.append(path)
        return waiting

    def _quietly(self, call: Callable[[], object]) -> None:
        """The folder may be away for a while; what is not told is found out by others' patience."""
        self._on_look("writing to the shared folder")
        try:
            call()
        except OSError as error:
            self._have_trouble(f"the shared folder: {error.strerror or error}")

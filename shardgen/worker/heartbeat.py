"""A worker's pulse: renews its lease while it makes progress, and ends the process when it hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from shardgen.coordination.base import Coordinator
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.domain.worker import START_LIMIT, WorkerReport, WorkerState
from shardgen.errors import LeaseLost, ShardgenError, TransientError, WorkerHung, note_of
from shardgen.storage.log_file import flush_logs

EXIT_HUNG = WorkerHung.exit_code
_LOG = logging.getLogger(__name__)
_SLOWEST_BATCHES = 10  # a batch of a slow machine is no stall
_WINDOW_SECONDS = 600.0
_FROZEN_BEATS = 5
_MIN_BEAT_GAP_SECONDS = 1.0  # between the extra beats that follow receipts

_JOIN_SECONDS = 5.0  # for a beat under way at the end; one that lands later changes nothing
_LAST_WORD_SECONDS = 60.0  # for the note of a hung process, whose manifest may hang, too

_STACK_CALLS = 10  # innermost calls of each thread
_STACKS_CHARACTERS = 8_000

Monotonic = Callable[[], float]


class RateWindow:
    """Samples per second over the last ten minutes (or since the start of work, if that is nearer)."""

    def __init__(self, monotonic: Monotonic = time.monotonic) -> None:
        self._monotonic = monotonic
        self._marks: deque[tuple[float, int]] = deque([(monotonic(), 0)])

    def restart(self) -> None:
        """Forget what was: the clock of the first batch starts now."""
        self._marks = deque([(self._monotonic(), 0)])

    def add(self, samples: int) -> None:
        """Count samples finished now."""
        now = self._monotonic()
        self._marks.append((now, samples))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW_SECONDS:
            self._marks.popleft()

    def per_second(self) -> float:
        """The rate up to the last finished batch; 0.0 before the first."""
        elapsed = self._marks[-1][0] - self._marks[0][0]
        return sum(samples for _, samples in list(self._marks)[1:]) / elapsed if elapsed > 0 else 0.0

    def batch_seconds(self) -> float:
        """Seconds between two finished batches of late; 0.0 before the second."""
        elapsed = self._marks[-1][0] - self._marks[0][0]
        return elapsed / max(1, len(self._marks) - 1) if elapsed > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How a heartbeat keeps time, and what it does to a hung process."""

    monotonic: Monotonic = time.monotonic
    exit_process: Callable[[int], None] = os._exit


class Heartbeat:
    """Beats in a thread of its own; used as a context manager around a worker's life."""

    def __init__(
        self,
        coordinator: Coordinator,
        policy: LeasePolicy,
        *,
        pulse: Pulse | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._policy = policy
        self._pulse = pulse or Pulse()
        self._report = WorkerReport(state=WorkerState.STARTING)
        self._lease: Lease | None = None
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._failure: ShardgenError | None = None
        self._lock = threading.Lock()
        self._last_progress = self._last_beat = self._pulse.monotonic()
        self._last_look = self._last_progress
        self._progressed = True
        self._waits_for = ""
        self._is_heard = True
        self._slowest_batch = 0.0
        self._rate = RateWindow(self._pulse.monotonic)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=_JOIN_SECONDS)

    def last_word(self, error: BaseException | None) -> WorkerReport:
        """What to say last of a worker that ends, because of an error or not."""
        samples = self._report.samples_done
        return WorkerReport(state=WorkerState.STOPPED, samples_done=samples, note=note_of(error))

    @property
    def slowest_batch_seconds(self) -> float:
        """The slowest batch so far, 0.0 before the first."""
        return self._slowest_batch

    @property
    def samples_done(self) -> int:
        """Samples that this worker has recorded."""
        return self._report.samples_done

    @property
    def mean_batch_seconds(self) -> float:
        """What a batch takes at the recent rate, 0.0 before the first."""
        return self._rate.batch_seconds()

    def progress(self) -> None:
        """Some stage has finished something."""
        self._waits_for = ""
        self._note_progress()

    def waits(self, what: str) -> None:
        """The worker waits for something outside, and has looked again; `what` is for people.

        Such a wait may last: until the next progress the time from one look to the next may be
        `LeasePolicy.wait`, whatever a batch takes. A look that does not return is a hang all the same.
        """
        self._waits_for = what
        self._note_progress()

    def _note_progress(self) -> None:
        self._last_progress = self._pulse.monotonic()
        self._progressed = True

    def now_is(self, state: WorkerState) -> None:
        """Change the worker's state, and say so at once."""
        if self._report.state is not WorkerState.WORKING and state is WorkerState.WORKING:
            self._rate.restart()
        self.progress()
        self._report = replace(self._report, state=state)
        self._tell(self._current())

    def holds(self, lease: Lease | None) -> None:
        """Renew this lease from now on; None: nothing."""
        with self._lock:
            self._lease = lease
            self._lost.clear()

    def batch_recorded(self, samples: int, *, seconds: float) -> None:
        """A batch has its receipt; `seconds` is how long it took from its composition."""
        self._slowest_batch = max(self._slowest_batch, seconds)
        self._rate.add(samples)
        self._report = replace(
            self._report,
            samples_done=self._report.samples_done + samples,
            samples_per_second=self._rate.per_second(),
        )
        self.progress()
        if self._pulse.monotonic() - self._last_beat >= _MIN_BEAT_GAP_SECONDS:
            self._tell(self._current())

    def check_lease(self) -> None:
        """Raise LeaseLost once a renewal has found the slice taken over, or what else stopped the beat."""
        if self._failure is not None:
            raise self._failure
        if self._lost.is_set():
            raise LeaseLost("the slice was taken over", hint="nothing to do: its new holder finishes it")

    def _current(self) -> WorkerReport:
        report, what = replace(self._report, progressed=self._progressed), self._waits_for
        self._progressed = False
        if not what:
            return report
        is_starting = report.state is WorkerState.STARTING
        return replace(report, state=report.state if is_starting else WorkerState.WAITING, note=what)

    def _tell(self, report: WorkerReport) -> None:
        self._last_beat = self._pulse.monotonic()
        try:
            self._coordinator.beat(report)
        except TransientError as error:
            self._unheard(error)
        else:
            if not self._is_heard:
                self._is_heard = True
                _LOG.info("heartbeat: the manifest answers again")

    def _unheard(self, error: TransientError) -> None:
        """Said once: whoever waits for the manifest says how long."""
        if self._is_heard:
            self._is_heard = False
            _LOG.warning("heartbeat: %s; trying again at each beat", error)

    def _run(self) -> None:
        interval = min(self._policy.heartbeat.total_seconds(), self._policy.stall.total_seconds() / 4)
        while not self._ended.wait(interval):
            try:
                self.beat_once()
            except ShardgenError as error:
                # Not a passing trouble: the worker must not go on without renewals and a watchdog.
                self._failure = error
                return

    def beat_once(self) -> None:
        """One beat: end the process if it hangs, else report and renew."""
        now = self._pulse.monotonic()
        if now - self._last_look > _FROZEN_BEATS * max(self._policy.heartbeat.total_seconds(), 1.0):
            # This thread itself did not run: the process was stopped or the machine slept, so nothing hangs.
            self.progress()
        self._last_look = now
        silent = now - self._last_progress
        limit = self._stall_limit_seconds()
        if silent >= limit:
            self._give_up(silent)
            return
        self._tell(self._current())
        with self._lock:
            lease = self._lease
        if lease is None:
            return
        try:
            self._coordinator.manifest.leases.renew(lease, self._policy)
        except LeaseLost:
            # The lease may have ended in this very moment, by its last receipt: that is no loss.
            with self._lock:
                if self._lease is lease:
                    self._lost.set()
        except TransientError as error:
            self._unheard(error)

    def _stall_limit_seconds(self) -> float:
        if self._report.state is WorkerState.STARTING:
            return START_LIMIT.total_seconds()
        if self._waits_for or self._report.state is WorkerState.WAITING:
            return max(self._policy.wait.total_seconds(), _SLOWEST_BATCHES * self._slowest_batch)
        return max(self._policy.stall.total_seconds(), _SLOWEST_BATCHES * self._slowest_batch)

    def _give_up(self, silent: float) -> None:
        waiting = f" (waiting: {self._waits_for})" if self._waits_for else ""
        note = f"no stage has finished anything for {silent:.0f} s{waiting}"
        stacks = _stacks()  # before anything else moves
        try:
            _LOG.error(
                "error: this worker hangs: %s; it exits so that another worker can take its slice", note
            )
            _LOG.error("hint: start it again; if you report this, include the stacks below")
            _LOG.debug("%s", stacks)
            faulthandler.dump_traceback(file=2, all_threads=True)
            ended = replace(self._report, state=WorkerState.HUNG, note=f"{note}\n{stacks}")
            last_word = threading.Thread(target=self._tell, args=(ended,), name="last word", daemon=True)
            last_word.start()
            last_word.join(_LAST_WORD_SECONDS)
            flush_logs()
        finally:
            self._pulse.exit_process(EXIT_HUNG)  # whatever else goes wrong, a hung process must not stay


def _stacks() -> str:
    """Where every other thread is, innermost call last; for the dead letter that may come of it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)[-_STACK_CALLS:])
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - the documented way to see them
        if ident != threading.get_ident()
    )[:_STACKS_CHARACTERS]

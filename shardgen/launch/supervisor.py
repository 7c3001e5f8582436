"""Supervisor: worker processes, watched, restarted, and stopped together."""

from __future__ import annotations

import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from shardgen.coordination.open import open_run
from shardgen.coordination.report import Report, make_report
from shardgen.domain.plan import Plan
from shardgen.domain.wording import Say
from shardgen.domain.worker import ENDED_STATES, WorkerReport, WorkerRow, WorkerState
from shardgen.errors import (
    DepthBackendUnavailable,
    DeviceBroken,
    DownloadFailed,
    InputMissing,
    ManifestBusy,
    ManifestGone,
    PlanConflict,
    RunIncomplete,
    SliceFailed,
    Stopped,
    StorageFailed,
    TooManyDead,
    TransientError,
    WorkerHung,
    WorkersFailed,
)
from shardgen.launch.launcher import (
    GRACE_SECONDS,
    Ended,
    LastWords,
    Launcher,
    Order,
    ProcessId,
    WorkerProcess,
)
from shardgen.launch.silence import SilenceWatch
from shardgen.manifest.port import Manifest
from shardgen.manifest.session import planned_anew
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.stop import Parent, StopSignals, stopping_signals

_DYING_SECONDS = 5.0  # from SIGKILL to the process's end: longer, and it sleeps in the kernel
_TICK_SECONDS = 0.25
_LOOK_SECONDS = 1.0  # between two looks at the manifest
_AUDIT_SECONDS = 5.0  # of a manifest, before workers start
_LONGEST_WAIT_SECONDS = 60.0
_GIVE_UP_SECONDS = 600.0  # of trouble without a stored sample
_STOP_MARGIN_SECONDS = 15.0
_NO_PLACE_SECONDS = 5.0  # until a place for a worker is looked for again
_PATIENT_LOOKS = 3
_BARREN_ROUNDS = 3
_PORTION_BATCHES = 32  # dealt to one worker at least, so that its start-up does not count
_UNHEARD_BEATS = 2  # of 30 s each: who blocks the manifest for so long hangs in a commit
_BLOCKED_IN_A_ROW = 3  # without a stored sample in between
# Exit codes of a worker that could not go on, for no slice's fault.
_MACHINE_TROUBLE = (*range(30, 34), DeviceBroken.exit_code)
_TRIES = 3  # of a device that raises whatever it is given
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")
# Where a mount is away, its folder looks like another one, or like none.
_LOST_FOLDER = (PlanConflict.exit_code, InputMissing.exit_code)
_MEANINGS: Mapping[int, type[TransientError]] = {
    ManifestBusy.exit_code: ManifestBusy,
    StorageFailed.exit_code: StorageFailed,
    DepthBackendUnavailable.exit_code: DepthBackendUnavailable,
    DownloadFailed.exit_code: DownloadFailed,
    WorkerHung.exit_code: WorkerHung,
    SliceFailed.exit_code: SliceFailed,
    DeviceBroken.exit_code: DeviceBroken,
    **dict.fromkeys(_LOST_FOLDER, StorageFailed),
}
_LESS_MEMORY = "set [depth] micro_batch = 1, use fewer --workers, or give it more memory"

OnLook = Callable[[Report, Mapping[int, int]], None]
"""Called with a fresh report and the pids of the running workers by their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """When to stop before all is made, and how long workers may take to stop.

    `limit` is in samples stored in the run, `deadline` an instant of `monotonic`.
    """

    grace_seconds: float = GRACE_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    limit: int | None = None
    deadline: float = math.inf

    @property
    def seconds_left(self) -> float:
        """Until the deadline; not above 0 past it."""
        return self.deadline - self.monotonic()

    def is_enough(self, found: Report) -> bool:
        """Whether as much is stored as was asked for."""
        return self.limit is not None and found.stored >= self.limit


@dataclass(slots=True)
class _Quiet:
    """How long there has been trouble without a stored sample since."""

    monotonic: Callable[[], float]
    since: float | None = None

    def is_too_long(self) -> bool:
        """There is trouble now: whether `run` should give up."""
        now = self.monotonic()
        if self.since is None:
            self.since = now
        return now - self.since >= _GIVE_UP_SECONDS

    def end(self) -> None:
        """Something was made, or a slice answers for its own deaths."""
        self.since = None


@dataclass(slots=True)
class _Seat:
    """One worker's seat: its process, or when to start the next one."""

    number: int
    process: WorkerProcess | None = None
    batches: int | None = None  # that its process may make; None: all
    finished_before: int = -1  # samples of the run, when its process was started
    start_at: float = 0.0
    fruitless: int = 0  # ends in a row without a slice in hand
    given_up: int | None = None
    is_lasting: bool = False  # given up for what a person must change
    last_words: LastWords | None = None  # of its last process
    broken: int = 0  # ends in a row by a broken device, alike, without a stored sample
    unheard: int = 0  # words about it that the manifest did not take
    is_killed: bool = False  # its process may not have ended all the same

    @property
    def was_started(self) -> bool:
        """Whether a process ever got a place to run."""
        return self.last_words is not None or (self.process is not None and self.process.id is not None)


class _Supervisor:
    """The worker processes of one command."""

    def __init__(
        self, run: RunDirectory, plan: Plan, launcher: Launcher, options: RunOptions, *, say: Say
    ) -> None:
        self._run = run
        self._plan = plan
        self._launcher = launcher
        self._options = options
        self._say = say
        self._seats = [_Seat(number=number) for number in range(launcher.seats)]
        self._signals = StopSignals()
        self._parent = Parent()
        self._looked = self._look_again_at = -math.inf
        self._silence = SilenceWatch(run.settings.lease_policy)
        self._monotonic = options.monotonic
        self._quiet = _Quiet(options.monotonic)
        self._blind = _Quiet(options.monotonic)  # the manifest cannot be read or written
        self._stored = -1
        self._has_made = False
        self._blocked = sys.maxsize
        self._too_much = 0  # looks at workers that are still there although the limit is met
        self._dealt_at = (-1, -1)  # samples stored and finished when batches were last dealt
        self._barren_rounds = 0
        self._last: _Seat | None = None  # of the seats that were given up
        self._killed_for = ""  # why the kernel probably killed a worker

    def work(self, manifest: Manifest, on_look: OnLook) -> None:
        """Keep workers going until all of them have ended; raises Stopped after a signal.

        Only the main thread may take signals: in another one, no signal stops it.
        """
        is_main = threading.current_thread() is threading.main_thread()
        numbers = stopping_signals() if is_main else ()
        # None stands for a handler of a program that Python is embedded in: Python could not put it back.
        previous = {
            number: signal.signal(number, self._received)
            for number in numbers
            if signal.getsignal(number) is not None
        }
        try:
            self._watch(manifest, on_look)
        finally:
            self._stop_all(signal.SIGTERM)
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signals.first is not None:
            raise Stopped(self._signals.first)

    def has_stopped_early(self, found: Report) -> bool:
        """Whether samples are pending because no more were asked for, or the time was up."""
        if self._options.deadline == math.inf:
            return self._options.is_enough(found)
        is_time_up = self._options.seconds_left <= 0 or any(seat.given_up == 0 for seat in self._seats)
        return is_time_up or self._options.is_enough(found)

    def incomplete(self, found: Report) -> RunIncomplete | TransientError:
        """The error of a run that ends with samples pending."""
        what = f"{found.pending:,} of {found.plan.samples:,} samples are pending"
        blocked = found.overview.blocked_total
        if (broken := self._broken()) is not None:
            name, words = Order(number=broken.number).name, broken.last_words or LastWords()
            return RunIncomplete(
                f"{what}; {name} failed {broken.broken} times in the same way: {words.error}",
                hint=_hint_of(words),
            )
        if blocked:
            if self._killed_for:
                return RunIncomplete(
                    f"{what}, in {blocked} blocked slices; workers were killed, {self._killed_for}",
                    hint=f"{_LESS_MEMORY}; then shardgen requeue RUN_DIR --blocked",
                )
            return RunIncomplete(
                f"{what}, in {blocked} blocked slices",
                hint="shardgen status RUN_DIR says why; then shardgen requeue RUN_DIR --blocked",
            )
        codes = sorted({seat.given_up for seat in self._seats if seat.given_up})
        shown = ", ".join(map(str, codes)) or "0"
        words = (self._last and self._last.last_words) or LastWords()
        if lasting := sum(seat.is_lasting for seat in self._seats):
            who = f"{lasting} of {len(self._seats)} workers" if self._seats[1:] else "the worker"
            return RunIncomplete(
                f"{what}; {who} ended with exit code {shown}",
                hint=f"fix what their messages above say, then run the command again{words.log_named}",
            )
        code = 0 if self._last is None else self._last.given_up or 0
        lasted = f" for {_GIVE_UP_SECONDS / 60:g} minutes" if code else ""
        if code == -signal.SIGKILL and self._killed_for:
            words = replace(words, error=f"killed, {self._killed_for}", hint=_LESS_MEMORY)
        reason = f": {words.error}" if words.error else ""
        return _MEANINGS.get(code, WorkersFailed)(
            f"{what}; workers kept ending (exit code {shown}){lasted}{reason}",
            hint=_hint_of(words),
        )

    def _received(self, number: int, _frame: FrameType | None) -> None:
        self._signals.receive(number)

    def _watch(self, manifest: Manifest, on_look: OnLook) -> None:
        troubles = 0
        while self._signals.first is None:
            if self._parent.is_gone:
                self._signals.receive(signal.SIGTERM)
                return
            if self._monotonic() < self._look_again_at:
                time.sleep(_TICK_SECONDS)
                self._silence.stay_awake()
                continue
            try:
                if self._look(manifest, on_look):
                    return
                self._start_due()
            except ManifestGone:
                raise
            except TransientError as error:
                self._silence.stay_awake()
                self._refuse_to_wait(error)
                if not troubles:
                    self._say(f"{error}; trying again for {_GIVE_UP_SECONDS / 60:g} minutes")
                self._look_again_at = self._monotonic() + min(_LONGEST_WAIT_SECONDS, 2.0**troubles)
                troubles += 1
                continue
            if troubles:
                self._say("the manifest answers again")
            troubles = 0
            self._blind.end()
            if all(seat.given_up is not None for seat in self._seats):
                return
            time.sleep(_TICK_SECONDS)

    def _refuse_to_wait(self, error: TransientError) -> None:
        """Raise it when there is no time left, or it has lasted too long."""
        if self._options.seconds_left <= 0 and not self._pids():
            raise error
        if self._blind.is_too_long():
            raise _gave_up(error) from error

    def _look(self, manifest: Manifest, on_look: OnLook) -> bool:
        """Notice ended workers, and now and then what the manifest shows; whether to end."""
        try:
            self._reap(manifest)
        except ManifestBusy:
            self._silence.stay_awake()
            self._kill_silent(make_report(self._run, self._plan, manifest.overview()), manifest)
            if self._pids():
                self._blind.end()  # one of them may hang with the lock; it shows life or is killed in time
            raise
        now = self._monotonic()
        if now - self._looked < _LOOK_SECONDS and self._broken() is None:
            return False
        self._looked = now
        self._launcher.look()
        self._seats += [_Seat(number=number) for number in range(len(self._seats), self._launcher.seats)]
        found = make_report(self._run, self._plan, manifest.overview())
        if found.overview.fingerprint != self._plan.fingerprint:
            raise planned_anew(manifest.shown)  # it would count by the wrong number of samples
        on_look(found, self._pids())
        if not found.pending and not self._pids():
            return True
        if self._is_enough_for_all(found) or self._looks_hopeless(found) or self._broken() is not None:
            return True
        self._credit(found)
        self._kill_silent(found, manifest)
        return False

    def _is_enough_for_all(self, found: Report) -> bool:
        """Whether the limit is met, and nobody is left who should end by himself.

        Who has made what was dealt publishes, releases and ends. Who is still there some looks later was
        dealt what others, not of this call, have made meanwhile, or waits for a slice: then all are told to
        stop.
        """
        if not self._options.is_enough(found):
            return False
        self._too_much += 1
        return not self._pids() or self._too_much > _PATIENT_LOOKS

    def _looks_hopeless(self, found: Report) -> bool:
        """Whether slice after slice gets blocked while nothing is made: then it is hardly the slices."""
        blocked = found.overview.blocked_total
        if found.stored > self._stored:
            if self._stored >= 0:
                self._has_made = True
                self._quiet.end()
                for seat in self._seats:
                    seat.broken = 0
            self._stored, self._blocked = found.stored, blocked
        self._blocked = min(self._blocked, blocked)
        if blocked - self._blocked < _BLOCKED_IN_A_ROW:
            return False
        self._say(f"{blocked - self._blocked} slices in a row were blocked and nothing was made; stopping")
        return True

    def _broken(self) -> _Seat | None:
        """The seat whose device was tried often enough, while no other worker does better."""
        for seat in self._seats:
            if seat.was_started and seat.given_up is None and not seat.broken:
                return None
        return next((seat for seat in self._seats if seat.broken >= _TRIES), None)

    def _credit(self, found: Report) -> None:
        """A worker that has made something is not fruitless, however it ends."""
        made = {
            _process_id(one.row)
            for one in found.workers
            if one.row.samples_done and one.row.state not in ENDED_STATES
        }
        for seat in self._seats:
            if seat.process is not None and seat.process.id in made:
                seat.fruitless = 0

    def _kill_silent(self, found: Report, manifest: Manifest) -> None:
        """End workers that hang so badly that their watchdog does not run either."""
        rows = [one.row for one in found.workers]
        running = {process.id: (seat, process) for seat, process in self._running() if process.id is not None}
        for silence in self._silence.silent(running, rows):
            seat, process = running[silence.process]
            note = f"no sign of life for {silence.seconds:.0f} s"
            row = silence.row
            ended = None
            if row is not None and row.state not in ENDED_STATES:
                ended = WorkerReport(state=WorkerState.HUNG, samples_done=row.samples_done, note=note)
                try:
                    manifest.workers.beat(row.identity.id, ended)  # before it dies, as its death is a hang
                    ended = None
                except ManifestBusy:
                    # It may hang inside a commit: then no word gets through as long as it lives.
                    seat.unheard += 1
                    if seat.unheard < _UNHEARD_BEATS:
                        raise
            self._say(f"[worker-{seat.number}] {note}; killing it")
            process.send(signal.SIGKILL)
            seat.is_killed = True
            if ended is not None and row is not None:
                dying_until = time.monotonic() + _DYING_SECONDS
                while process.ended() is None and time.monotonic() < dying_until:
                    time.sleep(_TICK_SECONDS / 5)
                manifest.workers.beat(row.identity.id, ended)

    def _running(self) -> list[tuple[_Seat, WorkerProcess]]:
        """Without those that have ended, since another process may have their pid, or that were killed."""
        return [
            (seat, seat.process)
            for seat in self._seats
            if seat.process is not None and not seat.is_killed and seat.process.ended() is None
        ]

    def _pids(self) -> dict[int, int]:
        """Of those that have a place to run."""
        return {seat.number: process.id.pid for seat, process in self._running() if process.id is not None}

    def _start_due(self) -> None:
        idle = [seat for seat in self._seats if seat.process is None and seat.given_up is None]
        if self._options.seconds_left <= 0:
            for seat in idle:
                seat.given_up = 0
            return
        now = self._monotonic()
        due = [seat for seat in idle if now >= seat.start_at]
        if due and self._options.limit is not None:
            self._deal(self._options.limit, due)
        for seat in due:
            if seat.batches != 0 and seat.given_up is None and self._options.seconds_left > 0:
                self._start(seat)

    def _start(self, seat: _Seat) -> None:
        seconds = self._options.seconds_left
        seat.process = self._launcher.start(Order(number=seat.number, seconds=seconds, batches=seat.batches))
        seat.unheard, seat.is_killed = 0, False
        if seat.process is None:
            seat.finished_before = -1
            seat.start_at = self._monotonic() + _NO_PLACE_SECONDS

    def _deal(self, limit: int, due: Sequence[_Seat]) -> None:
        """Say how many batches each of these seats may make: together never one more than the limit needs.

        Every batch is taken for full. Where one stores less, for its dead letters or at the end of a shard,
        the rest is dealt in another round.
        """
        # Read after the ends of workers were noticed, so that what they have stored is counted in it.
        found = open_run(self._run).take_stock()
        finished = found.stored + found.dead
        self._refuse_barren_rounds(found.stored, finished)
        left = math.ceil((limit - found.stored) / self._plan.shards.batch) - self._in_hand(found)
        left = max(0, left if found.pending else 0)
        for waiting, seat in zip(range(len(due), 0, -1), due, strict=True):
            if seat.finished_before == finished:  # its process made nothing: no time is left, or no slice
                seat.given_up = 0
                continue
            part = math.ceil(left / (2 * len(self._seats))) if self._seats[1:] else left
            even = math.ceil(left / waiting)
            seat.batches = even if even <= _PORTION_BATCHES else max(_PORTION_BATCHES, part)
            left -= seat.batches
            if seat.batches:
                seat.finished_before = finished
            else:
                seat.start_at = math.inf  # until another worker has ended

    def _refuse_barren_rounds(self, stored: int, finished: int) -> None:
        """Raise TooManyDead when round after round gave dead letters only: every start-up would go on so."""
        before, self._dealt_at = self._dealt_at, (stored, finished)
        if stored > before[0]:
            self._barren_rounds = 0
        elif finished > before[1] >= 0:
            self._barren_rounds += 1
        if self._barren_rounds >= _BARREN_ROUNDS:
            raise TooManyDead(
                f"{_BARREN_ROUNDS} times in a row all samples that were made for the limit are dead letters "
                f"({finished - stored:,} in all)",
                hint="shardgen dead-letters RUN_DIR says why; then run again",
            )

    def _in_hand(self, found: Report) -> int:
        """Batches that running workers may still make, or more: what they say of themselves comes late."""
        made: dict[ProcessId | None, int] = {
            _process_id(one.row): one.row.samples_done // self._plan.shards.batch
            for one in found.workers
            if one.row.state not in ENDED_STATES
        }
        return sum(
            (seat.batches or 0) - made.get(seat.process.id, 0)
            for seat in self._seats
            if seat.process is not None
        )

    def _reap(self, manifest: Manifest) -> None:
        """Notice ended workers at once: free their slices, and decide whether to start them again."""
        for seat in self._seats:
            if seat.process is None or (ended := seat.process.ended()) is None:
                continue
            freed, is_innocent = self._free(seat.process, ended, manifest)
            process, seat.process = seat.process, None
            before, seat.last_words = seat.last_words or LastWords(), process.last_words
            if ended.code != DeviceBroken.exit_code:
                seat.broken = 0
            else:
                process.hear_out()
                seat.broken = seat.broken + 1 if _are_alike(before, process.last_words) else 1
            for other in self._seats:
                if other.start_at == math.inf:
                    other.start_at = self._monotonic()
            if self._signals.first is not None or (ended.code == 0 and seat.batches is None):
                seat.given_up = 0
            elif ended.code != 0:  # else what is left of the limit is dealt again
                held_a_slice = (freed > 0 and not is_innocent) or ended.code == SliceFailed.exit_code
                self._conclude(seat, process, ended, held_a_slice=held_a_slice, is_freed=freed > 0)

    def _conclude(
        self, seat: _Seat, process: WorkerProcess, ended: Ended, *, held_a_slice: bool, is_freed: bool
    ) -> None:
        """Decide about the seat of a process that did not end by itself in peace, and say so."""
        if ended.code == TooManyDead.exit_code:
            process.hear_out()
            raise _refused(process.last_words)
        how = ended.shown
        if ended.memory:
            self._killed_for = ended.memory
            how += f", {ended.memory}: {_LESS_MEMORY}"
        wait = self._decide(seat, process, ended, held_a_slice=held_a_slice)
        if self._broken() is not None:
            return  # the last error says it
        if wait is None and process.last_words.is_repeated:
            return  # the same is wrong as with another
        name = Order(number=seat.number).name
        taken = "; another worker takes over" if is_freed else ""
        self._say(f"[{name}] {how}{taken}{process.last_words.log_named}")
        if wait is not None:
            self._say(f"[{name}] starts again in {wait:g} s")

    def _free(self, process: WorkerProcess, ended: Ended, manifest: Manifest) -> tuple[int, bool]:
        """Free what an ended process held; also whether it did not die of it.

        What could not even release its slice because of the manifest or a disk did not. Of a process that
        nobody saw end it is not known that it holds nothing any more: it releases by itself, or its lease
        runs out.
        """
        if ended.code is None or process.id is None:
            return 0, False
        ids = [one.id for one in manifest.workers.alive_on_host(process.id.host) if one.pid == process.id.pid]
        innocent = ids if ended.code in _MACHINE_TROUBLE else []
        freed = manifest.leases.free_slices_of(ids, self._run.settings.lease_policy, innocent=innocent)
        return freed, bool(innocent)

    def _decide(
        self, seat: _Seat, process: WorkerProcess, ended: Ended, *, held_a_slice: bool
    ) -> float | None:
        """A death or a passing trouble: start again, later and later; anything else: not.

        Returns the seconds until then, None for never. A death in a slice counts against that slice, which is
        blocked in the end; others count here.
        """
        code = -signal.SIGKILL if ended.code is None else ended.code
        seat.is_lasting = 0 < code < 30 and not (code in _LOST_FOLDER and self._has_made)
        if held_a_slice:
            seat.fruitless = 0
            self._quiet.end()
        else:
            seat.fruitless += 1
        seat.finished_before = -1
        if seat.is_lasting or (not held_a_slice and self._quiet.is_too_long()):
            process.hear_out()
            seat.given_up = code
            self._last = seat
            return None
        wait = min(_LONGEST_WAIT_SECONDS, 2.0**seat.fruitless)
        seat.start_at = self._monotonic() + wait
        return wait

    def _stop_all(self, number: signal.Signals) -> None:
        """Forward the wish to stop once; a second signal, or an exhausted grace, kills."""
        left = {seat.number: seat.process for seat in self._seats if seat.process is not None}
        for process in left.values():
            process.send(number)
        deadline = time.monotonic() + self._options.grace_seconds + _STOP_MARGIN_SECONDS
        killed_at = math.inf
        while left := {number: process for number, process in left.items() if process.ended() is None}:
            now = time.monotonic()
            if killed_at == math.inf and (self._signals.is_urgent or now > deadline):
                for process in left.values():
                    process.send(signal.SIGKILL)
                killed_at = now
            if now - killed_at > _DYING_SECONDS:
                for seat, process in left.items():
                    pid = process.id.pid if process.id is not None else "of it"
                    self._say(f"[worker-{seat}] process {pid} was killed but is still there (a dead mount?)")
                return
            time.sleep(_TICK_SECONDS / 5)


def run_workers(  # noqa: PLR0913 - whom to start, how, when to stop, and who watches
    run: RunDirectory,
    plan: Plan,
    launcher: Launcher,
    options: RunOptions,
    *,
    say: Say,
    on_look: OnLook = lambda _r, _p: None,
) -> Report:
    """Make what is pending with worker processes, all or as much as asked for; returns the last report.

    No worker is started past the deadline, and those at work then finish their batches in flight. The limit
    is met by the fewest batches as far as this call's own workers make them; batches of others count as soon
    as they are stored, and then too many may be in flight.

    Raises Stopped after a signal, TooManyDead, RunIncomplete when samples stay pending because something must
    be changed, ManifestCorrupt when the manifest contradicts itself, or the TransientError that fits when ten
    minutes of trouble have gone without a stored sample.
    """
    with run.manifest(plan) as manifest:
        manifest.operator.refuse_contradictions(seconds=_AUDIT_SECONDS)
        found = make_report(run, plan, manifest.overview())
        workers = _Supervisor(run, plan, launcher, options, say=say)
        if found.pending and not workers.has_stopped_early(found):
            workers.work(manifest, on_look)
    with run.manifest(plan) as manifest:  # what the other one has seen of a bucket may be seconds old
        found = make_report(run, plan, manifest.overview())
        on_look(found, {})
        if found.pending and not workers.has_stopped_early(found):
            manifest.operator.refuse_contradictions()  # because of one, workers may never make what is left
    if not found.pending or workers.has_stopped_early(found):
        return found
    raise workers.incomplete(found)


def _hint_of(words: LastWords) -> str:
    """What a worker said to do, if it said so, and where its log is."""
    hint = words.hint or "their messages are above; shardgen doctor RUN_DIR checks for problems"
    return hint + words.log_named


def _process_id(row: WorkerRow) -> ProcessId:
    return ProcessId(row.identity.host, row.identity.pid)


def _refused(words: LastWords) -> TooManyDead:
    """What the worker was told when it asked for a slice: others would be told the same."""
    return TooManyDead(
        words.error or "too many samples are dead letters, so no more slices are leased",
        hint=words.hint or "shardgen dead-letters RUN_DIR",
    )


def _are_alike(one: LastWords, other: LastWords) -> bool:
    """Whether two errors differ in numbers at most."""
    return _NUMBER.sub("0", one.error) == _NUMBER.sub("0", other.error)


def _gave_up(error: TransientError) -> TransientError:
    minutes = f"{_GIVE_UP_SECONDS / 60:g} minutes"
    return type(error)(f"{error}; giving up after {minutes}", hint=error.hint)

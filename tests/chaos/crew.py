"""The worker processes of a chaos run: started, killed, stopped, woken, and judged by their exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from shardgen.domain.plan import Plan
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.chaos.backdoors import Backdoor, Row
from tests.chaos.figures import Figures
from tests.chaos.history import WorkerHistory, read_history
from tests.chaos.worker import Part, main
from tests.stopping import resume, stop

ROOT = Path(__file__).parent.parent.parent
DEATHS_ALONE = 2  # of one noted sample; a third would make a dead letter of an innocent one
_RACE_SECONDS = 5.0  # between what an operator does and what a worker sees of it
_RIDDEN_OUT_SECONDS = 8.0  # a server that is away for less must end nobody

Window = tuple[float, float]


@dataclass(slots=True, kw_only=True)
class Member:
    """One worker process."""

    process: BaseProcess
    folder: Path
    was_killed: bool = False
    was_terminated: bool = False
    wakes_at: float | None = None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid or 0

    @property
    def history(self) -> WorkerHistory:
        """Read anew."""
        return read_history(self.folder)


@dataclass(slots=True, kw_only=True)
class Crew:
    """Keeps `size` workers going. `lost` and `put_back` are the times of rebuilds and requeues so far,
    `away` those of a server's restarts, `bad_wire` those in which a bucket could not be reached."""

    run: RunDirectory
    backdoor: Backdoor
    plan: Plan
    folder: Path
    figures: Figures
    say: Callable[[str], None]
    pace: float
    broken: str
    size: int
    environment: dict[str, str] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    lost: list[Window] = field(default_factory=list)
    put_back: list[Window] = field(default_factory=list)
    away: list[Window] = field(default_factory=list)
    bad_wire: list[Window] = field(default_factory=list)
    deaths_of: Counter[int] = field(default_factory=Counter)
    recorded: Counter[int] = field(default_factory=Counter)
    receipts: set[tuple[int, int]] = field(default_factory=set)
    """Batch and fence, of those that have ended."""
    started: int = 0

    def fill(self) -> None:
        """Start what is missing."""
        while len(self.members) < self.size:
            name = f"w{self.started:04d}"
            self.started += 1
            folder = self.folder / name
            folder.mkdir()
            part = Part(
                run_dir=self.run.path,
                folder=folder,
                pace=self.pace,
                seed=self.figures.seed * 10_000 + self.started,
                broken=self.broken,
                environment=self.environment,
            )
            process = warm.context().Process(target=main, args=(part,))
            process.start()
            self.members.append(Member(process=process, folder=folder))
            self.figures.counts["starts"] += 1

    def reap(self) -> None:
        """Wake who has slept enough; judge who has ended."""
        for member in list(self.members):
            if member.wakes_at is not None and time.monotonic() >= member.wakes_at:
                self.wake(member)
            code = member.process.exitcode
            if code is not None:
                self.members.remove(member)
                self._judge(member, code)

    def victims(self, *, after: int | None = None) -> list[Member]:
        """Workers that take signals and are not stopped or about to end.

        `after` so many batches that they have recorded, with a lease; None: while they start up, too.
        """
        found = []
        for member in self.members:
            free = member.wakes_at is None and not member.was_terminated and not member.was_killed
            if free and member.process.exitcode is None:
                history = member.history
                at_work = history.leases and len(history.recorded) >= (after or 0)
                if history.is_up and (after is None or at_work):
                    found.append(member)
        return found

    def suspected(self, among: list[Member]) -> list[Member]:
        """Those that work under a note, in suspect mode: a death now falls on a batch or a sample."""
        found = []
        for member in among:
            with contextlib.suppress(TimeoutError):
                row = self.backdoor.slice_of(member.pid) or {}
                if row.get("noted_batch") is not None or row.get("noted_sample") is not None:
                    found.append(member)
        return found

    def kill(self, member: Member) -> None:
        """SIGKILL, wherever it is, unless that were one death too many for the sample that it noted."""
        before = self._held_by(member)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            stop(member.pid)
        if not self._may_fail(member, before):
            return
        member.was_killed = True
        member.process.kill()
        member.process.join()
        # It may have ended a moment before.
        self.figures.counts["kills"] += member.process.exitcode == -signal.SIGKILL

    def stall(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        before = self._held_by(member)
        try:
            self.backdoor.stop(member.pid)
        except (ProcessLookupError, AssertionError) as error:  # it has just ended, or never lets go
            self.say(f"{member.folder.name} is not stopped: {error}")
            return
        if not self._may_fail(member, before):
            return
        member.wakes_at = time.monotonic() + seconds
        self.figures.counts["stalls"] += 1

    def wake(self, member: Member) -> None:
        """SIGCONT."""
        member.wakes_at = None
        if member.process.exitcode is None:
            resume(member.pid)
            self.figures.counts["woken"] += 1

    def leave(self, member: Member) -> None:
        """SIGTERM."""
        member.was_terminated = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGTERM)

    def dismiss(self) -> None:
        """Wake and end everybody, in peace; wait for it."""
        for member in list(self.members):
            if member.wakes_at is not None:
                self.wake(member)
        deadline = time.monotonic() + 120
        while self.members:
            for member in self.victims():
                self.leave(member)
            self.reap()
            if time.monotonic() > deadline:
                self.figures.violations.append("a worker does not end after SIGTERM")
                self.kill_all()
            time.sleep(0.1)

    def kill_all(self) -> None:
        """SIGKILL to everybody, whatever they do."""
        for member in self.members:
            if member.was_killed:
                continue
            member.was_killed = True
            member.process.kill()
            member.process.join()
            self.figures.counts["kills"] += member.process.exitcode == -signal.SIGKILL

    def may_all_be_late(self) -> bool:
        """Count what makes everybody's lease expire as a death of whatever is noted; False: spare them."""
        held = [self._held_by(member) for member in self.members]
        samples = {sample for row in held if row is not None and (sample := _noted(row)) is not None}
        if any(self.deaths_of[sample] >= DEATHS_ALONE for sample in samples):
            return False
        self.deaths_of.update(samples)
        self.figures.counts["deaths of a noted sample"] += len(samples)
        return True

    def _held_by(self, member: Member) -> Row | None:
        with contextlib.suppress(TimeoutError):
            return self.backdoor.slice_of(member.pid)
        return None

    def _may_fail(self, member: Member, before: Row | None) -> bool:
        """Whether this one, which is stopped, may be killed or stay so; if not, it goes on.

        `before` is the slice that it held before it was stopped.
        """
        try:
            may = self._may_die(self.backdoor.slice_of(member.pid))
        except TimeoutError:
            # Stopped inside its commit: worth having, if no note can be involved.
            may = before is not None and _noted(before) is None and before.get("suspect_batch") is None
            # The others may have to wait for it for longer than their leases.
            may = may and self.may_all_be_late()
            self.say(f"{member.folder.name} is inside a commit")
            self.figures.counts["stopped inside a commit"] += may
        if not may:
            resume(member.pid)
            self.figures.counts["kills spared"] += 1
        return may

    def _may_die(self, held: Row | None) -> bool:
        """Count a death against the sample that was noted; False when it has had enough."""
        sample = None if held is None else _noted(held)
        if sample is None:
            return True
        if self.deaths_of[sample] >= DEATHS_ALONE:
            return False
        self.deaths_of[sample] += 1
        self.figures.counts["deaths of a noted sample"] += 1
        return True

    def _judge(self, member: Member, code: int) -> None:
        history = member.history
        self.figures.exit_codes[code] += 1
        self.figures.faults.update(f"{name} on {call}" for call, name in history.faults)
        self.recorded.update(history.recorded)
        self.receipts |= history.receipts
        for lease in history.leases[:-1]:
            self.figures.redone["takeover"] += lease.unrecorded
        if history.leases:
            last, cause = (
                history.leases[-1],
                {-9: "kill", 143: "stop", -15: "stop", 31: "fault"}.get(code, "takeover"),
            )
            self.figures.redone[cause] += last.unrecorded
            self.figures.worst_kill = max(self.figures.worst_kill, last.unrecorded if code == -9 else 0)
            if last.unrecorded > 3 or last.unrecorded_estimates > 2:
                self.figures.violations.append(
                    f"{member.folder}: ended with {last.unrecorded} batches begun and "
                    f"{last.unrecorded_estimates} estimated without a receipt"
                )
        self.say(f"{member.folder.name} ended with {code} {history.outcome}")
        if not self._is_honest(member, code, history):
            self.figures.violations.append(
                f"{member.folder}: exit code {code} (outcome {history.outcome or 'none'}, "
                f"{history.pending} pending, faults {history.faults})"
            )

    def _is_honest(self, member: Member, code: int, history: WorkerHistory) -> bool:
        now = time.monotonic()
        if code == -9:
            return member.was_killed
        if code in (143, -signal.SIGTERM):  # the latter: while the interpreter takes itself apart
            return member.was_terminated
        if code == 0:
            undone = _overlaps(self.put_back + self.lost, history.last_lease_at, now)
            return history.outcome == "finished" and (history.pending == 0 or undone)
        if code == 14:
            return history.outcome == "blocked"
        # At its start a worker keeps nobody waiting.
        is_at_the_door = not history.is_up and _overlaps(self.bad_wire, now - 60, now)
        if (
            (code == 31 and history.faults)
            or (code == 30 and self._was_away_long)
            or (code in (11, 31) and is_at_the_door)
        ):
            return True
        # A worker whose manifest is taken away may say so in more than one way.
        return code in (11, 13, 30, 31) and _overlaps(self.lost, now - 60, now)

    @property
    def _was_away_long(self) -> bool:
        """Whether the server has just taken so long to start that it may be given up."""
        now = time.monotonic()
        return any(end - begin > _RIDDEN_OUT_SECONDS and now - end < 60 for begin, end in self.away)


def _noted(row: Row) -> int | None:
    value = row.get("noted_sample")
    return value if isinstance(value, int) else None


def _overlaps(windows: list[Window], start: float, stop: float) -> bool:
    return any(begin - _RACE_SECONDS <= stop and start <= end + _RACE_SECONDS for begin, end in windows)

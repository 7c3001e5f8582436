"""When `run` ends for a device that raises whatever it is given; worker processes are scripted here."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.errors import DeviceBroken, RunIncomplete
from shardgen.launch.launcher import Ended, LastWords, Launcher, Order, ProcessId
from shardgen.launch.supervisor import RunOptions, run_workers
from shardgen.settings.run_directory import RunDirectory
from tests.conformance.conftest import identity, receipt_for


@dataclass(slots=True)
class Scripted:
    """Ends with this code and these words, at that instant; until then it runs."""

    code: int
    last_words: LastWords
    ends_at: float = 0.0
    id: ProcessId | None = field(default_factory=lambda: ProcessId("nowhere", 1))

    def ended(self) -> Ended | None:
        return Ended(code=self.code) if time.monotonic() >= self.ends_at else None

    def send(self, number: signal.Signals) -> None:
        self.code, self.ends_at = -number, 0.0

    def hear_out(self) -> None: ...


@dataclass(slots=True)
class Scripts:
    """A launcher: what each seat's processes end with, one after another; the last again and again."""

    words: Sequence[Sequence[str]]
    on_start: Callable[[int], None] = lambda _number: None
    starts: list[int] = field(default_factory=list)

    @property
    def seats(self) -> int:
        return len(self.words)

    def look(self) -> None: ...

    def start(self, order: Order) -> Scripted | None:
        of_seat = self.words[order.number]
        words = of_seat[min(self.starts.count(order.number), len(of_seat) - 1)]
        self.starts.append(order.number)
        self.on_start(len(self.starts))
        if words == "no place":
            return None
        if words == "works":
            return Scripted(0, LastWords(), ends_at=time.monotonic() + 0.5)
        hint = "" if words == "no hint" else "look"
        return Scripted(DeviceBroken.exit_code, LastWords(error=words, hint=hint))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardgen.launch.supervisor._TICK_SECONDS", 0.01)


def ended(
    run: RunDirectory, *words: Sequence[str], on_start: Callable[[int], None] = lambda _number: None
) -> tuple[Exception, Scripts]:
    began, scripts = time.monotonic(), Scripts(words, on_start)
    options = RunOptions(monotonic=lambda: began + 200 * (time.monotonic() - began), deadline=math.inf)
    with pytest.raises((RunIncomplete, DeviceBroken)) as caught:
        run_workers(run, run.plan(), cast("Launcher", scripts), options, say=lambda _line: None)
    return caught.value, scripts


def test_three_failures_alike_end_the_run_and_numbers_make_no_difference(run: RunDirectory) -> None:
    error, scripts = ended(run, ["at 0x7f12: no 1", "at 0x9e34: no 2", "at 0x1: no 3"])
    assert str(error) == (
        "48 of 48 samples are pending; worker-0 failed 3 times in the same way: at 0x1: no 3"
    )
    assert isinstance(error, RunIncomplete)
    assert error.hint == "look"
    assert scripts.starts == [0] * 3


def test_a_run_has_a_hint_where_its_worker_had_none(run: RunDirectory) -> None:
    error, _ = ended(run, ["no hint"])
    assert getattr(error, "hint", "").endswith("shardgen doctor RUN_DIR checks for problems")


def test_another_failure_in_between_is_another_trouble(run: RunDirectory) -> None:
    _, scripts = ended(run, ["one", "one", "other", "one"])
    assert scripts.starts == [0] * 6


def test_the_run_ends_only_where_no_worker_does_better(run: RunDirectory) -> None:
    both, scripts = ended(run, ["it"], ["it"])
    assert isinstance(both, RunIncomplete)
    assert 3 <= len(scripts.starts) <= 6
    _, scripts = ended(run, ["it"], ["works"])
    assert scripts.starts.count(0) > 3


def test_a_worker_without_a_place_is_not_waited_for(run: RunDirectory) -> None:
    error, scripts = ended(run, ["it"], ["no place"])
    assert isinstance(error, RunIncomplete)
    assert scripts.starts.count(0) == 3


def test_a_stored_sample_in_between_starts_the_count_anew(run: RunDirectory) -> None:
    plan, other = run.plan(), identity(WorkerId("other"), pid=1)

    def store(start: int) -> None:
        if start == 3:
            with run.manifest(plan) as manifest:
                manifest.workers.register(other)
                lease = manifest.leases.lease(other.id, run.settings.lease_policy)
                assert isinstance(lease, Lease)
                manifest.receipts.record(lease, receipt_for(plan, lease, BatchIndex(0)))
                manifest.leases.release(lease)

    error, scripts = ended(run, ["it"], on_start=store)
    assert str(error).startswith("44 of 48 samples are pending")
    assert scripts.starts == [0] * 6

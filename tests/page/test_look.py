from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Thread

import pytest

from shardgen.coordination.base import OpenedRun, Watcher
from shardgen.coordination.open import open_run
from shardgen.coordination.report import Report
from shardgen.domain.overview import Details
from shardgen.errors import ManifestBusy
from shardgen.operations.page import look as looking
from shardgen.operations.page.look import Look, RunView, Seen, SharedLook, look_once
from shardgen.settings.run_directory import RunDirectory

SECONDS = 0.1


class Counted:
    """A real watcher that counts, and that cannot read the run when it is told so."""

    def __init__(self, real: Watcher) -> None:
        self._real = real
        self.reports = 0
        self.error: Exception | None = None

    def report(self) -> Report:
        self.reports += 1
        if self.error is not None:
            raise self.error
        return self._real.report()

    def details(self, *, newest: int) -> Details:
        return self._real.details(newest=newest)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


class Watched:
    """A real run whose watchers are counted."""

    def __init__(self, opened: OpenedRun, patch: pytest.MonkeyPatch) -> None:
        self.watchers: list[Counted] = []
        watching: Callable[[], AbstractContextManager[Watcher]] = opened.watching

        @contextmanager
        def counted() -> Iterator[Counted]:
            with watching() as real:
                self.watchers.append(Counted(real))
                if self.watchers[1:]:
                    self.watchers[-1].error = None
                yield self.watchers[-1]

        patch.setattr(opened, "watching", counted)
        patch.setattr(looking, "SECONDS", SECONDS)
        patch.setattr(looking, "SELDOM", 60.0)
        self.opened = opened

    @property
    def reports(self) -> int:
        return sum(one.reports for one in self.watchers)


@pytest.fixture
def watched(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(open_run(run), monkeypatch)


def wait_for(look: SharedLook, is_it: Callable[[Seen], bool]) -> Seen:
    ends = time.monotonic() + 20
    seen = look.seen
    while not is_it(seen):
        assert time.monotonic() < ends, seen
        seen = look.after(seen.version, timeout=1.0)
    return seen


def test_a_look_has_all_that_is_known(run: RunDirectory) -> None:
    look = look_once(open_run(run), named="people")
    assert look.report.pending == 48
    assert len(look.details.slices) == sum(
        run.plan().layout.slice_count(shard.shard) for shard in look.report.overview.shards
    )
    assert look.samples == ()


def test_all_viewers_share_one_look(watched: Watched) -> None:
    with SharedLook(watched.opened, named="people") as look:
        heard: list[int] = []

        def view() -> None:
            with look.viewing():
                version, ends = 0, time.monotonic() + 1.0
                while time.monotonic() < ends:
                    version = look.after(version, timeout=0.5).version
                    heard.append(version)

        viewers = [Thread(target=view) for _ in range(50)]
        before = time.monotonic()
        for viewer in viewers:
            viewer.start()
        for viewer in viewers:
            viewer.join()
        took = time.monotonic() - before
        assert len(heard) >= 100
        assert watched.reports <= 2 + took / SECONDS
        assert len(watched.watchers) == 1


def test_while_nobody_watches_it_looks_seldom_and_at_once_for_who_comes(watched: Watched) -> None:
    with SharedLook(watched.opened, named="people") as look:
        first = wait_for(look, lambda seen: seen.look is not None)
        time.sleep(10 * SECONDS)
        assert watched.reports == 1
        assert look.fresh(timeout=20).version > first.version
        time.sleep(4 * SECONDS)
        assert watched.reports <= 3


def test_what_is_fresh_is_not_looked_at_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "SECONDS", 5.0)
    with SharedLook(watched.opened, named="people") as look:
        wait_for(look, lambda seen: seen.look is not None)
        versions = {look.fresh().version for _ in range(100)}
        assert len(versions) == 1


def test_a_busy_manifest_leaves_the_last_look_and_says_how_old_it_is(watched: Watched) -> None:
    with SharedLook(watched.opened, named="people") as look, look.viewing():
        wait_for(look, lambda seen: seen.look is not None)
        watched.watchers[0].error = ManifestBusy("people: the manifest is locked")
        seen = wait_for(look, lambda seen: bool(seen.failure))
        assert seen.failure == "people: the manifest is locked"
        later = wait_for(look, lambda other: other.version > seen.version + 1)
        assert later.look is seen.look is not None
        assert later.at == seen.at
        watched.watchers[0].error = None
        assert wait_for(look, lambda seen: not seen.failure).at > seen.at
        assert len(watched.watchers) == 1


def test_after_an_error_that_nobody_foresaw_the_run_is_watched_anew(watched: Watched) -> None:
    with SharedLook(watched.opened, named="people") as look, look.viewing():
        wait_for(look, lambda seen: seen.look is not None)
        watched.watchers[0].error = RuntimeError("nobody foresaw this")
        assert "nobody foresaw this" in wait_for(look, lambda seen: bool(seen.failure)).failure
        assert not wait_for(look, lambda seen: not seen.failure).failure
        assert len(watched.watchers) == 2


def test_artifacts_are_read_only_for_who_sees_pictures(
    finished_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "SECONDS", SECONDS)
    with SharedLook(open_run(finished_run), named="people") as look:
        first = wait_for(look, lambda seen: seen.look is not None)
        with look.viewing(pictures=False):
            second = look.after(first.version, timeout=20)
        for seen in (first, second):
            assert seen.look is not None
            assert (len(seen.look.details.newest), seen.look.samples) == (6, ())
        with look.viewing():
            wait_for(look, lambda seen: seen.look is not None and len(seen.look.samples) == 6)


def slow_down(view: type[RunView], patch: pytest.MonkeyPatch, seconds: float) -> None:
    real = view.look

    def slow(self: RunView, *, reads_pictures: bool) -> Look:
        time.sleep(seconds)
        return real(self, reads_pictures=reads_pictures)

    patch.setattr(view, "look", slow)


def test_nobody_waits_for_a_look_at_a_large_run_beside_the_last_one(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(RunView, monkeypatch, 0.2)
    with SharedLook(watched.opened, named="people") as look, look.viewing():
        seen = wait_for(look, lambda seen: seen.look is not None)
        time.sleep(0.4)
        began = time.monotonic()
        assert look.fresh(timeout=20).version == seen.version
        assert time.monotonic() - began < 0.3


@pytest.mark.parametrize("error", [ManifestBusy("people: busy"), RuntimeError("nobody foresaw this")])
def test_looks_that_fail_take_no_more_of_the_time_than_others(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(_self: RunView, *, reads_pictures: bool) -> Look:
        del reads_pictures
        began.append(time.monotonic())
        time.sleep(SECONDS)
        raise error

    began: list[float] = []
    monkeypatch.setattr(RunView, "look", failing)
    with SharedLook(watched.opened, named="people") as look, look.viewing():
        wait_for(look, lambda seen: seen.version == 2)
    assert began[1] - began[0] >= 6 * SECONDS


def test_its_end_wakes_who_waits(watched: Watched) -> None:
    with SharedLook(watched.opened, named="people") as look:
        seen = wait_for(look, lambda seen: seen.look is not None)
        ended: list[Seen] = []
        waiting = Thread(target=lambda: ended.append(look.after(seen.version + 1000, timeout=30.0)))
        waiting.start()
    began = time.monotonic()
    assert look.after(look.seen.version - 1, timeout=30.0).is_over
    assert time.monotonic() - began < 1
    waiting.join(31)

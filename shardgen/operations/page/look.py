"""The state of a run, as its page shows it; one thread reads it for all viewers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from shardgen.coordination.base import OpenedRun, Watcher
from shardgen.coordination.report import Report
from shardgen.domain.overview import Details
from shardgen.errors import TransientError, note_of
from shardgen.operations.forecast import Forecast, read_forecast
from shardgen.operations.merged import Merged, finished_zip
from shardgen.operations.page.pictures import RECEIPTS, Album, ShownSample
from shardgen.settings.run_directory import RunDirectory

SECONDS = 2.0  # between two looks while somebody watches
SELDOM = 60.0  # while nobody does
_LAST_LOOK_SECONDS, _FAREWELL_SECONDS = 5.0, 1.0  # for how it ended, and for viewers to hear of it
_SHARE = 5  # a look takes at most a fifth of the time, however large the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a run at one instant.

    `named` is the run directory as it is typed into a shell, `finished` the zip of all that is stored, where
    one is known, `forecast` what one worker was to make. `no_pictures` says why there are none, where the
    machine cannot draw any.
    """

    named: str
    report: Report
    details: Details
    samples: tuple[ShownSample, ...] = ()
    no_pictures: str = ""
    finished: Merged | None = None
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The last look that succeeded, None before the first; `failure` says why a later one did not.

    `version` grows with every look, failed ones, too. `at` is when it was taken, by `time.monotonic`.
    """

    version: int = 0
    look: Look | None = None
    at: float = 0.0
    failure: str = ""
    is_over: bool = False

    @property
    def age(self) -> float:
        """Seconds since the look that is shown."""
        return time.monotonic() - self.at


class RunView:
    """Looks at one run with one watcher, and remembers the pictures. One thread uses it."""

    def __init__(self, opened: OpenedRun, watcher: Watcher, *, named: str) -> None:
        self._run, self._watcher, self._named = opened.run, watcher, named
        self._plan = opened.plan
        self._album = Album(opened.run.recipe(opened.plan))

    def look(self, *, reads_pictures: bool = True) -> Look:
        """Take a look; without reading, the pictures are those that are known.

        Raises TransientError when the run cannot be read just now.
        """
        report, details = self._watcher.report(), self._watcher.details(newest=RECEIPTS)
        if report.plan != self._plan:
            self._plan = report.plan
            self._album = Album(self._run.recipe(report.plan))
        album = self._album
        samples = album.newest(details.newest, self._watcher.store) if reads_pictures else album.samples
        return Look(
            named=self._named,
            report=report,
            details=details,
            samples=samples,
            no_pictures=album.remark,
            finished=finished_zip(self._run, report),
            forecast=read_forecast(self._run),
        )


def look_once(opened: OpenedRun, *, named: str) -> Look:
    """One look at a run. Raises TransientError when it cannot be read just now."""
    with opened.watching() as watcher:
        return RunView(opened, watcher, named=named).look()


class SharedLook:
    """Looks at a run from a thread of its own, for any number of viewers. Use it as a context manager.

    Artifacts are read while somebody sees pictures; with `pictures` from the first look on.
    """

    def __init__(self, opened: OpenedRun, *, named: str, pictures: bool = False) -> None:
        self._opened, self._named, self._pictures = opened, named, pictures
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._viewers = self._viewers_of_pictures = 0
        self._seen = Seen()
        self._lasts = self._began = 0.0
        self._thread = threading.Thread(target=self._keep_looking, name="page-look", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join(_LAST_LOOK_SECONDS)
        with self._changed:
            self._seen = replace(self._seen, version=self._seen.version + 1, is_over=True)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._viewers, _FAREWELL_SECONDS)

    @property
    def run(self) -> RunDirectory:
        """The run's directory here."""
        return self._opened.run

    @property
    def seen(self) -> Seen:
        """What was seen last."""
        return self._seen

    @property
    def viewers(self) -> int:
        """How many watch now."""
        return self._viewers

    @contextmanager
    def viewing(self, *, pictures: bool = True) -> Iterator[None]:
        """While this is entered somebody watches; only for whoever sees pictures are artifacts read."""
        with self._changed:
            self._viewers += 1
            self._viewers_of_pictures += pictures
        self._wake.set()
        try:
            yield
        finally:
            with self._changed:
                self._viewers -= 1
                self._viewers_of_pictures -= pictures
                self._changed.notify_all()

    def after(self, version: int, *, timeout: float) -> Seen:
        """What was seen last, as soon as it is newer than that version; after the timeout, whatever it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen.version > version or self._seen.is_over, timeout)
            return self._seen

    def fresh(self, *, timeout: float = 10.0, pictures: bool = False) -> Seen:
        """What was seen last, looked at anew if that is long ago; after the timeout, whatever it is."""
        seen = self._seen
        if seen.look is not None and not seen.failure and seen.age <= self._lasts:
            return seen
        with self.viewing(pictures=pictures):
            return self.after(seen.version, timeout=timeout)

    def _keep_looking(self) -> None:
        while not self._closing.is_set():
            self._began = time.monotonic()
            try:
                with self._opened.watching() as watcher:
                    view = RunView(self._opened, watcher, named=self._named)
                    while not self._closing.is_set():
                        self._pause(self._look(view))
                    if self._viewers:  # how it ended
                        self._look(view)
            except Exception as error:  # noqa: BLE001 - whatever it is, viewers are told, and it is tried again
                self._show_failure(error)
                self._pause(self._rest)

    @property
    def _rest(self) -> float:
        """How long to wait after what began last, whether it succeeded or not."""
        return max(SECONDS, _SHARE * (time.monotonic() - self._began))

    def _look(self, view: RunView) -> float:
        """Take a look, and return how long to wait for the next while somebody watches."""
        self._began = time.monotonic()
        try:
            look = view.look(reads_pictures=self._pictures or self._viewers_of_pictures > 0)
        except TransientError as error:
            self._show_failure(error)
            return self._rest
        ended, rest = time.monotonic(), self._rest
        self._lasts = rest + ended - self._began  # until the next one, which takes about as long
        self._show(Seen(version=self._seen.version + 1, look=look, at=ended))
        return rest

    def _show_failure(self, error: Exception) -> None:
        before = self._seen
        self._show(
            Seen(
                version=before.version + 1, look=before.look, at=before.at, failure=note_of(error) or "error"
            )
        )

    def _show(self, seen: Seen) -> None:
        with self._changed:
            if not self._seen.is_over:
                self._seen = seen
                self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        """Wait for the next look: so long while somebody watches, else long, until somebody comes."""
        self._closing.wait(seconds)
        self._wake.clear()
        if not self._viewers and not self._closing.is_set():
            self._wake.wait(SELDOM)

"""A worker's audience: is told what takes long at its start, and how far the whole run is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from shardgen.artifacts.check import OnProgress
from shardgen.coordination.base import Coordinator
from shardgen.coordination.report import make_report
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.plan import Plan
from shardgen.domain.progress import Progress
from shardgen.domain.wording import Say
from shardgen.errors import ShardgenError
from shardgen.settings.run_directory import RunDirectory

Show = Callable[[Callable[[], Progress]], None]
"""Called with what tells the progress, whenever it is to be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Where a worker shows itself.

    `doing` hears what takes long, `on_file` how many sources of how many are checked. For `show` it looks at
    the whole run every so many seconds, or as seldom as the run's backend asks for.
    """

    doing: Say
    on_file: OnProgress
    show: Show
    every_seconds: float


class Lookout:
    """Looks at the whole run now and then, in a thread for which nobody waits; a context manager."""

    def __init__(
        self,
        run: RunDirectory,
        plan: Plan,
        coordinator: Coordinator,
        audience: Audience,
        *,
        made: Callable[[], int],
    ) -> None:
        self._run, self._plan = run, plan
        self._coordinator = coordinator
        self._audience = audience
        self._made = made
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lookout", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        policy: LeasePolicy = self._run.settings.lease_policy
        wait = max(self._audience.every_seconds, self._coordinator.seconds_between_overviews(policy))
        while True:
            with suppress(ShardgenError):  # whoever works says what is wrong
                self._look()
            if self._ended.wait(wait):
                return

    def _look(self) -> None:
        found = make_report(self._run, self._plan, self._coordinator.overview()).progress
        made = self._made()  # after it, so that no sample is counted twice
        if not self._ended.is_set():
            self._audience.show(lambda: self._since(found, made))

    def _since(self, found: Progress, made: int) -> Progress:
        """What was seen, and what this worker itself has made since."""
        own = self._made()
        done = min(found.done + own - made, self._plan.samples)
        return replace(found, done=done, own=own if own < done else None)

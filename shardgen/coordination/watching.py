"""Read a run repeatedly, whatever happens to it."""

from __future__ import annotations

from typing import Self

from shardgen.artifacts.store import ArtifactReader
from shardgen.coordination.base import OpenedRun
from shardgen.coordination.open import open_directory, open_run
from shardgen.coordination.report import Report
from shardgen.domain.overview import Details
from shardgen.errors import ManifestBusy, PlanConflict


class RunWatcher:
    """A Watcher. At a report a run that was planned anew is opened anew."""

    def __init__(self, opened: OpenedRun) -> None:
        self._run = opened.run
        self._looks = opened.looks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._looks.close()

    def report(self) -> Report:
        """The state of the run, of the plan that it has now."""
        try:
            return self._looks.report()
        except PlanConflict:
            looks = open_run(open_directory(self._run.elsewhere or self._run.path)).looks()
            self._looks.close()
            self._looks = looks
            return looks.report()

    def details(self, *, newest: int) -> Details:
        """What is known beyond the last report."""
        try:
            return self._looks.details(newest=newest)
        except PlanConflict as error:
            raise ManifestBusy(
                f"{self._run.named}: its plan has changed since the last look", hint="look again"
            ) from error

    @property
    def store(self) -> ArtifactReader:
        """The reader of the artifacts that the newest receipts name."""
        return self._looks.store

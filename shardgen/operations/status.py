"""The state of a run, of a database or a shared folder; needs no network and reads no artifact."""

from __future__ import annotations

from shardgen.coordination.open import open_run
from shardgen.coordination.report import Report
from shardgen.settings.run_directory import RunDirectory


def report(run: RunDirectory) -> Report:
    """Read the state of a run. Raises InputMissing when nothing is planned."""
    return open_run(run).report()

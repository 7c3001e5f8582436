"""The state of a run, of a database or a shared folder; needs no network and reads no artifact."""

from __future__ import annotations

from dataclasses import replace

from shardgen.coordination.report import Report, make_report
from shardgen.settings.run_directory import RunDirectory


def report(run: RunDirectory) -> Report:
    """Read the state of a run. Raises InputMissing when nothing is planned."""
    plan = run.plan()
    if run.is_shared_folder:
        from shardgen.coordination.folder.status import oversee  # noqa: PLC0415 - numpy and more, which no other status needs

        overview, news = oversee(run, plan)
        return replace(make_report(run, plan, overview), folder=news)
    with run.manifest(plan, read_only=True) as manifest:
        return make_report(run, plan, manifest.overview())

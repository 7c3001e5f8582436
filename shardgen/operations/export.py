"""Export a finished zip, or a run directory as it is, into a folder that training tools read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from shardgen.coordination.artifact_folder import open_store
from shardgen.dataset.export.driver import (
    ExportRequest,
    ExportResult,
    OnProgress,
    export,
    ignore_progress,
)
from shardgen.dataset.export.sources import RunSource, ZipSource
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import PlanConflict
from shardgen.operations.merge import recorded_inputs
from shardgen.settings.run_directory import RunDirectory


def export_zip(
    path: Path,
    out: Path,
    request: ExportRequest,
    *,
    on_progress: OnProgress = ignore_progress,
    on_step: OnStep = ignore_step,
) -> ExportResult:
    """Export a zip that `merge` has written; errors as `dataset.export.driver.export`."""
    with ZipSource(path) as source:
        return export(source, out, request, on_progress=on_progress, on_step=on_step)


def export_run(  # noqa: PLR0913 - what the command has options for, and who watches
    run: RunDirectory,
    out: Path,
    request: ExportRequest,
    *,
    allow_dead_letters: bool = False,
    exclude: Collection[str] = (),
    partial: bool = False,
    on_progress: OnProgress = ignore_progress,
    on_step: OnStep = ignore_step,
) -> ExportResult:
    """Export what a run has recorded, artifact by artifact, without the zip that a merge would write.

    The options are those of a merge, and so are the errors, beside those of `dataset.export.driver.export`.
    """
    store = open_store(run)
    if store.contains(out):
        raise PlanConflict(
            f"{out}: lies in the run's artifact folder ({store.shown})",
            hint="choose a folder outside it",
        )
    with recorded_inputs(
        run, allow_dead_letters=allow_dead_letters, exclude=exclude, partial=partial
    ) as inputs:
        return export(RunSource(inputs), out, request, on_progress=on_progress, on_step=on_step)

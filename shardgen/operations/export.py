"""Export a finished zip, or a run directory as it is, into a folder that training tools read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from shardgen.dataset.export.driver import Export, ExportRequest, ExportResult, OnProgress, export
from shardgen.dataset.export.sources import RunSource, SampleSource, ZipSource
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.operations.merge import recorded_inputs
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import DiskFiles


def _ignore(_done: int, _planned: int | None, _there: int) -> None:
    pass


def export_zip(
    path: Path,
    out: Path,
    request: ExportRequest,
    *,
    on_progress: OnProgress = _ignore,
    on_step: OnStep = ignore_step,
) -> ExportResult:
    """Export a zip that `merge` has written; errors as `dataset.export.driver.export`."""
    with ZipSource(path) as source:
        return _export(source, out, request, on_progress, on_step)


def export_run(  # noqa: PLR0913 - what the command has options for, and who watches
    run: RunDirectory,
    out: Path,
    request: ExportRequest,
    *,
    allow_dead_letters: bool = False,
    exclude: Collection[str] = (),
    partial: bool = False,
    on_progress: OnProgress = _ignore,
    on_step: OnStep = ignore_step,
) -> ExportResult:
    """Export what a run has recorded, artifact by artifact, without the zip that a merge would write.

    The options are those of a merge, and so are the errors, beside those of `dataset.export.driver.export`.
    """
    with recorded_inputs(
        run, allow_dead_letters=allow_dead_letters, exclude=exclude, partial=partial
    ) as inputs:
        return _export(RunSource(inputs), out, request, on_progress, on_step)


def _export(
    source: SampleSource, out: Path, request: ExportRequest, on_progress: OnProgress, on_step: OnStep
) -> ExportResult:
    return export(
        Export(
            source=source,
            out=out,
            request=request,
            files=DiskFiles(),
            on_progress=on_progress,
            on_step=on_step,
        )
    )

"""Export a finished zip, or a run directory as it is, into a folder that training tools read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from shardgen.coordination.artifact_folder import open_store
from shardgen.dataset.export.driver import (
    FORMATS,
    SHARD_SIZE,
    ExportRequest,
    ExportResult,
    OnProgress,
    export,
    ignore_progress,
)
from shardgen.dataset.export.sources import RunSource, ZipSource
from shardgen.dataset.export.splits import Split
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import PlanConflict, WrongOption, choose
from shardgen.operations.merge import recorded_inputs
from shardgen.settings.run_directory import RunDirectory


def export_request(
    name: str,
    *,
    shard_size: int | None = None,
    split: Sequence[int] | None = None,
    split_by: str | None = None,
    split_seed: int = 0,
) -> ExportRequest:
    """What is asked for, in the format of this name; `split` are proportions. Raises WrongOption."""
    name = choose(name, FORMATS, option="format")
    if shard_size is not None and not FORMATS[name].has_shards:
        raise WrongOption("shard_size", f"{name} has no shards")
    if split is None:
        if split_by is not None or split_seed:
            raise WrongOption("split_seed" if split_by is None else "split_by", "needs --split")
        return ExportRequest(format=name, shard_size=shard_size or SHARD_SIZE)
    try:
        wanted = Split(parts=tuple(split), by=split_by or "", seed=split_seed)
    except ValueError as error:
        shown = ",".join(map(str, split))
        raise WrongOption("split", f"{shown!r} is not {error}, as in 800,100,100") from error
    return ExportRequest(format=name, shard_size=shard_size or SHARD_SIZE, split=wanted)


def export_subject(  # noqa: PLR0913 - what the command has options for, and who watches
    subject: RunDirectory | Path,
    out: Path,
    request: ExportRequest,
    *,
    allow_dead_letters: bool = False,
    exclude: Collection[str] = (),
    partial: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ExportResult:
    """Export a run directory, or a zip that `merge` has written, which is what it is.

    Errors as `export_run`; raises WrongOption for what would choose samples of a zip.
    """
    if not isinstance(subject, Path):
        return export_run(
            subject,
            out,
            request,
            allow_dead_letters=allow_dead_letters,
            exclude=exclude,
            partial=partial,
            on_progress=on_progress,
        )
    chosen = {"exclude": exclude, "partial": partial, "allow_dead_letters": allow_dead_letters}
    for option, is_given in chosen.items():
        if is_given:
            raise WrongOption(option, "needs a run directory; a zip is exported whole")
    with ZipSource(subject) as source:
        return export(source, out, request, on_progress=on_progress)


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

"""The whole job as functions, for Python: `shardgen` has them under its own name.

They do what the commands do, and print nothing: how far they are they tell `on_progress`, and what happens
they log.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Literal

from shardgen.coordination.open import open_directory
from shardgen.coordination.report import Report
from shardgen.dataset.export.driver import ExportResult
from shardgen.dataset.merge import MergeResult
from shardgen.dataset.verify import Verification
from shardgen.domain.progress import BYTES, MAKING, STARTING, OnProgress, Progress, counter
from shardgen.domain.remarks import Remark
from shardgen.domain.wording import counted
from shardgen.errors import MAX_DRAWN, Stopped, WrongOption, explained, refuse_number
from shardgen.launch.supervisor import RunOptions
from shardgen.operations.export import export_request, export_subject
from shardgen.operations.extend import unplanned
from shardgen.operations.forecast import make_forecast
from shardgen.operations.init import initialise, shared_place
from shardgen.operations.merge import merge_run
from shardgen.operations.plan import Planned, make_plan
from shardgen.operations.preview import PreviewEvents, PreviewRequest, draw_preview
from shardgen.operations.run import Crew, RunResult, make_here, ready_to_make
from shardgen.operations.status import report
from shardgen.operations.verify import check, open_subject, put_back, what_is_wrong
from shardgen.recipes.base import DeviceChoice, Folders, PlanEvents
from shardgen.recipes.registry import DEFAULT_PRESET
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import toml_value

_Path = str | os.PathLike[str]
_SHOWN = 5  # names of photographs
_log = logging.getLogger("shardgen")


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOutResult:
    """What became of a folder's photographs, by their names in it.

    `written` have a new mask, `kept` have a mask or an alpha channel already. `warnings` are about masks that
    need a look, and photographs without a subject, which get no mask; `left_out` about files that cannot be
    used. `sheet` is None where there was nothing to draw.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    warnings: tuple[Remark, ...]
    left_out: tuple[Remark, ...]
    sheet: Path | None

    def __repr__(self) -> str:
        """One line, as a notebook shows it."""
        done = f"{counted(len(self.written), 'mask')} written, {counted(len(self.kept), 'photograph')} kept"
        doubtful, left_out = (
            sum(len(one.names) for one in remarks) for remarks in (self.warnings, self.left_out)
        )
        return f"<CutOutResult: {done}, {doubtful} to look at, {counted(left_out, 'file')} left out>"


def cut_out(
    folder: _Path,
    *,
    sheet: _Path | None = None,
    overwrite: bool = False,
    model: _Path | None = None,
    on_progress: OnProgress | None = None,
) -> CutOutResult:
    """Write `NAME.mask.png` beside each photograph that has neither an alpha channel nor a mask file.

    `folder` may also be one photograph, whose mask is then made again. `sheet` is a PNG that shows the
    photographs beside their cut-outs. `overwrite` makes shardgen's own masks again; yours are never replaced.
    `model` is an ONNX file of the U²-Net family, instead of the small one that is fetched once. The same call
    goes on after a stop.

    Files that cannot be used raise nothing: `left_out` has them, and all others are done.

    Raises InputMissing where there are no photographs, WeightsRefused, DownloadFailed; SourcesRefused for one
    photograph by name whose mask is yours; PlanConflict or InvalidSettings for a sheet among the photographs,
    in the place of another file, or of another name than `*.png`.
    """
    with explained(_named(folder)):
        from shardgen.operations import cut_out as making  # noqa: PLC0415 - loads the image libraries

        on_file = _one_more(on_progress, "cutting out", "photograph")
        done = making.cut_out_photographs(
            making.CutOutRequest(
                path=Path(folder), model=_path(model), overwrite=overwrite, sheet=_path(sheet)
            ),
            events=making.CutOutEvents(
                on_file=lambda _name, of: on_file(of),
                on_download=_counter(on_progress, "fetching the weights", BYTES),
            ),
        )
        is_drawn = sheet is not None and making.draw_sheet(done, Path(sheet)) > 0
        unchanged = (making.Kind.EARLIER, making.Kind.THEIRS, making.Kind.ALPHA)
        return CutOutResult(
            written=tuple(one.name for one in done.outcomes if one.kind is making.Kind.WRITTEN),
            kept=tuple(one.name for one in done.outcomes if one.kind in unchanged),
            warnings=tuple(making.warnings(done)),
            left_out=done.problems,
            sheet=_path(sheet) if is_drawn else None,
        )


def init(  # noqa: PLR0913 - what the command has options for
    run_dir: _Path,
    *,
    preset: str | None = None,
    foregrounds: _Path | None = None,
    backgrounds: _Path | None = None,
    pictures: _Path | None = None,
    weights: _Path | None = None,
    set: Mapping[str, object] | None = None,  # noqa: A002 - the option's name
    bucket: str | None = None,
    shared_folder: bool = False,
) -> Path:
    """Write a commented `shardgen.toml` into a new run directory, and return its path.

    `preset` says what to make (docs/recipes.md lists them); `weights` is nyu, kitti, small or a file. `set`
    are other values than the preset's, by the names of the settings: `{"compose.grid": [3, 2]}`. Several
    machines may share `bucket`, a url, or with `shared_folder` the run directory itself, as it is on Google
    Drive anyway.

    Raises InputMissing for folders and weights that are not there, InvalidSettings for settings and values
    that the preset does not have, PlanConflict when there are settings already.
    """
    with explained(_named(run_dir)):
        return initialise(
            Path(run_dir),
            _folders(foregrounds, backgrounds, pictures),
            preset=DEFAULT_PRESET if preset is None else preset,
            weights=None if weights is None else os.fspath(weights),
            shared=shared_place(_named(run_dir), bucket=bucket, shared_folder=shared_folder),
            changes={name: toml_value(value) for name, value in (set or {}).items()},
        )


def plan(  # noqa: PLR0913
    run_dir: _Path,
    *,
    calibrate: bool = False,
    foregrounds: _Path | None = None,
    backgrounds: _Path | None = None,
    pictures: _Path | None = None,
    on_progress: OnProgress | None = None,
) -> Planned:
    """Check every photograph, write the plan and make its manifest; twice is harmless.

    With `calibrate` the result has a `forecast`, measured on this machine. Until the first sample is stored,
    changed settings and photographs make a plan that takes the place of the one here; `changes` says how.

    Raises SourcesRefused with all problems at once, PlanConflict when the plan here stays and is another, and
    DownloadFailed where weights cannot be fetched.
    """
    folders = _folders(foregrounds, backgrounds, pictures)
    with explained(_named(run_dir)):
        directory = open_directory(_named(run_dir))
        planned = make_plan(directory, folders, events=_plan_events(on_progress))
        if not calibrate:
            return planned
        on_made = _one_more(on_progress, "calibrating", "sample")
        forecast = make_forecast(
            directory.planned(planned.plan),
            folders,
            say=_log.info,
            on_made=lambda _samples: on_made(None),
        )
        return replace(planned, forecast=forecast)


def preview(  # noqa: PLR0913
    run_dir: _Path,
    *,
    samples: int = 20,
    all_foregrounds: bool = False,
    output: _Path | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    foregrounds: _Path | None = None,
    backgrounds: _Path | None = None,
    pictures: _Path | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Draw a contact sheet of samples from the whole run, a PNG, and return its path.

    Works before `plan`, too. `all_foregrounds` shows each foreground once, however many samples that
    takes. Without `output` it is `preview.png` in the run directory.
    """
    refuse_number("samples", samples, at_most=MAX_DRAWN)
    with explained(_named(run_dir)):
        return draw_preview(
            open_directory(_named(run_dir)),
            PreviewRequest(
                samples=samples,
                every="foregrounds" if all_foregrounds else "",
                folders=_folders(foregrounds, backgrounds, pictures),
                output=_path(output),
            ),
            choice=DeviceChoice.from_environment(device),
            say=_log.info,
            events=PreviewEvents(
                plan=_plan_events(on_progress),
                doing=_doing(on_progress),
                on_sample=_counter(on_progress, MAKING, "sample"),
            ),
        )


def run(  # noqa: PLR0913
    run_dir: _Path,
    *,
    workers: int | None = None,
    gpus: Sequence[int | str] = (),
    output: _Path | None = None,
    allow_dead_letters: bool = False,
    limit: int | None = None,
    deadline: timedelta | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    foregrounds: _Path | None = None,
    backgrounds: _Path | None = None,
    pictures: _Path | None = None,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Plan if needed, make everything on this machine, merge; after any stop it goes on where it was.

    `workers` are processes of their own, one a GPU or one on the CPU unless said otherwise; `gpus` are
    numbers or UUIDs. With `limit` (samples stored in the whole run) or `deadline` (from now on) it may stop
    early; then `merged` is None. Without `output` the zip is `dataset.zip` in the run directory.

    Ctrl-C, a notebook's stop button and SIGTERM let the workers finish what they have in hand, half a minute
    at most; then the signal has its usual effect, such as KeyboardInterrupt. An exception that `on_progress`
    raises stops the workers in the same way: so another thread can stop this one.

    Raises RunIncomplete when samples stay pending until a person does something, RunHasHoles for dead letters
    unless `allow_dead_letters`, and what `plan` and `merge` raise.
    """
    if deadline is not None and not isinstance(deadline, timedelta):
        raise WrongOption("deadline", f"{deadline!r} is not a timedelta, such as timedelta(hours=11)")
    ends_at = math.inf if deadline is None else time.monotonic() + deadline.total_seconds()
    _refuse_no_list("gpus", gpus, such_as="[0, 2]")
    if limit is not None:
        refuse_number("limit", limit)
    folders = _folders(foregrounds, backgrounds, pictures)
    with explained(_named(run_dir)):
        directory = open_directory(_named(run_dir))
        crew = Crew.choose(workers=workers, device=device, gpus=tuple(map(str, gpus)))
        if directory.current_plan is None:
            planned = make_plan(directory, folders, events=_plan_events(on_progress))
            directory = directory.planned(planned.plan)
        _warn_of_unplanned(directory, folders)
        opened = ready_to_make(directory, _path(output))
        found, options = opened.report(), RunOptions(limit=limit, deadline=ends_at)
        stop = None
        if found.pending and not options.is_enough(found):
            try:
                found = make_here(
                    opened,
                    crew,
                    options,
                    folders=folders,
                    say=_log.info,
                    on_look=_making(on_progress, since=found),
                )
            except Stopped as stopped:
                stop = stopped
        if stop is not None:  # no longer handled here: its traceback would hide the KeyboardInterrupt's
            signal.raise_signal(stop.number)
            raise stop
        merged = None
        if not found.pending:
            merged = merge_run(
                directory,
                _path(output),
                allow_dead_letters=allow_dead_letters,
                on_progress=_counter(on_progress, "merging", "sample"),
            )
        return RunResult(report=found, merged=merged)


def status(run_dir: _Path) -> Report:
    """What is stored and pending, who works, and how long it will take; only reads.

    Raises InputMissing when nothing is planned.
    """
    with explained(_named(run_dir)):
        return report(open_directory(_named(run_dir)))


def merge(  # noqa: PLR0913
    run_dir: _Path,
    *,
    output: _Path | None = None,
    exclude: str | Collection[str] = (),
    partial: bool = False,
    allow_dead_letters: bool = False,
    on_progress: OnProgress | None = None,
) -> MergeResult:
    """Make the zip of what is stored: with labels, statistics and a contact sheet.

    `exclude` leaves out every sample made of these photographs (`foregrounds/anna.png`), `partial` those that
    are pending. The same run gives the same bytes every time.

    Raises RunIncomplete while samples are pending, unless `partial`; RunHasHoles for dead letters unless
    `allow_dead_letters`; PlanConflict when another data set lies there; ArtifactMissing or ArtifactCorrupt.
    """
    _refuse_no_list("exclude", exclude, such_as='["foregrounds/anna.png"]')
    with explained(_named(run_dir)):
        directory = open_directory(_named(run_dir))
        _warn_of_unplanned(directory, {})
        return merge_run(
            directory,
            _path(output),
            allow_dead_letters=allow_dead_letters,
            exclude=_names(exclude),
            partial=partial,
            on_progress=_counter(on_progress, "merging", "sample"),
        )


def verify(
    subject: _Path,
    *,
    requeue: bool = False,
    quick: bool = False,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Read every byte of a run directory, or of a finished zip, again; return what was read.

    With `requeue` the bad batches of a run are put back to be made again, before their error is raised.
    `quick` decodes no image of a zip.

    Raises ArtifactCorrupt when something is wrong, or ManifestCorrupt if it is the manifest alone; `problems`
    lists it all.
    """
    with explained(_named(subject)):
        opened, requeued = open_subject(_named(subject)), None
        if requeue and isinstance(opened, Path):
            raise WrongOption("requeue", "needs a run directory: a zip has no manifest")
        found = check(opened, quick=quick, on_progress=_counter(on_progress, "verifying", "sample"))
        if requeue and not isinstance(opened, Path) and not found.is_damaged:
            requeued = put_back(opened, found.bad_batches)
        if (error := what_is_wrong(_named(subject), found, requeued)) is not None:
            error.problems = tuple(f"{one.subject}: {one.fact}" for one in found.findings)
            raise error
        return found


def export(  # noqa: PLR0913
    subject: _Path,
    out: _Path,
    *,
    format: Literal["webdataset", "parquet", "coco", "files"],  # noqa: A002 - the option's name
    shard_size: int | None = None,
    split: Sequence[int] | None = None,
    split_by: Literal["foregrounds", "backgrounds", "both", "pictures"] | None = None,
    split_seed: int = 0,
    exclude: str | Collection[str] = (),
    partial: bool = False,
    allow_dead_letters: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportResult:
    """Write a run directory, or a finished zip, into a folder that training tools read.

    `shard_size` is in samples a file. `split` are the proportions of train, validation and test, such as
    `(800, 100, 100)`; no photograph is in two of them. The rest is as for `merge`, and for a run directory
    only. The same call goes on after a stop.

    Raises what `merge` raises, and PlanConflict when something else lies in the folder.
    """
    if shard_size is not None:
        refuse_number("shard_size", shard_size)
    _refuse_no_list("split", () if split is None else split, such_as="(800, 100, 100)")
    _refuse_no_list("exclude", exclude, such_as='["foregrounds/anna.png"]')
    show = _counter(on_progress, "exporting", "sample")
    with explained(_named(subject)):
        request = export_request(
            format, shard_size=shard_size, split=split, split_by=split_by, split_seed=split_seed
        )
        return export_subject(
            open_subject(_named(subject)),
            Path(out),
            request,
            allow_dead_letters=allow_dead_letters,
            exclude=_names(exclude),
            partial=partial,
            on_progress=lambda done, planned, _there: show(done, planned),
        )


def _nobody(_progress: Progress) -> None:
    """Hears of nothing."""


def _named(path: _Path) -> str:
    return os.fspath(path)


def _path(path: _Path | None) -> Path | None:
    return None if path is None else Path(path)


def _names(names: str | Collection[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)  # a text is a collection, of letters


def _folders(foregrounds: _Path | None, backgrounds: _Path | None, pictures: _Path | None) -> Folders:
    given = {"foregrounds": foregrounds, "backgrounds": backgrounds, "pictures": pictures}
    return {name: Path(path) for name, path in given.items() if path is not None}


def _counter(on_progress: OnProgress | None, doing: str, thing: str) -> Callable[[int, int | None], None]:
    return counter(on_progress or _nobody, doing, thing)


def _one_more(on_progress: OnProgress | None, doing: str, thing: str) -> Callable[[int | None], None]:
    """Call what is returned for each thing that is done, from any thread, with how many there are."""
    done, lock, show = count(1), Lock(), _counter(on_progress, doing, thing)

    def on_one(total: int | None) -> None:
        with lock:  # a caller's function is not called twice at once
            show(next(done), total)

    return on_one


def _doing(on_progress: OnProgress | None) -> Callable[[str], None]:
    """Call what is returned with what takes long and cannot be counted."""

    def on_doing(what: str) -> None:
        _log.info(what)
        (on_progress or _nobody)(Progress(done=0, total=None, doing=what))

    return on_doing


def _making(on_progress: OnProgress | None, *, since: Report) -> Callable[[Report], None]:
    """Call what is returned with each look at a run."""
    doing = STARTING

    def on_look(found: Report) -> None:
        nonlocal doing
        if found.is_under_way(since=since):
            doing = MAKING
        (on_progress or _nobody)(replace(found.progress, doing=doing))

    return on_look


def _plan_events(on_progress: OnProgress | None) -> PlanEvents:
    on_file = _one_more(on_progress, "reading the sources", "file")
    return PlanEvents(
        doing=_log.info,
        on_file=lambda _name, of: on_file(of),
        on_download=_counter(on_progress, "fetching the weights", BYTES),
    )


def _warn_of_unplanned(run: RunDirectory, folders: Folders) -> None:
    for remark in unplanned(run, run.plan(), folders):
        names = ", ".join(remark.names[:_SHOWN]) + (", …" if remark.names[_SHOWN:] else "")
        _log.warning("%s: %s: %s (%s)", remark.folder, remark.reason, names, remark.hint)


def _refuse_no_list(option: str, value: object, *, such_as: str) -> None:
    """A text, as the command line takes it, would be taken apart into its letters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise WrongOption(option, f"{value!r} is not a list, such as {such_as}")

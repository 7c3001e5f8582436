"""`shardgen run`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.extend import warn_of_unplanned
from shardgen.cli.merge import merge_with_progress, show_merged
from shardgen.cli.options import (
    HERE,
    AllowDeadLetters,
    Backgrounds,
    Device,
    Foregrounds,
    Json,
    Output,
    Pictures,
    RunDir,
    Serve,
    given_folders,
    parse_duration,
    parse_gpus,
)
from shardgen.cli.plan import make_plan_with_progress, plan_view
from shardgen.cli.progress import Line, doing, opening
from shardgen.domain.progress import STARTING
from shardgen.domain.wording import counted, typed
from shardgen.errors import MAX_WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardgen.coordination.base import OpenedRun
    from shardgen.coordination.report import Report
    from shardgen.dataset.merge import MergeResult
    from shardgen.settings.run_directory import RunDirectory


def run(
    *,
    run_dir: RunDir = HERE,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            max=MAX_WORKERS,
            help="Worker processes; on a CPU they share the cores.",
            show_default="one per GPU, else 1",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="0,2",
            help="GPUs for the workers, by nvidia-smi number or UUID; name one twice to share it.",
            show_default="all, or $CUDA_VISIBLE_DEVICES",
        ),
    ] = None,
    output: Output = None,
    allow_dead_letters: AllowDeadLetters = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="Stop when the run has N stored samples, and merge only if everything is made. "
            "Samples of all workers and earlier commands count; batches are completed.",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="11h",
            help="Stop this long after the start (for example 11h), and merge only if everything is made. "
            "Finishes the current batches first.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
    serve: Serve = None,
    json: Json = False,
) -> None:
    """Plan if needed, make everything on this machine, merge.

    If anything stops it, run it again: it continues where it stopped, with --limit to the same point.
    Restarts dead workers, waiting longer each time. Starts one worker per GPU, or one on the CPU, where
    --workers 2 splits the cores. A closed terminal stops it like Ctrl-C; put `nohup` in front to keep it
    running.

    \b
    Example:
      shardgen run people -o people.zip
      shardgen run people --gpus 0,2
      shardgen run people --limit 1000
    """
    ends_at = time.monotonic() + (math.inf if deadline is None else parse_duration(deadline))
    chosen_gpus = () if gpus is None else parse_gpus(gpus)
    given = given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures)
    with opening():
        from shardgen.cli.serving import serving
        from shardgen.coordination.open import open_directory
        from shardgen.launch.supervisor import RunOptions
        from shardgen.operations.run import Crew, make_here

        directory = open_directory(run_dir)
        crew = Crew.choose(workers=workers, device=device, gpus=chosen_gpus)
    opened = plan_and_open(directory, given, output, shows_plan=not json)
    with serving(opened, serve):
        options = RunOptions(limit=limit, deadline=ends_at)
        found = opened.report()
        if found.pending and options.is_enough(found):
            render.say(
                f"nothing to do: the run has {counted(found.stored, 'stored sample')}, --limit is {limit:,}"
            )
        elif found.pending:
            with doing(STARTING, keeps_last=True) as line:
                found = make_here(
                    opened, crew, options, folders=given, say=render.say, on_look=showing(line, since=found)
                )
        merged = finish(opened, found, output, allow_dead_letters=allow_dead_letters)
    if json:
        from shardgen.cli.documents import RunDocument, answer

        answer(RunDocument.of(found, run_dir=run_dir, merged=merged))
    elif merged is not None:
        show_merged(merged)


def plan_and_open(
    directory: RunDirectory, given: dict[str, Path], output: Path | None, *, shows_plan: bool = True
) -> OpenedRun:
    """Plan if nothing is planned, and refuse before hours of work what would fail after them."""
    if directory.current_plan is None:
        planned = make_plan_with_progress(directory, given, shows_unwritten=shows_plan)
        directory = directory.planned(planned.plan)
        if shows_plan:
            render.stdout().print(plan_view(planned, None))
    with opening():
        from shardgen.operations.run import ready_to_make

        warn_of_unplanned(directory, directory.plan(), given)
        return ready_to_make(directory, output)


def finish(
    opened: OpenedRun, found: Report, output: Path | None, *, allow_dead_letters: bool
) -> MergeResult | None:
    """Say what is still pending, or merge."""
    from shardgen.cli.status_view import mixture_lines

    for line in mixture_lines(found):
        render.say(line)
    if found.pending:
        render.say(
            f"not merged: {counted(found.stored, 'sample')} stored, {found.pending:,} of "
            f"{opened.plan.samples:,} pending; a data set of what is stored: "
            f"shardgen merge {typed(opened.run.named)} --partial"
        )
        return None
    return merge_with_progress(opened.run, output, allow_dead_letters=allow_dead_letters)


def showing(line: Line, *, since: Report) -> Callable[[Report], None]:
    """Call what is returned with each look at a run: it shows how far that is, once a worker is ready."""

    def show(found: Report) -> None:
        if found.is_under_way(since=since) or line.shows_progress:
            line.show(found.progress)

    return show

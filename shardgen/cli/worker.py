"""`shardgen worker`."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli.logs import keep_log, show_logs
from shardgen.cli.options import (
    HERE,
    Backgrounds,
    Device,
    Foregrounds,
    Pictures,
    RunDir,
    given_folders,
    parse_duration,
)
from shardgen.cli.progress import Line, Way, doing
from shardgen.cli.render import say
from shardgen.domain.wording import typed
from shardgen.worker.stop import PARENT_VARIABLE

if TYPE_CHECKING:
    from shardgen.worker.audience import Audience

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0


def worker(
    *,
    run_dir: RunDir = HERE,
    shard: Annotated[
        int | None,
        typer.Option("--shard", metavar="N", min=0, help="Only slices of this shard.", show_default=False),
    ] = None,
    max_batches: Annotated[
        int | None,
        typer.Option("--max-batches", metavar="N", min=1, help="Stop after N batches.", show_default=False),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="11h",
            help="Stop after this long (for example 11h). Finishes the current batch first.",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            help="Time to finish after Ctrl-C, SIGTERM or a closed terminal.",
        ),
    ] = 25.0,
    device: Device = "auto",
    name: Annotated[
        str | None,
        typer.Option("--id", metavar="NAME", help="The worker's name in `status`.", show_default="host-pid"),
    ] = None,
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
) -> None:
    """Make samples of the planned run until nothing is left.

    Start as many as you like, on any machine that reaches the manifest and the artifacts; they may come and
    go at any time. Ctrl-C, SIGTERM or a closed terminal: finishes the current batch and gives the slice back;
    a second one stops at once. `nohup shardgen worker people &` outlives its terminal. A killed worker loses
    at most three batches of work and nothing that is stored.

    \b
    Example:
      shardgen worker people --deadline 11h
    """
    show_logs(prefix=f"[{name}] " if name else "")
    deadline_seconds = None if deadline is None else parse_duration(deadline)
    is_alone = PARENT_VARIABLE not in os.environ  # else `run` shows the progress of its workers
    with doing("opening the run", is_printed=False) if is_alone else nullcontext() as line:
        from shardgen.coordination.open import open_directory
        from shardgen.domain.identifiers import ShardIndex
        from shardgen.errors import RunIncomplete
        from shardgen.machine.processes import new_identity
        from shardgen.recipes.base import DeviceChoice
        from shardgen.storage.log_file import flush_logs
        from shardgen.worker.worker import Ending, WorkerLimits, WorkerOptions, work

        identity = new_identity(name)
        options = WorkerOptions(
            identity=identity,
            folders=given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures),
            device=DeviceChoice.from_environment(device),
            limits=WorkerLimits(
                shard=None if shard is None else ShardIndex(shard),
                max_batches=max_batches,
                deadline_seconds=deadline_seconds,
                grace_seconds=grace,
            ),
            audience=None if line is None else _audience(line),
        )
        run = open_directory(run_dir)
        run.plan()  # before a log is made: without a plan nothing lies beside it
        log = keep_log(run, identity)
        if log is not None and not is_alone:
            say(f"log: {log.path}")  # `run` names it where that is of use

        def end_process(code: int) -> None:
            if line is not None:
                line.close()
            flush_logs()
            os._exit(code)

        outcome = work(run, options, end_process=end_process)
    planned = run.plan().samples
    left = planned - outcome.overview.stored - outcome.overview.dead
    made = f"made {outcome.samples_done:,} samples; {left:,} of {planned:,} are pending"
    _LOG.info(made)
    match outcome.ending:
        case Ending.FINISHED:
            code = 0
        case Ending.LIMIT:
            if is_alone:  # `run` says itself what to type
                _LOG.info("the limit is reached; to continue: shardgen worker %s", typed(run_dir))
            code = 0
        case Ending.BLOCKED:
            raise RunIncomplete(
                f"{left:,} samples are pending in {outcome.overview.blocked_total} blocked slices",
                hint="shardgen status RUN_DIR says why; then shardgen requeue RUN_DIR --blocked",
            )
        case Ending.STOPPED:
            code = 128 + (outcome.signal_number or 15)
    # TensorFlow's threads may still be running: end without waiting for them, everything is durable.
    sys.stdout.flush()
    sys.stderr.flush()
    flush_logs()
    os._exit(code)


def _audience(line: Line) -> Audience:
    """Who looks at this line; where lines are printed seldom, the run is looked at seldom."""
    from shardgen.worker.audience import Audience

    return Audience(
        doing=line.doing,
        on_file=line.counter("checking the sources", "file"),
        show=line.show,
        every_seconds=Way.PRINTED.value / 2 if line.way is Way.PRINTED else _LOOK_SECONDS,
    )

"""`shardgen requeue`."""

from __future__ import annotations

from typing import Annotated

import typer

from shardgen.cli.options import HERE, RunDir
from shardgen.cli.render import echo, say
from shardgen.domain.wording import counted, typed


def requeue(
    *,
    run_dir: RunDir = HERE,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", metavar="N", help="A batch number; repeat for more.")
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Every batch with a dead letter.")
    ] = False,
    blocked: Annotated[bool, typer.Option("--blocked", help="Every blocked slice.")] = False,
) -> None:
    """Put batches back to be made again.

    Refuses while a worker holds one of their slices. The old artifacts stay on disk but no longer count.

    \b
    Example:
      shardgen requeue people --batch 17 --batch 18
      shardgen requeue people --dead-letters
    """
    from shardgen.coordination.open import open_directory
    from shardgen.domain.identifiers import BatchIndex
    from shardgen.operations.requeue import RequeueChoice, requeue

    if sum((bool(batch), dead_letters, blocked)) != 1:
        raise typer.BadParameter("choose one: --batch N, --dead-letters or --blocked")
    batches = tuple(BatchIndex(number) for number in batch or ())
    choice = RequeueChoice(batches=batches, dead_letters=dead_letters, blocked=blocked)
    done = requeue(open_directory(run_dir), choice)
    if done.batches:
        echo(f"requeued {counted(len(done.batches), 'batch')}, {counted(done.samples, 'sample')}")
    elif done.unblocked_slices:
        echo(f"opened {counted(done.unblocked_slices, 'blocked slice')}")
    elif batch:
        echo("nothing to requeue: these batches are not made yet, so they are already pending")
    else:
        echo("nothing to requeue: there are no " + ("dead letters" if dead_letters else "blocked slices"))
    if not (done.batches or done.unblocked_slices):
        return
    say(f"to make them: shardgen run {typed(run_dir)}")

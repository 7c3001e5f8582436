"""`shardgen requeue`."""

from __future__ import annotations

from typing import Annotated

import typer

from shardgen.cli.options import HERE, RunDir
from shardgen.cli.render import say

HELP = """Put batches back to be made again.

Refused while a worker holds one of their slices. The old artifacts stay on disk and count no more.

\b
Example:
  shardgen requeue people --batch 17 --batch 18
  shardgen requeue people --dead-letters
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("requeue", help=HELP)(requeue)


def requeue(
    *,
    run_dir: RunDir = HERE,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", metavar="N", help="A batch's number; may be repeated.")
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Every batch that has a dead letter.")
    ] = False,
    blocked: Annotated[bool, typer.Option("--blocked", help="Every blocked slice.")] = False,
) -> None:
    """Call the verb."""
    from shardgen.artifacts.store import ArtifactStore
    from shardgen.domain.identifiers import BatchIndex
    from shardgen.recognising import refuse_other_folder
    from shardgen.requeueing import requeue_batches, requeue_blocked, requeue_dead_letters
    from shardgen.rundir import RunDirectory

    if sum((bool(batch), dead_letters, blocked)) != 1:
        raise typer.BadParameter("say which: --batch N, --dead-letters or --blocked (one of them)")
    run = RunDirectory.open(run_dir)
    plan = run.plan()
    store = ArtifactStore(run.artifacts)
    with run.manifest(plan) as manifest:
        if not blocked:
            refuse_other_folder(store, manifest)  # marks must lie where a rebuild will look for them
        if blocked:
            done = requeue_blocked(manifest)
        elif dead_letters:
            done = requeue_dead_letters(plan, manifest, store)
        else:
            done = requeue_batches(plan, manifest, store, [BatchIndex(number) for number in batch or ()])
    if done.batches:
        typer.echo(f"requeued {len(done.batches)} batches, {done.samples} samples")
    elif done.unblocked_slices:
        typer.echo(f"opened {done.unblocked_slices} blocked slices")
    else:
        typer.echo("nothing to requeue")
        return
    say(f"to make them: shardgen worker {run_dir}")

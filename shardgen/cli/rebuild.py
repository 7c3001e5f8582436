"""`shardgen rebuild`."""

from __future__ import annotations

from shardgen.cli import render
from shardgen.cli.options import HERE, RunDir
from shardgen.cli.progress import counting
from shardgen.domain.wording import typed


def rebuild(*, run_dir: RunDir = HERE) -> None:
    """Rebuild a lost manifest from plan.json and the artifacts.

    Reads every artifact, keeps those that are whole, and remembers every requeue. Batches in progress when
    the manifest was lost are made again; the texts of dead letters are lost. Refuses while there is a
    manifest.

    \b
    Example:
      shardgen rebuild people
    """
    from shardgen.coordination.open import open_directory
    from shardgen.operations.rebuild import rebuild

    with counting("reading artifacts", "artifact") as on_progress:
        plan, found = rebuild(open_directory(run_dir), on_progress=on_progress)
    pending = plan.samples - found.stored - found.dead_letters
    render.echo(f"rebuilt from {found.batches:,} of {plan.layout.batch_count:,} batches")
    render.echo(
        f"{found.stored:,} samples stored, {found.dead_letters:,} dead letters, "
        f"{pending:,} of {plan.samples:,} pending"
    )
    for count, why in (
        (found.superseded, "superseded by another attempt"),
        (found.undone, "undone by a requeue"),
        (len(found.refused) - found.unread, "damaged, or not matching their names or this plan"),
        (found.unread, "they could not be read"),
    ):
        if count:
            render.echo(f"ignored {count:,} artifacts: {why}")
    render.echo_some([f"{name}: {why}" for name, why in found.refused], shown=20)
    if found.unread:
        render.say(
            f"warning: {found.unread:,} artifacts could not be read; batches that only they hold "
            "will be made again. To keep these, make the files readable, move the new manifest away and "
            "rebuild again"
        )
    render.say(f"to continue: shardgen {'run' if pending else 'merge'} {typed(run_dir)}")

"""`shardgen sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, RunDir
from shardgen.cli.progress import opening
from shardgen.domain.wording import counted, sized, typed

_SHOWN = 10


def sweep(
    *,
    run_dir: RunDir = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
) -> None:
    """List files that nothing will ever use, or remove them.

    Finds artifacts that no receipt names, staged files, and what killed merges and backups left in the run
    directory. Never touches what a lease could still publish, the marks of a requeue, or a file that may be
    somebody else's.

    \b
    Example:
      shardgen sweep people
      shardgen sweep people --yes
    """
    with opening() as line:
        from shardgen.coordination.open import open_directory
        from shardgen.operations.sweep import sweep

        run = open_directory(run_dir)
        line.doing("looking for files without a use", is_printed=False)
        found = sweep(run, remove=yes)
    done = "removed" if yes else "would remove"
    total = sized(sum(orphan.size_bytes for orphan in found.orphans))
    render.echo(f"{done} {counted(len(found.orphans), 'orphan')}, {total}")
    render.echo_some([orphan.path for orphan in found.orphans], shown=_SHOWN)
    pending = sum(orphan.is_pending for orphan in found.orphans)
    if pending:
        whose = "holds batches that are" if pending == 1 else "hold batches that are"
        render.echo(f"  {pending:,} of them {whose} still pending; those are made again anyway")
    if found.unfinished:
        unfinished = counted(len(found.unfinished), "unfinished file")
        render.echo(f"{done} {unfinished} of killed merges and backups")
        render.echo_some([path.name for path in found.unfinished], shown=_SHOWN)
    if found.live:
        render.echo(f"kept {counted(len(found.live), 'file')} that a lease could still publish")
    if found.strangers:
        strangers = counted(len(found.strangers), "file")
        render.echo(f"left {strangers} that may be somebody else's")
        render.echo_some(found.strangers, shown=_SHOWN)
    for remark in found.remarks:
        render.say(remark)
    if not yes and (found.orphans or found.unfinished):
        render.say(f"to remove them: shardgen sweep {typed(run_dir)} --yes")

"""`shardgen doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE
from shardgen.cli.progress import doing
from shardgen.domain.wording import with_run_dir


def doctor(
    run_dir: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_DIR", help="Check this run directory, or its bucket, too.", show_default=False
        ),
    ] = None,
) -> None:
    """Check this machine for problems before you start.

    Shows versions, devices, memory, disks and weights; with RUN_DIR also its sources, manifest and artifacts.
    If it is in a bucket, tests whether the store can be trusted.

    \b
    Example:
      shardgen doctor people
    """
    with doing("looking at this machine", is_printed=False):
        from shardgen.operations.doctor import Verdict, diagnose

        lines = list(diagnose(run_dir))
    rows = []
    for line in lines:
        hint = f"\n{with_run_dir(line.hint, run_dir or HERE)}" if line.hint else ""
        rows.append([line.subject, line.verdict.value, line.fact + hint])
    render.stdout().print(render.table(["what", "", "fact"], rows, left=True))
    if any(line.verdict is Verdict.FAILS for line in lines):
        raise typer.Exit(19)

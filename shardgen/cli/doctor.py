"""`shardgen doctor`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json
from shardgen.cli.progress import doing
from shardgen.domain.wording import with_run_dir


def doctor(
    run_dir: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_DIR", help="Check this run directory, or its bucket, too.", show_default=False
        ),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Check this machine for problems before you start.

    Shows versions, devices, memory, disks and weights; with RUN_DIR also its sources, manifest and artifacts.
    If it is in a bucket, tests whether the store can be trusted.

    \b
    Example:
      shardgen doctor people
    """
    with doing("looking at this machine", is_printed=False):
        from shardgen.operations.doctor import diagnose, refusal

        lines = list(diagnose(run_dir))
    lines = [replace(line, hint=with_run_dir(line.hint, run_dir or HERE)) for line in lines]
    error = refusal(lines)
    if json:
        from shardgen.cli.documents import DoctorDocument, answer

        answer(DoctorDocument.of(lines, error=error), error)
        return
    rows = [
        [line.subject, line.verdict.value, line.fact + (f"\n{line.hint}" if line.hint else "")]
        for line in lines
    ]
    render.stdout().print(render.table(["what", "", "fact"], rows, left=True))
    if error is not None:
        raise error

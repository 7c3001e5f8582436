"""`shardgen backup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, RunDir
from shardgen.cli.progress import opening
from shardgen.domain.wording import sized, typed


def backup(
    *,
    run_dir: RunDir = HERE,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The copy to write; an existing file is not replaced.",
            show_default="RUN_DIR/manifest-<time>.sqlite",
        ),
    ] = None,
) -> None:
    """Copy the manifest to another file, even while workers run.

    Makes a consistent copy, checks it, and gives it its name once it is complete. For a database on a server
    it prints the command to type instead.

    \b
    Example:
      shardgen backup people
      shardgen backup people -o people.sqlite
    """
    with opening() as line:
        from shardgen.coordination.open import open_directory
        from shardgen.operations.backup import back_up

        run = open_directory(run_dir)
        line.doing("copying the manifest", is_printed=False)
        made = back_up(run, output)
    manifest = run.database.path
    render.echo(f"{made}   {sized(made.stat().st_size)}")
    render.say(
        f"to put it back: stop the workers, move {typed(manifest)} away (and its -journal, if there is one), "
        f"then: cp {typed(made)} {typed(manifest)}"
    )
    files = [made.parent / file.name for file in run.recipe(run.plan()).files]
    if files and not made.parent.samefile(run.path):
        render.say(
            "and, if the files that plan.json names are lost: "
            f"cp {' '.join(map(typed, files))} {typed(run.path)}"
        )

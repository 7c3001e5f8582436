"""`shardgen init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli.options import HERE, RunDir
from shardgen.cli.render import say

HELP = """Write a commented shardgen.toml into RUN_DIR.

Makes the directory if needed; never overwrites an existing shardgen.toml.

\b
Example:
  shardgen init people --foregrounds cut-outs --backgrounds scenes
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init", help=HELP)(init)


def init(
    foregrounds: Annotated[
        Path, typer.Option("--foregrounds", metavar="DIR", help="Folder of foreground photographs.")
    ],
    backgrounds: Annotated[
        Path, typer.Option("--backgrounds", metavar="DIR", help="Folder of background photographs.")
    ],
    run_dir: RunDir = HERE,
) -> None:
    """Call the verb."""
    from shardgen.initialising import initialise

    path = initialise(run_dir, foregrounds=foregrounds, backgrounds=backgrounds)
    say(f"wrote {path}; look through it, then: shardgen plan {run_dir}")

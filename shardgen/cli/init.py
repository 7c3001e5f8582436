"""`shardgen init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli.options import HERE, RunDir, typed
from shardgen.cli.render import say


def init(
    *,
    foregrounds: Annotated[
        Path, typer.Option("--foregrounds", metavar="DIR", help="Folder of foreground photographs.")
    ],
    backgrounds: Annotated[
        Path, typer.Option("--backgrounds", metavar="DIR", help="Folder of background photographs.")
    ],
    run_dir: RunDir = HERE,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="nyu|kitti|small|FILE",
            help="Weights of the depth network; small needs no download and is for trials.",
        ),
    ] = "nyu",
    shared_folder: Annotated[
        bool,
        typer.Option("--shared-folder", help="Several machines share RUN_DIR and nothing else."),
    ] = False,
) -> None:
    """Write a commented shardgen.toml into RUN_DIR.

    Makes the directory if needed; never overwrites an existing shardgen.toml. Sets --shared-folder by itself
    on a mounted Google Drive.

    \b
    Example:
      shardgen init people --foregrounds cut-outs --backgrounds scenes
    """
    from shardgen.machine.file_systems import is_on_drive
    from shardgen.operations.init import initialise

    on_drive = is_on_drive(run_dir)
    path = initialise(
        run_dir,
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        weights=weights,
        shared_folder=shared_folder or on_drive,
    )
    if on_drive and not shared_folder:
        say(f'{run_dir} is on Google Drive, where a database gets damaged: set [manifest] url = "folder:"')
    say(f"wrote {path}\nNext: read it through, then `shardgen plan {typed(run_dir)}`.")

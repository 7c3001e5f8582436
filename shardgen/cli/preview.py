"""`shardgen preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli.options import HERE, Backgrounds, Device, Foregrounds, RunDir, given_folders, parse_device
from shardgen.cli.render import echo, say


def preview(
    *,
    run_dir: RunDir = HERE,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, max=400, help="How many samples to draw.")
    ] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PNG", help="The picture to write.", show_default="RUN_DIR/preview.png"
        ),
    ] = None,
    device: Device = "auto",
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
) -> None:
    """Draw a contact sheet of samples spread over the plan.

    Look at it before you spend hours on all of them. Makes samples exactly as a worker does.

    \b
    Example:
      shardgen preview people --samples 20 -o preview.png
    """
    from shardgen.operations.preview import PreviewRequest
    from shardgen.operations.preview import preview as make_preview
    from shardgen.recipes.base import DeviceChoice
    from shardgen.settings.run_directory import RunDirectory

    path = make_preview(
        RunDirectory.open(run_dir),
        PreviewRequest(
            samples=samples,
            folders=given_folders(foregrounds=foregrounds, backgrounds=backgrounds),
            output=output,
        ),
        choice=DeviceChoice.from_environment(parse_device(device)),
        say=say,
    )
    echo(str(path))

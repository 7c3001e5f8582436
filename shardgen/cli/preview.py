"""`shardgen preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli.options import (
    HERE,
    Backgrounds,
    Device,
    Foregrounds,
    Pictures,
    RunDir,
    given_folders,
)
from shardgen.cli.plan import planning_events
from shardgen.cli.progress import doing
from shardgen.cli.render import echo, say
from shardgen.errors import MAX_DRAWN


def preview(
    *,
    run_dir: RunDir = HERE,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, max=MAX_DRAWN, help="How many samples to draw.")
    ] = 20,
    all_foregrounds: Annotated[
        bool,
        typer.Option(
            "--all-foregrounds",
            help="For composites: show each foreground once, however many samples that takes.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PNG", help="The picture to write.", show_default="RUN_DIR/preview.png"
        ),
    ] = None,
    device: Device = "auto",
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
) -> None:
    """Draw a contact sheet of samples from the whole run.

    Works before `plan`, too: change shardgen.toml and look again.
    Makes samples exactly as a worker does. Draws what a sample holds: the
    composite with an outline around each person, their masks, and depth
    (bright is near); or the picture and its depth.

    \b
    Example:
      shardgen preview people --samples 20 -o preview.png
    """
    with doing("reading the plan") as line:
        from shardgen.coordination.open import open_directory
        from shardgen.operations.preview import PreviewEvents, PreviewRequest, draw_preview
        from shardgen.recipes.base import DeviceChoice

        path = draw_preview(
            open_directory(run_dir),
            PreviewRequest(
                samples=samples,
                every="foregrounds" if all_foregrounds else "",
                folders=given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures),
                output=output,
            ),
            choice=DeviceChoice.from_environment(device),
            say=say,
            events=PreviewEvents(
                plan=planning_events(line),
                doing=line.doing,
                on_sample=line.counter("making samples", "sample"),
            ),
        )
    echo(str(path))

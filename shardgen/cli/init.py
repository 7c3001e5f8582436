"""`shardgen init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli.options import HERE, RunDir, given_folders
from shardgen.cli.render import say
from shardgen.domain.wording import typed
from shardgen.manifest.urls import SHARED_FOLDER
from shardgen.recipes.registry import DEFAULT_PRESET, presets


def init(
    *,
    run_dir: RunDir = HERE,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="What to make. "
            + "; ".join(f"{name}: {preset.makes}" for name, (_, preset) in presets().items())
            + ".",
        ),
    ] = DEFAULT_PRESET,
    foregrounds: Annotated[
        Path | None,
        typer.Option(
            "--foregrounds",
            metavar="DIR",
            help="Folder of foreground photographs, for composites.",
            show_default=False,
        ),
    ] = None,
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            "--backgrounds",
            metavar="DIR",
            help="Folder of background photographs, for composites.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures",
            metavar="DIR",
            help="Folder of pictures, for their depth.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="nyu|kitti|small|FILE",
            help="Weights of the depth network; small needs no download and is for trials.",
            show_default="nyu",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TABLE.KEY=VALUE",
            help="Replace a value of the preset, as in shardgen.toml; may be repeated.",
            show_default=False,
        ),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option(
            "--bucket",
            metavar="URL",
            help="Several machines share this place in a bucket: s3://bucket/people, gs://… or az://….",
            show_default=False,
        ),
    ] = None,
    shared_folder: Annotated[
        bool,
        typer.Option("--shared-folder", help="Several machines share RUN_DIR and nothing else."),
    ] = False,
) -> None:
    """Write a commented shardgen.toml into RUN_DIR.

    Starts from a preset; every setting can be changed in the file. Makes the directory if needed; never
    overwrites an existing shardgen.toml. Sets --shared-folder by itself on a mounted Google Drive.

    \b
    Example:
      shardgen init people --foregrounds cut-outs --backgrounds scenes
      shardgen init people --preset random224 --foregrounds cut-outs --backgrounds scenes
      shardgen init people --set compose.grid=[3,2] --foregrounds cut-outs --backgrounds scenes
      shardgen init people --bucket s3://bucket/people --foregrounds cut-outs --backgrounds scenes
      shardgen init depths --preset depth-of-folder --pictures scenes
    """
    from shardgen.operations.init import initialise, shared_place

    shared = shared_place(run_dir, bucket=bucket, shared_folder=shared_folder)
    path = initialise(
        Path(run_dir),
        given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures),
        preset=preset,
        weights=weights,
        changes=_parse_changes(changes or []),
        shared=shared,
    )
    if shared == SHARED_FOLDER and not shared_folder:
        say(f'{run_dir} is on Google Drive, where a database gets damaged: set [manifest] url = "folder:"')
    keys = "" if bucket is None else 'export the bucket\'s keys (docs/operating.md, "A bucket"), '
    say(f"wrote {path}\nNext: read it through, {keys}then `shardgen plan {typed(run_dir)}`.")


def _parse_changes(texts: list[str]) -> dict[str, str]:
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and value.strip()):
            raise typer.BadParameter(f"{text!r} is not TABLE.KEY=VALUE", param_hint="--set")
        changes[name.strip()] = value.strip()
    return changes

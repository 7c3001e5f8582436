"""`shardgen weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli import render

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Fetch and check DenseDepth weights files."
)


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="nyu|kitti", help="Which released network.")] = "nyu",
) -> None:
    """Download weights into the cache folder and check them.

    The cache folder is ~/.cache/shardgen, or $SHARDGEN_CACHE. Resumes an interrupted download; only checks a
    file that is already there.

    \b
    Example:
      shardgen weights fetch nyu
    """
    from shardgen.depth.densedepth.family import RELEASED
    from shardgen.depth.densedepth.trial import read_untrusted
    from shardgen.storage.fetch import cached_path
    from shardgen.storage.fetch import fetch as download

    if name not in RELEASED:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(RELEASED)}")
    with render.progress_bar(f"fetching {name}") as bar:
        weights = download(RELEASED[name], read_untrusted, on_progress=render.add_download(bar, name))
    render.echo(f"{cached_path(RELEASED[name])}")
    render.echo(f"sha256 {weights.sha256}")


@app.command("check")
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="A weights file (HDF5).")]) -> None:
    """Say what is in a weights file, or what is wrong with it.

    \b
    Example:
      shardgen weights check nyu.h5
    """
    from shardgen.depth.densedepth.trial import read_untrusted
    from shardgen.depth.densedepth.weights_file import facts_of

    facts = facts_of(read_untrusted(file))
    rows = [[name, f"{value:,}" if isinstance(value, int) else str(value)] for name, value in facts.items()]
    render.stdout().print(render.table(["fact", "value"], rows))

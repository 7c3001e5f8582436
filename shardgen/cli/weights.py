"""`shardgen weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import Command
from shardgen.cli.progress import doing, downloading
from shardgen.errors import choose

app = typer.Typer(
    name="weights",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Fetch and check the weights of networks.",
)


@app.command("fetch", cls=Command)
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="nyu|kitti|u2netp", help="Which network: nyu or kitti for depth, u2netp for cut-out."
        ),
    ] = "nyu",
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
    from shardgen.operations.cut_out import U2NETP, fetch_model
    from shardgen.storage.fetch import fetch as download
    from shardgen.storage.released import cached_path

    all_released = {**RELEASED, U2NETP.name: U2NETP}
    name = choose(name, all_released, option="name")
    with doing(f"looking for the {name} weights", is_printed=False) as line:
        on_download = downloading(line, f"the {name} weights")
        if name == U2NETP.name:
            sha256 = fetch_model(on_download)
        else:
            sha256 = download(RELEASED[name], read_untrusted, on_progress=on_download).sha256
    render.echo(f"{cached_path(all_released[name])}")
    render.echo(f"sha256 {sha256}")


@app.command("check", cls=Command)
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A weights file (HDF5), or a network for cut-out (.onnx).")
    ],
    *,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help='Also say how far precision = "fast" is off on sample photographs; takes a minute.'
        ),
    ] = False,
) -> None:
    """Say what is in a weights file, or what is wrong with it.

    \b
    Example:
      shardgen weights check nyu.h5
      shardgen weights check nyu.h5 --fast
    """
    from shardgen.depth.densedepth.trial import read_untrusted
    from shardgen.depth.densedepth.weights_file import facts_of
    from shardgen.operations.cut_out import check_model

    if file.suffix.lower() == ".onnx":
        if fast:
            raise typer.BadParameter("--fast is about networks for depth")
        facts: dict[str, object] = {**check_model(file)}
    else:
        weights = read_untrusted(file)
        facts = facts_of(weights)
        if fast:
            from shardgen.operations.precisions import fast_beside_float32

            with doing("computing depth with both precisions", is_printed=False):
                facts["fast beside float32"] = fast_beside_float32(weights)
    rows = [[name, f"{value:,}" if isinstance(value, int) else str(value)] for name, value in facts.items()]
    render.stdout().print(render.table(["fact", "value"], rows))

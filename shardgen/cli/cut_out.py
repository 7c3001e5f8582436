"""`shardgen cut-out`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.progress import doing, downloading
from shardgen.domain.wording import counted
from shardgen.errors import SourcesRefused

if TYPE_CHECKING:
    from shardgen.operations.cut_out import CutOuts


def cut_out(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of photographs, or one photograph in it.")
    ],
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="PNG",
            help="Draw the photographs beside their cut-outs.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make cut-out's own masks again; yours always stay.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE.onnx",
            help="Use another network of the U²-Net family, or your own copy of u2netp.onnx.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Cut out subjects: write NAME.mask.png beside photographs.

    Makes a mask for each photograph that has neither an alpha channel nor a mask file, in subfolders too. A
    small network (u2netp, 4.6 MB, fetched once) finds what stands out. Look at the masks, and draw better
    ones where they are wrong: your masks are never replaced. Given one photograph, makes its mask again. Run
    it again to resume.

    \b
    Example:
      shardgen cut-out portraits --sheet cut-outs.png
    """
    with doing("looking through the photographs", is_printed=False) as line:
        from shardgen.operations.cut_out import (
            CutOutEvents,
            CutOutRequest,
            cut_out_photographs,
            draw_sheet,
            warnings,
        )

        count, on_file = itertools.count(1), line.counter("cutting out", "photograph")
        done = cut_out_photographs(
            CutOutRequest(path=folder, model=model, overwrite=overwrite, sheet=sheet),
            events=CutOutEvents(
                on_file=lambda _name, of: on_file(next(count), of),
                on_download=downloading(line, "the u2netp weights"),
            ),
        )
    render.stdout().print(render.table(["photographs", ""], _counts(done)))
    if sheet is not None:
        with doing("drawing the sheet", is_printed=False):
            drawn = draw_sheet(done, sheet)
        nothing = f"{sheet} not drawn: there are no masks by cut-out"
        render.echo(f"{sheet}   {counted(drawn, 'photograph')}" if drawn else nothing)
    render.say_remarks("warning", warnings(done))
    if files := sum(len(problem.names) for problem in done.problems):
        raise SourcesRefused(
            f"{counted(files, 'file')} of {done.folder} left out; everything else was done",
            hint="repair, rename or remove them, then run the same command again",
            remarks=done.problems,
        )
    if sheet is None and any(one.verdict for one in done.outcomes):
        render.say("Next: look at the masks (add --sheet cut-outs.png)")


def _counts(done: CutOuts) -> list[tuple[str, str]]:
    from shardgen.operations.cut_out import Kind

    words = {
        Kind.WRITTEN: "masks written",
        Kind.EARLIER: "masks made earlier, kept",
        Kind.THEIRS: "with your own mask, left alone",
        Kind.ALPHA: "with an alpha channel, left alone",
        Kind.EMPTY: "no subject found, no mask",
    }
    found = {kind: sum(one.kind is kind for one in done.outcomes) for kind in words}
    return [(words[kind], f"{count:,}") for kind, count in found.items() if count or kind is Kind.WRITTEN]

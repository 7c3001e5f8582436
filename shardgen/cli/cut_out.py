"""`shardgen cut-out`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.domain.wording import counted
from shardgen.errors import SourcesRefused

if TYPE_CHECKING:
    from shardgen.operations.cut_out import CutOuts

_NAMED = 10  # of a group


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
            help="Draw photographs beside their cut-outs, to look at.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make masks that cut-out made before anew; never yours.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE.onnx",
            help="Another network of U²-Net's family, or u2netp.onnx where it lies.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Cut subjects out: write NAME.mask.png beside photographs.

    Beside each one that has neither an alpha channel nor a mask file, also in subfolders. A small network
    (u2netp, 4.6 MB, fetched once) finds what stands out. Look at the masks, and draw better ones where it
    is wrong: a mask of yours is never replaced. Given one photograph, makes its mask anew. Run it again to
    resume.

    \b
    Example:
      shardgen cut-out portraits --sheet cut-outs.png
    """
    from shardgen.operations.cut_out import CutOutEvents, CutOutRequest, cut_out_photographs, draw_sheet

    with render.progress_bar("cutting out") as bar:
        files = bar.add_task("photographs", total=None)
        done = cut_out_photographs(
            CutOutRequest(path=folder, model=model, overwrite=overwrite, sheet=sheet),
            events=CutOutEvents(
                on_found=lambda count: bar.update(files, total=count),
                on_file=lambda _name: bar.advance(files),
                on_download=render.add_download(bar, "u2netp", visible=False),
            ),
        )
    render.stdout().print(render.table(["photographs", ""], _counts(done)))
    if sheet is not None:
        drawn = draw_sheet(done, sheet)
        render.echo(f"{sheet}   {counted(drawn, 'photograph')}" if drawn else "nothing to draw")
    for line in _warnings(done):
        render.say(f"warning: {line}")
    if done.problems:
        raise SourcesRefused(
            f"{counted(len(done.problems), 'problem')} in {done.folder}; everything else was done",
            hint="repair, rename or remove these files, then run the same command again",
            problems=done.problems,
        )
    if sheet is None:
        render.say("Next: look at the masks: add --sheet cut-outs.png")


def _counts(done: CutOuts) -> list[tuple[str, str]]:
    from shardgen.operations.cut_out import Kind

    words = {
        Kind.WRITTEN: "masks written",
        Kind.EARLIER: "masks made earlier, kept",
        Kind.THEIRS: "with a mask of yours, left alone",
        Kind.ALPHA: "with an alpha channel, left alone",
        Kind.EMPTY: "no subject found, no mask",
    }
    found = {kind: sum(one.kind is kind for one in done.outcomes) for kind in words}
    return [(words[kind], f"{count:,}") for kind, count in found.items() if count or kind is Kind.WRITTEN]


def _warnings(done: CutOuts) -> list[str]:
    """What asks for a look, a line for each reason."""
    from shardgen.operations.cut_out import concerns

    lines = []
    for concern, names in concerns(done).items():
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if names[_NAMED:] else "")
        lines.append(f"{counted(len(names), 'photograph')}: {concern.words}: {shown} ({concern.advice})")
    return lines

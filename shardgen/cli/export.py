"""`shardgen export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import Exclude, Json
from shardgen.cli.progress import counting, opening
from shardgen.domain.wording import counted, sized
from shardgen.errors import WrongOption

if TYPE_CHECKING:
    from shardgen.dataset.export.driver import ExportResult


def export(
    *,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR|ZIP",
            help="A run directory, its bucket (s3://bucket/people), or a finished zip.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The folder to write: a new one, or this export's, to continue it."
        ),
    ],
    format: Annotated[  # noqa: A002 - the option's name
        str,
        typer.Option(
            "--format", metavar="webdataset|parquet|coco|files", help="What to write.", show_default=False
        ),
    ],
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size",
            metavar="SAMPLES",
            min=1,
            help="Samples in each file of webdataset and parquet; 10000 by default.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="800,100,100",
            help="Proportions of train, validation and test (two: no test). No photograph is in two of them; "
            "samples that mix them are dropped.",
            show_default=False,
        ),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by",
            metavar="foregrounds|backgrounds|both|pictures",
            help="Which photographs no two splits may share; by default, those of all folders.",
            show_default=False,
        ),
    ] = None,
    split_seed: Annotated[
        int, typer.Option("--split-seed", metavar="N", help="A different number gives a different split.")
    ] = 0,
    exclude: Exclude = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Export what is stored so far, even while workers run. Once more is stored, this export "
            "cannot be continued: choose a new folder.",
        ),
    ] = False,
    allow_dead_letters: Annotated[
        bool, typer.Option("--allow-dead-letters", help="Export even if some samples were given up.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a data set in a format for training tools.

    webdataset: tars. parquet: for Hugging Face's datasets. coco: boxes and masks. files: plain folders.
    A run directory needs no zip first; only there do --exclude, --partial and --allow-dead-letters apply.
    After a stop the same command continues; it gives the same bytes every time.

    \b
    Example:
      shardgen export people.zip people-tars --format webdataset
      shardgen export people.zip people-parquet --format parquet --split 800,100,100
      shardgen export people people-coco --format coco
    """
    with opening():
        from shardgen.operations.export import export_request, export_subject
        from shardgen.operations.verify import open_subject

        request = export_request(
            format,
            shard_size=shard_size,
            split=None if split is None else _parts(split),
            split_by=split_by,
            split_seed=split_seed,
        )
        opened = open_subject(subject)
    with counting("exporting", "sample") as show:
        result = export_subject(
            opened,
            out,
            request,
            allow_dead_letters=allow_dead_letters,
            exclude=tuple(exclude or ()),
            partial=partial,
            on_progress=lambda done, planned, _there: None if planned is None else show(done, planned),
        )
    if json:
        from shardgen.cli.documents import ExportDocument, answer

        answer(ExportDocument.of(result))
    else:
        _show(result)


def _parts(text: str) -> list[int]:
    """The numbers in `800,100,100`."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(one.isascii() and one.isdigit() and len(one) < 10 for one in numbers):
        raise WrongOption("split", f"{text!r} is not two or three whole numbers, as in 800,100,100")
    return [int(number) for number in numbers]


def _show(result: ExportResult) -> None:
    """What there is in the folder, what is not, and what to type next."""
    render.result_is_a_file()
    rows = [
        [
            one.name,
            f"{one.samples:,}",
            f"{one.photographs:,}",
            f"{one.files:,}",
            sized(one.size_bytes),
        ]
        for one in result.splits
    ]
    render.stdout().print(render.table(["split", "samples", "photographs", "files", "size"], rows))
    if result.request.split is not None:
        render.say(
            f"dropped because their photographs are in different splits: {counted(result.dropped, 'sample')}"
        )
    missing = [result.selection.in_words] if result.selection.kinds else []
    missing += [counted(result.dead_letters, "dead letter")] if result.dead_letters else []
    if missing:
        planned = counted(result.selection.planned, "sample")
        render.say(f"left out, of {planned}: {', '.join(missing)}")
    if result.there:
        render.say(f"already there: {counted(result.there, 'sample')}")
    render.say(f"to read it: {_next(result)}")


def _next(result: ExportResult) -> str:
    """A line of Python that reads the first split."""
    out, first = str(result.out), result.splits[0].name
    match result.request.format:
        case "webdataset":
            # Not `train-{000000..000005}.tar`: webdataset would look for braces in the whole path.
            tars = f"sorted(map(str, pathlib.Path({out!r}).glob('{first}-*.tar')))"
            return f"import pathlib, webdataset; webdataset.WebDataset({tars}).decode('rgb')"
        case "coco":
            path = f"{out}/annotations/instances_{first}.json"
            return f"from pycocotools.coco import COCO; COCO({path!r})"
        case "parquet":
            return f"import datasets; datasets.load_dataset({out!r})"
        case _:
            return f"import datasets; datasets.load_dataset('imagefolder', data_dir={out!r})"

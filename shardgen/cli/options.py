"""Arguments and options that several commands share."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from shardgen.errors import WrongOption, choose, explained
from shardgen.machine import collecting

HERE = "."


class Command(TyperCommand):
    """A command whose errors name the run directory that was typed.

    `--serve` may stand alone: an address after it has a port, a run directory has none.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give `--serve` a value before the parser asks for one."""
        if any("--serve" in parameter.opts for parameter in self.params):
            for index in [index for index, word in enumerate(args) if word == "--serve"]:
                if not any(_ADDRESS.fullmatch(word) for word in args[index + 1 : index + 2]):
                    args[index] = "--serve="
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        collecting.begin()
        named = ctx.params.get("run_dir") or ctx.params.get("subject") or HERE
        try:
            with explained(named):
                return super().invoke(ctx)
        except WrongOption as wrong:
            parameters: list[Any] = self.params
            wrongly = next((one for one in parameters if one.name == wrong.option), None)
            raise typer.BadParameter(wrong.fact, ctx=ctx, param=wrongly) from wrong


def parse_device(text: str) -> str:
    """One of auto, cpu, gpu, in any case."""
    try:
        return choose(text, ("auto", "cpu", "gpu"), option="device")
    except WrongOption as wrong:
        raise typer.BadParameter(wrong.fact) from wrong


RunDir = Annotated[
    str,
    typer.Argument(
        metavar="RUN_DIR",
        envvar="SHARDGEN_RUN",
        help="The run directory, or its bucket (s3://bucket/people); by default $SHARDGEN_RUN, else the "
        "current folder.",
        show_default=False,
    ),
]

Foregrounds = Annotated[
    Path | None,
    typer.Option(
        "--foregrounds",
        metavar="DIR",
        help="Folder of foreground photographs on this machine; overrides $SHARDGEN_FOREGROUNDS and the "
        "settings.",
        show_default=False,
    ),
]
Backgrounds = Annotated[
    Path | None,
    typer.Option(
        "--backgrounds",
        metavar="DIR",
        help="Folder of background photographs on this machine; overrides $SHARDGEN_BACKGROUNDS and the "
        "settings.",
        show_default=False,
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        "--pictures",
        metavar="DIR",
        help="Folder of the pictures on this machine, for a run that makes their depth; overrides "
        "$SHARDGEN_PICTURES and the settings.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|gpu",
        help="Where the network runs; gpu fails if no GPU is usable.",
        callback=parse_device,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="ZIP",
        help="The zip to write; for a bucket, in the current folder by default.",
        show_default="RUN_DIR/dataset.zip",
    ),
]
AllowDeadLetters = Annotated[
    bool,
    typer.Option(
        "--allow-dead-letters", help="Merge even if some samples were given up; the zip lists them."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="FOLDER/NAME",
        help="Leave out every sample made from this photograph; may be repeated. FOLDER is "
        "foregrounds, backgrounds or pictures.",
        show_default=False,
    ),
]
Serve = Annotated[
    str | None,
    typer.Option(
        "--serve",
        metavar="[ADDRESS]",
        help="Serve a page about the run: on this machine at 127.0.0.1:8765, or at an address such as "
        "0.0.0.0:8765 (port 0: any that is free), which asks for the token in the printed URL.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d+")
_DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


def parse_gpus(text: str) -> tuple[str, ...]:
    """The names in `0,2` or `GPU-5d5b,MIG-c738`."""
    from shardgen.machine.gpus import refuse_no_names

    names = tuple(part.strip() for part in text.split(","))
    refuse_no_names(names)
    return names


def parse_rate(rate: float | None) -> float | None:
    """A finite number of samples per second above 0."""
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise typer.BadParameter(f"{rate:g} is not a number of samples per second", param_hint="--rate")
    return rate


def parse_duration(text: str) -> float:
    """Seconds of `11h`, `1h30m`, `90m` or `45s`: a number alone might mean hours or seconds."""
    match = _DURATION.fullmatch(text.strip())
    if not text.strip() or match is None:
        raise typer.BadParameter(
            f"{text!r} is not a duration such as 11h, 1h30m or 45s", param_hint="--deadline"
        )
    hours, minutes, seconds = (float(match[part] or 0) for part in "hms")
    return hours * 3600 + minutes * 60 + seconds


def given_folders(**options: Path | None) -> dict[str, Path]:
    """The source folders that options name, by the recipe's names for them."""
    return {name: path for name, path in options.items() if path is not None}

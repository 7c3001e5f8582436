"""How results and progress look: tables on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from shardgen.cli.printable import printable, printable_json
from shardgen.reporting import Report

if TYPE_CHECKING:
    from shardgen.merging import MergeResult

_PLAIN_WIDTH = 110  # columns of a table that goes into a file or a pipe


def _text(line: str) -> Text:
    return Text(printable(line))


class _Stdout(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read our output has gone; rich would end the process with 1 here."""
        raise BrokenPipeError


class _Bar(Progress):
    def stop(self) -> None:
        """Rich before 14 prints an empty line here even for a bar that is not shown."""
        if not self.disable:
            super().stop()


def stdout() -> Console:
    """Where results go."""
    return _Stdout(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)


def stderr() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _PLAIN_WIDTH, highlight=False)


def say(line: str) -> None:
    """One line on stderr; nobody may be listening any more, which must not stop the work."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def echo(line: str) -> None:
    """One line of a result on stdout."""
    typer.echo(printable(line))


def print_json(document: object) -> None:
    """A JSON document on stdout."""
    print(printable_json(json.dumps(document, ensure_ascii=False, indent=2)))  # noqa: T201


def progress_bar(what: str) -> Progress:
    """A bar with a count on stderr; silent where stderr is no terminal."""
    return _Bar(
        TextColumn("{task.description}") if what == "samples" else TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: bool = False) -> Table:
    """A plain table: the first column to the left, the others to the right (or all to the left)."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        result.add_column(column, justify="left" if left or place == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*(_text(cell) for cell in row))
    return result


def duration(seconds: float | None) -> str:
    """`3 d 4 h`, `2 h 05 min`, `3 min 20 s`, `12 s`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole} s"


def size(size_bytes: float) -> str:
    """`1.9 GB`: decimal units, as disks are sold."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} bytes"


def status_view(report: Report) -> RenderableType:
    """The report as a person reads it."""
    plan, layout = report.plan, report.plan.layout
    parts: list[RenderableType] = [
        _text(
            f"planned {plan.samples:,}   stored {report.stored:,}   dead letters {report.dead:,}   "
            f"pending {report.pending:,}   ({100 * report.stored / plan.samples:.1f} % stored)"
        )
    ]
    if plan.depth.weights.is_random:
        parts.append(
            _text(f"NOT DEPTH: the weights are {plan.depth.weights.name}, so depth images are noise")
        )
    rate = f"{report.rate:.2f} samples/s" if report.rate else "nothing is being made now"
    parts += [_text(f"rate {rate}   to go {duration(report.eta_seconds)}"), _text("")]
    rows = []
    for shard in report.overview.shards:
        samples, slices = layout.shard_samples(shard.shard), shard.slices
        pending = len(samples) - shard.stored - shard.dead
        counts = (
            slices.never_leased,
            slices.open,
            slices.leased,
            slices.expired,
            slices.done,
            slices.blocked,
        )
        rows.append(
            [
                f"{shard.shard}",
                f"{samples.start}-{samples.stop - 1}",
                *(f"{count:,}" for count in (shard.stored, shard.dead, pending, *counts)),
            ]
        )
    heads = ["shard", "samples", "stored", "dead", "pending"]
    heads += ["never leased", "open", "leased", "expired", "done", "blocked"]
    parts.append(table(heads, rows))
    if report.workers:
        parts += [_text(""), _workers(report)]
    for blocked in report.overview.blocked:
        parts.append(_text(f"blocked: shard {blocked.shard} slice {blocked.slice}: {blocked.reason}"))
    parts += [_text(line) for line in (*mixture_lines(report), *_folder_lines(report))]
    return Group(*parts)


def _folder_lines(report: Report) -> list[str]:
    """What is special about a shared folder: everything is as old as its files are late."""
    news = report.folder
    if news is None:
        return []
    lag = "no worker has seen another's files yet"
    if news.lag_seconds is not None:
        lag = (
            f"workers see each other's files after {duration(news.lag_seconds)}, "
            f"at most {duration(news.slowest_lag_seconds)}, by their clocks"
        )
    lines = ["", f"shared folder, as it is seen from here; {lag}"]
    if news.waiting:
        lines.append(f"{news.waiting:,} batches are made on this machine and not in the folder yet")
    if news.arriving:
        lines.append(f"{news.arriving:,} files are not whole yet: still arriving, or cut short")
    if news.duplicated:
        lines.append(f"{news.duplicated:,} batches were made twice; one attempt at each counts")
    return lines + [f"trouble: {trouble}" for trouble in news.troubles]


def _workers(report: Report) -> Table:
    return table(
        ["worker", "shard/slice", "state", "last beat", "samples", "samples/s"],
        [
            [
                one.row.identity.id,
                "-" if one.row.shard is None else f"{one.row.shard}/{one.row.slice}",
                one.state.value + _first_line(one.row.note),
                f"{duration(one.last_beat_seconds)} ago",
                f"{one.row.samples_done:,}",
                f"{one.row.samples_per_second:.2f}",
            ]
            for one in report.workers
        ],
    )


def _first_line(note: str) -> str:
    return f" ({note.partition(chr(10))[0]})" if note else ""


def mixture_lines(report: Report) -> list[str]:
    """A remark when the run was made by more than one kind of device, version or micro-batch."""
    if not report.mixture:
        return []
    lines = ["mixture: batches were made in different ways; depth may differ by 1 grey level between them"]
    lines += [
        f"  {part['batches']} batches: {part['device_model']}, TensorFlow {part['tensorflow']}, "
        f"OpenCV {part['opencv']}, {part['precision']}, micro-batch {part['micro_batch']}"
        for part in report.mixture
    ]
    return lines


def merge_view(result: MergeResult) -> RenderableType:
    """What a merge made: the zip, its counts, its statistics."""
    rows = []
    for kind, part in result.statistics.items():
        mean = ", ".join(f"{value:.4f}" for value in part.mean)
        std = ", ".join(f"{value:.4f}" for value in part.std)
        rows.append([kind.value, f"{part.images:,}", mean, std])
    return Group(
        _text(f"{result.path}   {size(result.size_bytes)}"),
        _text(f"{result.samples_stored:,} samples stored, {result.dead_letters:,} dead letters"),
        _text(""),
        table(["images", "count", "mean", "std"], rows),
    )

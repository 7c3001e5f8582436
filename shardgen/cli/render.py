"""How results and progress look: tables on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import typer

from shardgen.cli.printable import outlet_of
from shardgen.domain.remarks import Remark
from shardgen.domain.wording import counted, printable, printable_json, sized
from shardgen.errors import ShardgenError
from shardgen.machine.notebooks import is_notebook

if TYPE_CHECKING:  # what only results are drawn with, and most of a help's time
    from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

    from shardgen.dataset.merge import MergeResult
    from shardgen.dataset.verify import Verification

_SHOWN_NAMES = 10
_ANY_WIDTH = 10_000
_FIRST_COMBINING = "\u0300"  # before it each character takes one column
_PLAIN_WIDTH = 110  # columns of a table that goes into a file or a pipe


def text(line: str) -> Text:
    """A line with no order to the terminal in it, neither rich's nor the terminal's own."""
    from rich.text import Text

    return Text(printable(line))


def stdout() -> Console:
    """Where results go."""
    return _console(sys.stdout, is_stderr=False)


def is_heard() -> bool:
    """Whether what was printed so far has reached somebody."""
    sys.stdout.flush()
    outlet = outlet_of(sys.stdout)
    return outlet is None or outlet.failure is None


def result_is_a_file() -> None:
    """Call it once the file is there: the command succeeds even if what it prints is lost."""
    if (outlet := outlet_of(sys.stdout)) is not None:
        outlet.is_the_result = False


def stderr() -> Console:
    """Where progress and remarks go."""
    return _console(sys.stderr, is_stderr=True)


def _console(stream: TextIO, *, is_stderr: bool) -> Console:
    from rich.console import Console

    if stream.isatty() and not is_notebook():
        return Console(stderr=is_stderr, highlight=False)
    return Console(stderr=is_stderr, width=_PLAIN_WIDTH, highlight=False, force_terminal=False)


ABOVE: list[Callable[[str], None]] = []
"""What puts a message above the line that shows progress; empty while there is none."""


def say(line: str) -> None:
    """One line on stderr; nobody may be listening any more, which must not stop the work."""
    if ABOVE:
        ABOVE[-1](line)
        return
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def echo(line: str) -> None:
    """One line of a result on stdout."""
    typer.echo(printable(line))


def echo_some(lines: Sequence[str], *, shown: int) -> None:
    """The first lines of a list on stdout, indented, and how many more there are."""
    for line in lines[:shown]:
        echo(f"  {line}")
    if len(lines) > shown:
        echo(f"  and {len(lines) - shown:,} more")


def one_line(text: str) -> str:
    """The text without its line ends."""
    return " ".join(text.splitlines())


def remark_text(remark: Remark, *, indent: str = "  ") -> str:
    """A remark in one line where it is about one file, else ten names and its hint on lines of their own."""
    hint = f" ({remark.hint})" if remark.hint else ""
    if not remark.names:
        return one_line(f"{remark.folder}: {remark.reason}{hint}")
    if len(remark.names) == 1:
        reason = remark.reason
        for detail in remark.details:
            reason = reason.replace("…", detail) if "…" in reason else f"{reason} ({detail})"
        return one_line(f"{remark.folder}/{remark.names[0]}: {reason}{hint}")
    details = remark.details or ("",) * len(remark.names)
    shown = [
        one_line(f"{name} ({detail})" if detail else name)
        for name, detail in zip(remark.names, details, strict=True)
    ][:_SHOWN_NAMES]
    more = len(remark.names) - len(shown)
    lines = [
        one_line(f"{counted(len(remark.names), 'file')} in {remark.folder}: {remark.reason}"),
        ", ".join(shown) + (f", and {more:,} more" if more else ""),
    ]
    if remark.hint:
        lines.append(one_line(f"hint: {remark.hint}"))
    return f"\n{indent}".join(lines)


def say_remarks(kind: str, remarks: Sequence[Remark]) -> None:
    """Warnings or notes on stderr."""
    for remark in remarks:
        say(f"{kind}: {remark_text(remark)}")


def print_json(document: object) -> None:
    """A JSON document on stdout."""
    knows_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    print(printable_json(json.dumps(document, ensure_ascii=not knows_unicode, indent=2)))  # noqa: T201


class Answered(Exception):
    """The command failed with this error, and the JSON document that it has printed holds it."""

    def __init__(self, error: ShardgenError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Table:
    """A plain table: the columns in `left` begin at the left, the others end at the right."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int]

    @property
    def width(self) -> int:
        """Its columns on the screen, of characters that take one each."""
        return sum(self._widths) + 2 * (len(self.heads) - 1)

    def plain(self) -> list[str]:
        """Its lines."""
        return ["  ".join(self._aligned(row)) for row in (self.heads, *self.rows)]

    def __rich__(self) -> RichTable:
        """As rich draws it, in as many lines as it takes."""
        from rich.table import Table as RichTable

        result = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for index, head in enumerate(self.heads):
            result.add_column(head, justify="left" if index in self.left else "right", overflow="fold")
        for row in self.rows:
            result.add_row(*map(text, row))
        return result

    @property
    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.heads, *self.rows, strict=True)]

    def _aligned(self, row: tuple[str, ...]) -> Iterator[str]:
        for index, (cell, width) in enumerate(zip(row, self._widths, strict=True)):
            yield cell.ljust(width) if index in self.left else cell.rjust(width)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: bool = False) -> Table:
    """A table whose first column is to the left, the others to the right (or all to the left)."""
    return Table(
        heads=tuple(columns),
        rows=tuple(tuple(row) for row in rows),
        left=frozenset(range(len(columns)) if left else [0]),
    )


@dataclass(frozen=True, slots=True)
class Fitting:
    """The first of the tables, widest first, for which there is room; else the last."""

    tables: tuple[Table, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What the console prints."""
        from rich.measure import Measurement

        room = options.update(max_width=_ANY_WIDTH)
        for one in self.tables:
            if one is self.tables[-1] or Measurement.get(console, room, one).maximum <= options.max_width:
                yield one
                return


@dataclass(frozen=True, slots=True)
class View:
    """Lines and tables, one below the other."""

    parts: tuple[str | Table | Fitting, ...]

    def plain(self) -> list[str] | None:
        """The lines that a file gets, as rich would write them; None where that takes rich.

        It breaks lines, folds cells, and knows how wide the characters of all scripts are.
        """
        lines: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                lines.append(part)
                continue
            tables = part.tables if isinstance(part, Fitting) else (part,)
            lines += next((one for one in tables if one.width <= _PLAIN_WIDTH), tables[-1]).plain()
        whole = "".join(lines)
        is_plain = whole.isprintable() and max(whole, default="") < _FIRST_COMBINING
        return lines if is_plain and all(len(line) <= _PLAIN_WIDTH for line in lines) else None

    def __rich__(self) -> Group:
        """As rich draws it."""
        from rich.console import Group

        return Group(*(text(part) if isinstance(part, str) else part for part in self.parts))


def show(view: View) -> None:
    """A view on stdout."""
    if (sys.stdout.isatty() and not is_notebook()) or (lines := view.plain()) is None:
        stdout().print(view)
    else:
        print(*lines, sep="\n", flush=True)  # noqa: T201


def echo_findings(found: Verification) -> None:
    """What a verification has found, a line each, and at last `read 96 samples: no findings`."""
    for one in found.findings:
        echo(f"{one.subject}: {one.fact}")
    count = counted(len(found.findings), "finding") if found.findings else "no findings"
    echo(f"read {counted(found.samples, 'sample')}: {count}")


def merge_view(result: MergeResult) -> RenderableType:
    """What a merge made: the zip, its counts, its statistics."""
    from rich.console import Group

    rows = []
    for name, part in result.statistics.items():
        mean = ", ".join(f"{value:.4f}" for value in part.mean)
        std = ", ".join(f"{value:.4f}" for value in part.std)
        rows.append([name, f"{part.images:,}", mean, std])
    left_out = f", {result.selection.in_words}" if result.selection.kinds else ""
    return Group(
        text(f"{result.path}   {sized(result.size_bytes)}"),
        text(f"{result.samples_stored:,} samples stored, {result.dead_letters:,} dead letters{left_out}"),
        text(""),
        table(["images", "count", "mean", "std"], rows),
    )

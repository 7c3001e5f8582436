"""Run the benchmarks that docs/benchmarks.md has tables of, and replace the tables of those that ran.

    python -m benchmarks                 # every one that is installed: hours
    python -m benchmarks network merge   # these
    python -m benchmarks --list

A table stands between two comments of the page, the first of which is its command. One that fails, or needs
an extra that is not installed, leaves its table as it is. The page is written after each, so a run may be
stopped.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shardgen.depth.device import describe_cpu

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_BLOCK = re.compile(r"(<!-- (python -m benchmarks\.(\w+)[^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """A table of the page: the benchmark's name and its whole command."""

    name: str
    command: str


def tables(page: str) -> Iterator[Table]:
    """In the order of the page."""
    for found in _BLOCK.finditer(page):
        yield Table(name=found[3], command=found[2])


def with_table(page: str, table: Table, printed: str) -> str:
    """The page with what a command printed in the place of its table."""

    def replaced(found: re.Match[str]) -> str:
        return found[0] if found[2] != table.command else f"{found[1]}{printed.strip()}\n{found[5]}"

    return _BLOCK.sub(replaced, page)


def printed_by(table: Table) -> str:
    """What its command prints, and where and when that was. Raises RuntimeError when it fails."""
    words = shlex.split(table.command)
    done = subprocess.run(  # noqa: S603 - a command of our own page
        [sys.executable, *words[1:]], check=False, stdout=subprocess.PIPE, cwd=PAGE.parent.parent
    )
    if done.returncode:
        raise RuntimeError(f"ended with exit code {done.returncode}")
    where = f"{describe_cpu()}, {datetime.now(UTC):%Y-%m-%d}: `{table.command.removesuffix(' --markdown')}`"
    return f"{done.stdout.decode().strip()}\n\n{where}"


def renew(page: Path, names: Sequence[str], run: Callable[[Table], str] = printed_by) -> list[str]:
    """Run the named benchmarks, or all; the names of those whose tables are as before."""
    left = []
    for table in tables(page.read_text(encoding="utf-8")):
        if names and table.name not in names:
            continue
        print(table.command, file=sys.stderr)
        try:
            printed = run(table)
        except RuntimeError as error:
            print(f"left as it is: {error}", file=sys.stderr)
            left.append(table.name)
            continue
        page.write_text(with_table(page.read_text(encoding="utf-8"), table, printed), encoding="utf-8")
    return left


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="as --list has them; without one, all")
    parser.add_argument("--list", action="store_true", help="say which there are, and run nothing")
    options = parser.parse_args()
    known = list(tables(PAGE.read_text(encoding="utf-8")))
    if options.list:
        print("\n".join(f"{table.name:16} {table.command}" for table in known))
        return 0
    if unknown := set(options.names) - {table.name for table in known}:
        parser.error(f"no table of {', '.join(sorted(unknown))} (--list says which there are)")
    return 1 if renew(PAGE, options.names) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The same `kill -9` of a worker on shardgen, img2dataset, datatrove and litdata; then the same command.

    python -m pip install -e ".[bench]"
    python -m benchmarks.kill_resume --venvs DIR --install [--markdown] [--only NAME,NAME]

400 small samples, 2 workers; the one that first begins its 100th is killed. Then: does the command end or
hang, what does its exit code say, what is missing in the data set that it leaves; and the same after the same
command was run again. `made again` counts samples whose making was begun more than once, over both commands.

A project is looked for in DIR/NAME, then beside this Python; what is in neither is reported as not installed.
`--install` makes DIR/NAME for those. img2dataset needs that: it requires opencv-python-headless, whose files
overwrite opencv-python's. litdata in `[bench]` brings 5 GB of PyTorch.

A command that shows no sign of life for `--patience` seconds (no file changes, no output, hardly any CPU)
hangs, and so does one that has not ended after 15 minutes; it is ended, with everything that it started.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.beside.data_sets import DATA_SETS, KILL_AT, SAMPLES, WORKERS, DataSet
from benchmarks.beside.peers import Found, find, install
from benchmarks.beside.table import aligned, markdown
from benchmarks.beside.tally import Tally
from benchmarks.beside.watching import Ending, Watch

HEADER = (
    "what",
    "version",
    "one worker killed",
    "half-written files",
    "missing",
    "the same command again",
    "still missing",
    "twice",
    "made again",
)
NOT_INSTALLED = "not installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One project's two commands, and what each left."""

    first: Ending
    half_written: int | None
    after_first: Tally
    again: Ending
    in_the_end: Tally

    def cells(self) -> tuple[str, ...]:
        """As in the header, from the third on."""
        return (
            str(self.first),
            "not looked at" if self.half_written is None else str(self.half_written),
            str(self.after_first.lost),
            str(self.again),
            str(self.in_the_end.lost),
            str(self.in_the_end.duplicates),
            str(self.in_the_end.redone),
        )


class NobodyKilled(Exception):
    """The command ended before the kill: what it left says nothing."""


def measure(data_set: DataSet, patience_seconds: float) -> Outcome:
    """Kill a worker, see how the command ends, and run it again."""
    data_set.prepare()
    try:
        first = _run(data_set, patience_seconds, kill=True)
        if not data_set.was_killed():
            log = _log(data_set).read_text(encoding="utf-8", errors="replace")
            raise NobodyKilled(f"{data_set.title}: {first}; the end of its output:\n{log[-2000:]}")
        half_written, after_first = data_set.half_written(), _tally(data_set)
        again = _run(data_set, patience_seconds, kill=False)
        return Outcome(
            first=first,
            half_written=half_written,
            after_first=after_first,
            again=again,
            in_the_end=_tally(data_set),
        )
    finally:
        data_set.close()


def _run(data_set: DataSet, patience_seconds: float, *, kill: bool) -> Ending:
    watch = Watch(
        command=data_set.command(),
        environment=data_set.environment(kill=kill),
        folder=data_set.folder,
        log=_log(data_set),
        patience_seconds=patience_seconds,
    )
    return watch.to_its_end(data_set.on_tick if kill else lambda _mark: None)


def _log(data_set: DataSet) -> Path:
    return data_set.folder / "log.txt"


def _tally(data_set: DataSet) -> Tally:
    return Tally.of(planned=range(SAMPLES), stored=data_set.stored(), begun=data_set.begun())


def row(kind: type[DataSet], found: Found | None, outcome: Outcome | None) -> tuple[str, ...]:
    """A line of the table; what is not installed has no figures."""
    if found is None or outcome is None:
        return (kind.title, NOT_INSTALLED, *[""] * (len(HEADER) - 2))
    return (kind.title, found.version, *outcome.cells())


def main() -> None:
    """Parse, measure one after the other, print the table."""
    options = _parser().parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = options.keep or Path(folder)
        for number, kind in enumerate(DATA_SETS):
            if options.only and kind.peer.name not in options.only.split(","):
                continue
            found = find(kind.peer, options.venvs)
            if found is None and options.install and options.venvs:
                install(kind.peer, options.venvs)
                found = find(kind.peer, options.venvs)
            outcome = None
            if found is not None:
                data_set = kind((base / f"{number}-{kind.peer.name}").resolve(), found.python)
                outcome = measure(data_set, options.patience)
            rows.append(row(kind, found, outcome))
            print(": ".join(part for part in rows[-1] if part), file=sys.stderr, flush=True)
    print((markdown if options.markdown else aligned)(HEADER, rows))
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    print(
        f"\n{SAMPLES} samples, {WORKERS} workers, kill -9 of the one that first begins its {KILL_AT}th; "
        f"`hangs`: {options.patience:g} s of silence. {machine}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venvs", type=Path, help="folder of the projects' own environments, by name")
    parser.add_argument("--install", action="store_true", help="make the missing ones there, with pip")
    parser.add_argument("--only", default="", help="names, as in shardgen,litdata")
    parser.add_argument("--patience", type=float, default=40.0, help="seconds of silence until it hangs")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    parser.add_argument("--keep", type=Path, help="a folder for what the commands leave, to look at")
    return parser


if __name__ == "__main__":
    main()

"""What commands take to start: CPU-seconds, beside those of the libraries they need, in turns.

    python -m benchmarks.starting [--rounds 9] [--before CHECKOUT] [--markdown]

`--help` and `status` run to their end, a worker to the word `ready`, and each of the others until something
moves on its terminal. The run has 48 samples and the small network. A first round, which may write bytecode,
is not counted. `--before` lets an older checkout take its turns, too.
"""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.beside.table import aligned, markdown
from tests.runs import make_run, plan_run

HERE = Path(__file__).parent.parent
_READY = b"ready"
_LONGEST = 1 << 16  # bytes that are waited for on a terminal
_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12  # of /proc/PID/stat behind the name
IMPORTS = {
    "typer, rich": "import typer, rich",
    "sqlalchemy, pydantic, typer, rich": "import sqlalchemy, pydantic, typer, rich",
    "tensorflow": "import tensorflow",
}
_MOVING = {
    "plan": ["plan", "RUN"],
    "preview": ["preview", "RUN"],
    "run": ["run", "RUN"],
    "worker": ["worker", "RUN"],
    "extend": ["extend", "RUN"],
    "merge": ["merge", "RUN"],
    "verify": ["verify", "RUN"],
    "export": ["export", "RUN", "RUN/out", "--format", "files", "--partial"],
    "cut-out": ["cut-out", "PHOTOGRAPHS"],
    "doctor": ["doctor"],
}


@dataclass(frozen=True)
class Case:
    """A command line, how its CPU-seconds are taken, and beside which imports."""

    name: str
    words: list[str]
    measure: Callable[[list[str], Path], float]
    beside: str = ""
    before: list[float] = field(default_factory=list)
    now: list[float] = field(default_factory=list)


def to_its_end(command: list[str], folder: Path) -> float:
    """CPU-seconds of a whole process, whatever it says."""
    with _started(command, folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def to_the_word(word: bytes, command: list[str], folder: Path) -> float:
    """CPU-seconds until it says so on stderr; then it is killed."""
    with _started(command, folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr or ():
            if word in line:
                return _seconds_of(process)
    raise RuntimeError(f"{command} never said {word!r}")


def to_the_first_sign(command: list[str], folder: Path) -> float:
    """CPU-seconds until something appears on its terminal; then it is killed."""
    ours, theirs = pty.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        _started(command, folder, stdin=theirs, stdout=theirs, stderr=theirs) as process,
        closing(os.fdopen(theirs, "wb")),
    ):
        screen.read(_LONGEST)
        return _seconds_of(process)


class _started(subprocess.Popen[bytes]):  # noqa: N801 - used like a function
    """A process in a session of its own, all of which is killed at the end."""

    def __init__(self, command: list[str], folder: Path, **streams: int) -> None:
        unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        super().__init__(
            command,
            cwd=folder,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
            **streams,  # type: ignore[call-overload]
        )

    def __exit__(self, *error: object) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(*error)  # type: ignore[arg-type]


def _seconds_of(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def cases() -> list[Case]:
    """All of them."""
    light, heavy = "typer, rich", "sqlalchemy, pydantic, typer, rich"
    return [
        Case("--help", ["--help"], to_its_end, light),
        Case("status", ["status", "RUN"], to_its_end, heavy),
        Case("a worker is ready", ["worker", "RUN"], partial(to_the_word, _READY), "tensorflow"),
        *(Case(f"{name} moves", words, to_the_first_sign, light) for name, words in _MOVING.items()),
    ]


def measure(rounds: int, before: Path | None) -> tuple[list[Case], dict[str, float]]:
    """The cases with their CPU-seconds, and those of the imports: medians."""
    found, imports = cases(), {name: list[float]() for name in IMPORTS}
    with tempfile.TemporaryDirectory(prefix="starting-") as name:
        folder = Path(name)
        planned = plan_run(make_run(folder)).path
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr)
            for which, text in IMPORTS.items():
                imports[which].append(to_its_end([sys.executable, "-c", text], folder))
            for case in found:
                for checkout, seconds in ((HERE, case.now), (before, case.before)):
                    if checkout is not None:
                        seconds.append(_once(case, checkout, planned))
    for case in found:
        del case.now[:1], case.before[:1]
    return found, {which: statistics.median(seconds[1:]) for which, seconds in imports.items()}


def _once(case: Case, checkout: Path, planned: Path) -> float:
    """On a copy of the run: what is killed half-way leaves things behind."""
    copy = planned.with_name("copy")
    shutil.copytree(planned, copy)
    try:
        places = {"RUN": copy, "PHOTOGRAPHS": planned.parent / "sources" / "foregrounds"}
        words = [
            str(places[start] / rest) if (start := word.partition("/")[0]) in places else word
            for word in case.words
            for rest in [word.partition("/")[2]]
        ]
        return case.measure([sys.executable, "-m", "shardgen", *words], checkout)
    finally:
        shutil.rmtree(copy)


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an older checkout, beside this one")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    found, imports = measure(options.rounds, options.before)
    head = ["", "CPU-s", "beside importing", "CPU-s", "ratio"]
    rows = []
    for case in found:
        seconds, others = statistics.median(case.now), imports[case.beside]
        row = [case.name, f"{seconds:.2f}", case.beside, f"{others:.2f}", f"{seconds / others:.2f}"]
        rows.append([*row, f"{statistics.median(case.before):.2f}"] if case.before else row)
    if options.before is not None:
        head.append("CPU-s before")
    print((markdown if options.markdown else aligned)(head, rows))


if __name__ == "__main__":
    main()

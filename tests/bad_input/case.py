"""One case of the table: what is arranged, what is typed, and what a person must see."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardgen.settings.template import settings_text
from tests import warm
from tests.photographs import write_photographs
from tests.runs import SETTINGS

RUN, FOREGROUNDS, BACKGROUNDS = "people", "cut-outs", "scenes"
LOGS = (f"{RUN}/logs", "cache")  # where workers log, whatever becomes of them
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What is the matter with the machine; `arguments` are folders of the box, or bytes."""

    kind: str = ""
    arguments: tuple[str | int, ...] = ()


NOTHING = Condition()
POWERLESS = Condition(kind="powerless")


def read_only(folder: str) -> Condition:
    """A folder on a disk that is mounted read-only."""
    return Condition(kind="read-only", arguments=(folder,))


def full(folder: str, *, free_bytes: int = 0) -> Condition:
    """A folder on a disk of its own with this much left."""
    return Condition(kind="full", arguments=(folder, free_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command said and did."""

    box: Path
    code: int
    stdout: str
    stderr: str
    before: dict[str, Any]
    after: dict[str, Any]
    peak_bytes: int

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.box / RUN

    def changes(self, *allowed: str) -> list[str]:
        """Names that came, went or changed, but for those that begin with an allowed one."""
        names = {
            name for name in {*self.before, *self.after} if self.before.get(name) != self.after.get(name)
        }
        return sorted(name for name in names if not name.startswith(allowed or ("\0",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the table. `says` and `hints` are parts of the `error:` and of the `hint:` line.

    `start` names the box that is copied: `new` has settings and photographs, `planned` a plan, `finished` a
    data set. `lists` are parts of the `  - ` lines above the error. `allowed` are beginnings of names that
    may change; only what `prints` findings or a plan before its error has words on stdout. With code 0
    there is neither error nor hint, and `check` looks at what was made.
    """

    name: str
    arguments: tuple[str, ...]
    code: int
    says: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    start: str = "new"
    arrange: Callable[[Path], object] = lambda _box: None
    condition: Condition = NOTHING
    environment: dict[str, str] = field(default_factory=dict)
    from_the_start: bool = False
    peak_bytes: int = 0
    prints: bool = False
    allowed: tuple[str, ...] = ()
    check: Callable[[Outcome], object] = lambda _outcome: None


def judge(case: Case, outcome: Outcome) -> None:
    """Raise AssertionError unless all that the table promises of the case is so."""
    lines = outcome.stderr.splitlines()
    told = f"\n$ shardgen {' '.join(case.arguments)}\n{outcome.stdout}\n{outcome.stderr}"
    assert outcome.code == case.code, f"exit code {outcome.code}, not {case.code}{told}"
    assert "Traceback" not in outcome.stderr + outcome.stdout, told
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    if case.code == 0:
        assert not errors + hints, told
    else:
        assert (len(errors), len(hints)) == (1, 1), told
        assert lines[-2:] == errors + hints, told
        _assert_parts("error", errors[0], case.says, told)
        _assert_parts("hint", hints[0], case.hints, told)
        assert "RUN_DIR" not in hints[0], told
        assert case.says, "the table must say what is wrong"
        assert case.hints, "the table must say what to type"
    listed = "\n".join(line for line in lines if line.startswith("  - "))
    _assert_parts("list", listed, case.lists, told)
    if case.code != 0:
        assert case.prints or not outcome.stdout, f"stdout is for results{told}"
        allowed = case.allowed + (LOGS if case.arguments[0] in ("run", "worker") else ())
        assert not outcome.changes(*allowed), outcome.changes(*allowed)
    if case.peak_bytes:
        assert outcome.peak_bytes < case.peak_bytes, f"{outcome.peak_bytes:,} bytes{told}"
    case.check(outcome)


def _assert_parts(what: str, line: str, parts: tuple[str, ...], told: str) -> None:
    for part in parts:
        assert part in line, f"{part!r} is not in the {what}{told}"


class Stage:
    """The process that runs the commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bad_input.stage"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: Case, box: Path) -> Outcome | str:
        """Run the case's command in its box; a text says why this machine cannot."""
        kind = case.condition.kind
        request = {
            "folder": str(box),
            "arguments": case.arguments,
            "environment": {"PYTHONPATH": str(ROOT), "SHARDGEN_CACHE": str(box / "cache")} | case.environment,
            "condition": kind,
            "condition_arguments": [
                str(box / one) if isinstance(one, str) else one for one in case.condition.arguments
            ],
            # Root's rights are gone only once another program runs, and the peak is that of one alone.
            "from_the_start": case.from_the_start or kind == "powerless" or bool(case.peak_bytes),
            "timeout_seconds": 120,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "broken" not in answer, answer["broken"]
        return str(answer["impossible"]) if "impossible" in answer else Outcome(box=box, **answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def new_box(box: Path) -> None:
    """Photographs and settings, with relative paths, so that a copy is a run of its own."""
    write_photographs(box / "sources")
    (box / "sources" / "foregrounds").rename(box / FOREGROUNDS)
    (box / "sources" / "backgrounds").rename(box / BACKGROUNDS)
    (box / "sources").rmdir()
    (box / RUN).mkdir()
    text = settings_text(
        foregrounds=Path("..", FOREGROUNDS),
        backgrounds=Path("..", BACKGROUNDS),
        weights="small",
        changes=SETTINGS,
    )
    (box / RUN / "shardgen.toml").write_text(text, encoding="utf-8")


def boxes(folder: Path) -> dict[str, Path]:
    """The boxes that cases start from, made with the real command."""
    made = {name: folder / name for name in ("new", "planned", "finished")}
    made["new"].mkdir(parents=True)
    new_box(made["new"])
    for name, before, arguments in (
        ("planned", "new", ("plan", RUN)),
        ("finished", "planned", ("run", RUN, "--device", "cpu")),
    ):
        shutil.copytree(made[before], made[name])
        cache = {"SHARDGEN_CACHE": str(made[name] / "cache")}
        done = warm.run("shardgen", arguments, environment=cache, folder=made[name])
        assert done.returncode == 0, done.stderr
    return made

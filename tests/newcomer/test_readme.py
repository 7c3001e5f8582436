from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardgen.settings.template import settings_text
from tests import warm
from tests.newcomer.shown import SHOWN
from tests.newcomer.terminals import State, Terminal, Terminals, shrink
from tests.photographs import write_photographs

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BENCHMARKS_PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
BLOCKS = [
    [command.strip() for line in block.splitlines() for command in line.split(" && ")]
    for block in re.findall(r"^```sh\n(.*?)^```", README + CONTRIBUTING, re.MULTILINE | re.DOTALL)
]
IN_TEXT = [
    command.strip()
    for code in re.findall(
        r"`([^`]+)`",
        re.sub(r"^```.*?^```", "", README + CONTRIBUTING + BENCHMARKS_PAGE, flags=re.MULTILINE | re.DOTALL),
    )
    if re.match(r"(?:shardgen|python3?|apt-get|export|du|mv|rm|\.) ", code)
    for command in code.replace("\n", " ").split(" && ")
]
COMMANDS = list(dict.fromkeys([command for block in BLOCKS for command in block] + IN_TEXT))
OWN_DATA_SET = [command for block in BLOCKS for command in block if re.match(r"shardgen (?!demo)", command)]
THREE_LINES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

# Beginnings of commands that no test types, and why.
EXCUSED = {
    "apt-get ": "needs root; a machine that lacks the libraries is played in test_bare_machine.py",
    "python3 -m venv .venv": "`.ci/run` begins with it",
    ". .venv/bin/activate": "`.ci/run` begins with it",
    'python -m pip install -e ".[': "`.ci/run` begins with it",
    "python -m pytest": "is what is running now",
    "python -m ruff ": "`.ci/run` does it",
    "python -m mypy": "`.ci/run` does it",
    "python -m tests.chaos ": "tests/chaos plays the same for a shorter time",
    "python -m benchmarks": "minutes to hours; below their options are compared with those that they have",
    "du -sh .venv": "measures an installation",
}
NAMES = {"shardgen run"}  # the head of a row in a table


def test_every_command_of_the_readme_is_typed_by_a_test_or_excused() -> None:
    typed = {*OWN_DATA_SET, *SHOWN, *NAMES}
    untyped = [one for one in COMMANDS if one not in typed and not one.startswith(tuple(EXCUSED))]
    assert untyped == [], "say in shown.py where they are typed and what comes of it"
    for beginning in EXCUSED:
        assert any(one.startswith(beginning) for one in COMMANDS), f"{beginning!r} is excused for nothing"


def test_each_way_to_share_a_run_names_extras_that_there_are() -> None:
    there = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    (rows,) = re.findall(r"^\| they share \| extra \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    for row in rows.splitlines():
        named = {one for words in re.findall(r"`([^`]+)`", row.split(" | ")[1]) for one in words.split(",")}
        assert named, row
        assert named <= there, row
    for extras in re.findall(r"pip install -e \"\.\[([\w,]+)\]", README):
        assert {*extras.split(",")} <= there


@pytest.mark.slow
def test_ones_own_data_set_is_made_by_the_commands_in_their_order(terminals: Terminals) -> None:
    terminal = terminals.at(State.PORTRAITS)
    for command in OWN_DATA_SET:
        said = terminal.type(command)
        assert said.code == 0, said
        if command.startswith("shardgen init"):
            shrink(terminal, foregrounds="portraits")
    assert "read 96 samples: no findings" in said.out
    assert (terminal.folder / "people" / "preview.png").is_file()
    (reading,) = THREE_LINES
    look = "print(composite.shape, mask.shape, depth.shape)"
    said = terminal.type(f"python -c {shlex.quote(reading + look)}")
    assert said.out == "(24, 32, 3) (24, 32) (24, 32)\n", said


@pytest.mark.slow
def test_the_readmes_arithmetic_is_what_plan_prints(tmp_path: Path) -> None:
    stated = re.search(
        r"(\d+) backgrounds x (\d+) people x 2 \(mirrored\) x 20 places = (\S+) samples, (.+?) \(one V100\)",
        README.replace("\n", " ").replace("\N{MULTIPLICATION SIGN}", "x"),
    )
    assert stated is not None
    backgrounds, people, samples, time = stated.groups()
    write_photographs(tmp_path, foregrounds=int(people), backgrounds=int(backgrounds))
    text = settings_text(
        foregrounds=Path("../foregrounds"), backgrounds=Path("../backgrounds"), weights="small"
    )
    settings = tmp_path / "people" / "shardgen.toml"
    settings.parent.mkdir()
    settings.write_text(text, encoding="utf-8")
    said = Terminal(tmp_path).type("shardgen plan people --rate 6.4")
    facts = dict(re.findall(r"^(\S+(?: \S+)*) {2,}(\S.*?) *$", said.out, re.MULTILINE))
    assert (facts["samples"], facts["time"]) == (samples, time), said


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Where a row of the table "It stopped" is met, and the command and exit code that show it."""

    at: State
    seen_by: str = ""
    code: int = 0


# As soon as something is stored.
KILLED = (
    "shardgen run people & until ls people/artifacts/shard-*/*.zip >seen 2>&1; do sleep 0.05; done; "
    "kill -KILL $!; exit 9"
)
TROUBLES = {
    "the terminal or machine is gone": Trouble(at=State.PLANNED, seen_by=KILLED, code=9),
    "nothing seems to move": Trouble(at=State.MADE),
    "`samples are pending` (exit 14)": Trouble(at=State.PLANNED, seen_by="shardgen merge people", code=14),
    "`dead letters` (exit 15)": Trouble(at=State.DEAD, seen_by="shardgen merge people", code=15),
    # To block a slice takes minutes of deaths: tests/worker/test_poison.py has them.
    "`blocked slices`": Trouble(at=State.PLANNED),
    "`the receipt says` or `is gone` (exit 20-29)": Trouble(
        at=State.DAMAGED, seen_by="shardgen verify people", code=21
    ),
    "`no manifest`, or it is gone or damaged": Trouble(
        at=State.LOST, seen_by="shardgen status people", code=11
    ),
    "`plan.json` is gone or damaged": Trouble(
        at=State.MADE, seen_by="rm people/plan.json; shardgen verify people"
    ),
    "the disk fills up with left-overs of kills": Trouble(
        at=State.DEAD, seen_by="shardgen requeue people --dead-letters"
    ),
    "`error:` of another kind": Trouble(at=State.MADE),
}
ROWS = {
    cells[1].strip(): cells[3]
    for line in README.partition("| you see |")[2].partition("\n\n")[0].splitlines()
    if len(cells := line.split("|")) == 5 and not cells[1].startswith("---")
}


def test_the_table_of_troubles_has_these_rows() -> None:
    assert set(ROWS) == set(TROUBLES)


@pytest.mark.slow
@pytest.mark.parametrize("seen", sorted(ROWS))
def test_after_the_remedy_the_same_command_makes_the_whole_data_set(terminals: Terminals, seen: str) -> None:
    trouble = TROUBLES[seen]
    terminal = terminals.at(trouble.at)
    if trouble.seen_by:
        assert terminal.type(trouble.seen_by).code == trouble.code
    for command in re.findall(r"`(shardgen [^`]+)`", ROWS[seen]):
        if "--allow-dead-letters" not in command:  # the other way out
            _type(terminal, command)
    if "--yes" in ROWS[seen]:
        assert "removed 2 orphans" in terminal.type("shardgen sweep people --yes").out
    assert terminal.type("shardgen run people").code == 0
    assert "read 96 samples: no findings" in terminal.type("shardgen verify people/dataset.zip").out


def _type(terminal: Terminal, command: str) -> None:
    said = terminal.type(command)
    assert said.code == (21 if command.endswith("--requeue") else 0), said


BENCHMARKS = sorted(one for one in COMMANDS if one.startswith("python -m benchmarks."))


@pytest.mark.slow
@pytest.mark.parametrize("command", BENCHMARKS)
def test_the_benchmarks_have_the_options_that_are_shown(command: str) -> None:
    module, *options = command.split()[2:]
    said = warm.run(module, ["--help"], folder=ROOT)
    assert said.returncode == 0, said.stderr
    for option in options:
        if option.startswith("--"):
            assert re.search(rf"{option}\b", said.stdout), option


def test_ci_installs_and_tests_as_contributing_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    script = re.sub(r'"\$work/(venv[^"]*)"', r".\1", script).replace(" --quiet", "")
    lines = [line.strip() for line in script.splitlines()]
    block = next(block for block in BLOCKS if block[-1].startswith("python -m pytest "))
    places = [
        next(number for number, line in enumerate(lines) if line.startswith(command.partition("  #")[0]))
        for command in block
    ]
    assert places == sorted(places)
    fast = block[-1]
    assert fast.endswith('-m "not slow"')
    # Then everything else; a part that ran no test fails, by pytest's exit code 5.
    rest = fast.replace('"not slow"', "slow")
    tests = [line for line in lines if "pytest" in line and not line.startswith("#")]
    assert tests == [f"{fast} --durations=25", f"{rest} --durations=25"]
    assert "set -euo pipefail" in lines

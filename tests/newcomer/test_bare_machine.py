from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.newcomer.terminals import Said, State, Terminal, Terminals

NEEDS_OPENCV = (
    "shardgen plan people",
    "shardgen preview people",
    "shardgen run people",
    "shardgen worker people",
    "shardgen merge people",
    "shardgen demo",
)
NEEDS_NONE = (
    "shardgen --help",
    "shardgen init other --foregrounds cut-outs --backgrounds scenes",
    "shardgen status people",
    "shardgen dead-letters people",
    "shardgen sweep people",
    "shardgen verify people",
    "shardgen backup people",
    "shardgen requeue people --dead-letters",
)

pytestmark = pytest.mark.slow  # each test starts commands


def without_libgl(terminal: Terminal, line: str) -> Said:
    """The loader finds an empty file where OpenCV asks for its library, and really fails."""
    libraries = terminal.folder / "libraries"
    libraries.mkdir(exist_ok=True)
    (libraries / "libGL.so.1").touch()
    return terminal.type(line, more={"LD_LIBRARY_PATH": str(libraries)})


@pytest.mark.parametrize("line", NEEDS_OPENCV)
def test_a_machine_without_opencvs_library_is_told_what_to_install(terminals: Terminals, line: str) -> None:
    terminal = terminals.at(State.PLANNED)
    before = sorted(path for path in terminal.folder.rglob("*") if path.is_file())
    said = without_libgl(terminal, line)
    error, hint = said.err.splitlines()[-2:]
    assert said.code == 18, said
    assert error.startswith("error: opencv-python cannot be loaded: "), said
    assert "libGL.so.1" in error
    assert hint == "hint: on Debian or Ubuntu, as root: apt-get install -y libgl1 libglib2.0-0"
    after = sorted(path for path in terminal.folder.rglob("*") if path.is_file())
    assert [path for path in after if path.name != "libGL.so.1" and path.suffix != ".log"] == before


@pytest.mark.parametrize("line", NEEDS_NONE)
def test_what_needs_no_pixels_works_without_it(terminals: Terminals, line: str) -> None:
    said = without_libgl(terminals.at(State.PLANNED), line)
    assert said.code == 0, said


@pytest.mark.slow
def test_doctor_names_the_missing_library_and_goes_on(terminals: Terminals) -> None:
    said = without_libgl(terminals.at(State.PLANNED), "shardgen doctor people")
    assert said.code == 19, said
    assert "apt-get install -y libgl1 libglib2.0-0" in said.out
    assert "96 samples, 96 pending" in said.out


@pytest.mark.slow
def test_doctor_says_where_weights_could_not_be_kept(terminals: Terminals) -> None:
    nowhere = "/proc/nowhere/cache"
    said = terminals.at(State.PHOTOGRAPHS).type("shardgen doctor", more={"SHARDGEN_CACHE": nowhere})
    assert f"{nowhere}: cannot be written" in said.out
    assert "export SHARDGEN_CACHE=DIR" in said.out


@pytest.mark.slow
@pytest.mark.parametrize("line", ["plan people", "status people", "status people --json", "doctor people"])
def test_a_terminal_that_knows_only_ascii_gets_its_answer(terminals: Terminals, line: str) -> None:
    terminal = terminals.at(State.PLANNED)
    (terminal.folder / "people").rename(terminal.folder / "été")
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    said = terminal.type(f"shardgen {line.replace('people', 'été')}", more=ascii_only)
    assert said.code == 0, said
    assert (said.out + said.err).isascii()


def test_status_needs_no_more_than_the_80_columns_of_a_terminal(terminals: Terminals) -> None:
    terminal = terminals.at(State.PLANNED)
    wide = on_a_terminal(terminal, "shardgen status people", columns=110)
    assert "untouched" in wide
    assert "12 untouched" not in wide
    narrow = on_a_terminal(terminal, "shardgen status people", columns=60)
    assert "slices" in narrow
    assert "untouched" in narrow
    assert all(len(line) <= 60 for line in narrow.splitlines())
    rows = [line.split() for line in narrow.splitlines()]
    assert ["0", "0-19", "0", "0", "20", "3", "untouched"] in rows, narrow


def on_a_terminal(terminal: Terminal, line: str, *, columns: int) -> str:
    """What a terminal of so many columns shows."""
    said = terminal.type(
        f'script --quiet --return --command "{line}" typescript',
        more={"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"},
    )
    assert said.code == 0, said
    text = Path(terminal.folder / "typescript").read_text(encoding="utf-8")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return "\n".join(one for one in text.splitlines() if not one.startswith("Script "))


def test_a_reader_that_has_seen_enough_ends_nothing_badly(terminals: Terminals) -> None:
    said = terminals.at(State.PLANNED).type("set -o pipefail; shardgen status people | head -1")
    assert said.code in (0, 141), said
    assert said.out.startswith("planned 96")
    assert said.err == "" or said.err.startswith("to continue: shardgen run people")


def test_who_leaves_out_the_run_directory_is_told_its_name(terminals: Terminals) -> None:
    said = terminals.at(State.PLANNED).type("shardgen status")
    assert said.code == 11, said
    assert said.err.splitlines()[-1] == "hint: name the run directory: people"


@pytest.mark.slow
def test_photographs_are_checked_before_weights_are_fetched(terminals: Terminals) -> None:
    terminal = terminals.at(State.PHOTOGRAPHS)
    assert terminal.type("shardgen init people --foregrounds cut-outs --backgrounds scenes").code == 0
    (terminal.folder / "cut-outs" / "notes.png").write_text("none")
    assert terminal.type("shardgen plan people").code == 16
    (terminal.folder / "cut-outs" / "notes.png").unlink()
    assert terminal.type("shardgen plan people").code == 33
    assert not (terminal.folder / "people" / "plan.json").exists()

from __future__ import annotations

import json
import re
import shlex

import pytest

from shardgen import __version__
from tests.newcomer.terminals import State, Terminal, Terminals


def hint_of(terminal: Terminal, line: str, *, code: int) -> str:
    """The last line on stderr, which is the hint."""
    said = terminal.type(line)
    assert said.code == code, said
    last = said.err.splitlines()[-1]
    assert last.startswith("hint: "), said
    return last.removeprefix("hint: ")


def test_the_version_needs_no_command(terminals: Terminals) -> None:
    said = terminals.at(State.PHOTOGRAPHS).type("shardgen --version")
    assert (said.code, said.out) == (0, f"shardgen {__version__}\n")


def test_a_plan_that_was_edited_is_written_again_as_its_hint_says(terminals: Terminals) -> None:
    terminal = terminals.at(State.PLANNED)
    plan = terminal.folder / "people" / "plan.json"
    whole = plan.read_bytes()
    plan.write_bytes(whole + b"x")
    assert "move it away; then `shardgen plan people`" in hint_of(terminal, "shardgen status people", code=23)
    plan.unlink()
    assert "unchanged" in terminal.type("shardgen plan people").out
    assert plan.read_bytes() == whole


def test_what_is_no_data_set_is_not_to_be_replaced_by_one(terminals: Terminals) -> None:
    terminal = terminals.at(State.PHOTOGRAPHS)
    hint = hint_of(terminal, "shardgen verify scenes/background-000.jpg", code=21)
    assert "merge DIR -o" not in hint
    assert "name a run directory" in hint
    assert "init NEW_DIR" in hint_of(terminal, "shardgen status scenes", code=11)


def test_the_demo_needs_a_folder(terminals: Terminals) -> None:
    terminal = terminals.at(State.PHOTOGRAPHS)
    (terminal.folder / "people.zip").write_text("mine")
    assert "shardgen demo DIR" in hint_of(terminal, "shardgen demo people.zip", code=10)


@pytest.mark.slow
def test_the_hint_of_verify_names_the_run_directory_that_was_typed(terminals: Terminals) -> None:
    assert "shardgen plan people" in hint_of(terminals.at(State.LOST), "shardgen verify people", code=11)


@pytest.mark.parametrize("line", ["shardgen plan {}", "shardgen status {}", "shardgen sweep {}"])
def test_a_name_with_spaces_can_be_pasted_back(terminals: Terminals, line: str) -> None:
    terminal = terminals.at(State.PLANNED)
    (terminal.folder / "people").rename(terminal.folder / "my set")
    said = terminal.type(line.format("'my set'"))
    assert said.code == 0, said
    for shown in re.findall(r"[`:] ?(shardgen [^`;\n]*)", said.err):
        assert "my set" in shlex.split(shown)


@pytest.mark.slow
def test_nobody_is_told_to_wait_for_nothing(terminals: Terminals) -> None:
    """The second worker has nothing to do, and ends soon after the first."""
    terminal = terminals.at(State.INITIALISED)
    settings = terminal.folder / "people" / "shardgen.toml"
    text = settings.read_text(encoding="utf-8")
    text = text.replace("slice_batches = 2", "slice_batches = 100").replace("size = 20 ", "size = 100 ")
    text = text.replace("\nseconds = 30 ", "\nseconds = 180 ")
    text = text.replace("heartbeat_seconds = 0.5", "heartbeat_seconds = 60")
    settings.write_text(text, encoding="utf-8")
    assert terminal.type("shardgen run people --workers 2").code == 0
    workers = json.loads(terminal.type("shardgen status people --json").out)["workers"]
    ages = [one["last_beat_seconds"] for one in workers]
    assert len(ages) == 2
    assert max(ages) - min(ages) < 15, workers

from __future__ import annotations

import json
import shlex

import pytest

from shardgen import __version__
from tests.newcomer.desks import Desk, Desks, State


def hint_of(desk: Desk, line: str, *, code: int) -> str:
    """The last line on stderr, which is the hint."""
    said = desk.type(line)
    assert said.code == code, said
    last = said.err.splitlines()[-1]
    assert last.startswith("hint: "), said
    return last.removeprefix("hint: ")


def test_the_version_needs_no_command(desks: Desks) -> None:
    said = desks.at(State.PHOTOGRAPHS).type("shardgen --version")
    assert (said.code, said.out) == (0, f"shardgen {__version__}\n")


def test_a_plan_that_was_edited_is_written_again_as_its_hint_says(desks: Desks) -> None:
    desk = desks.at(State.PLANNED)
    plan = desk.folder / "people" / "plan.json"
    whole = plan.read_bytes()
    plan.write_bytes(whole + b"x")
    assert "move it away; then `shardgen plan people`" in hint_of(desk, "shardgen status people", code=23)
    plan.unlink()
    assert "as it was" in desk.type("shardgen plan people").out
    assert plan.read_bytes() == whole


def test_what_is_no_data_set_is_not_to_be_replaced_by_one(desks: Desks) -> None:
    desk = desks.at(State.PHOTOGRAPHS)
    hint = hint_of(desk, "shardgen verify scenes/background-000.jpg", code=21)
    assert "merge DIR -o" not in hint
    assert "name a run directory" in hint
    assert "init NEW_DIR" in hint_of(desk, "shardgen status scenes", code=11)


def test_the_demo_needs_a_folder(desks: Desks) -> None:
    desk = desks.at(State.PHOTOGRAPHS)
    (desk.folder / "people.zip").write_text("mine")
    assert "shardgen demo DIR" in hint_of(desk, "shardgen demo people.zip", code=10)


@pytest.mark.slow
def test_the_hint_of_verify_names_the_run_directory_that_was_typed(desks: Desks) -> None:
    assert "shardgen plan people" in hint_of(desks.at(State.LOST), "shardgen verify people", code=11)


@pytest.mark.parametrize("line", ["shardgen plan {}", "shardgen status {}", "shardgen sweep {}"])
def test_a_name_with_spaces_can_be_pasted_back(desks: Desks, line: str) -> None:
    desk = desks.at(State.PLANNED)
    (desk.folder / "people").rename(desk.folder / "my set")
    said = desk.type(line.format("'my set'"))
    assert said.code == 0, said
    for shown in said.err.split(": shardgen ")[1:]:
        assert "my set" in shlex.split(shown.partition(";")[0])


@pytest.mark.slow
def test_nobody_is_told_to_wait_for_nothing(desks: Desks) -> None:
    """The second worker has nothing to do, and ends soon after the first."""
    desk = desks.at(State.INITIALISED)
    settings = desk.folder / "people" / "shardgen.toml"
    text = settings.read_text(encoding="utf-8")
    text = text.replace("slice_batches = 2", "slice_batches = 100").replace("size = 20 ", "size = 100 ")
    text = text.replace("\nseconds = 30 ", "\nseconds = 180 ")
    text = text.replace("heartbeat_seconds = 0.5", "heartbeat_seconds = 60")
    settings.write_text(text, encoding="utf-8")
    assert desk.type("shardgen run people --workers 2").code == 0
    workers = json.loads(desk.type("shardgen status people --json").out)["workers"]
    ages = [one["last_beat_seconds"] for one in workers]
    assert len(ages) == 2
    assert max(ages) - min(ages) < 15, workers

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from shardgen.cli.app import app
from tests.newcomer.shown import SHOWN
from tests.newcomer.terminals import State, Terminals
from tests.newcomer.test_readme import COMMANDS


def _commands(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every command with its help, those of groups too."""
    for word, sub in getattr(command, "commands", {}).items():
        yield from _commands(sub, f"{name} {word}")
    if not hasattr(command, "commands"):
        yield name, command.help


HELP = dict(_commands(typer.main.get_command(app), "shardgen"))
EXAMPLES = {
    name: [line.strip() for line in text.partition("Example:")[2].splitlines() if line.strip()]
    for name, text in HELP.items()
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_command_has_examples_of_its_own_on_lines_of_their_own(name: str) -> None:
    assert EXAMPLES[name]
    assert all(f"{example} ".startswith(f"{name} ") for example in EXAMPLES[name])
    assert "\n\n\b\nExample:\n" in HELP[name]  # or the paragraph is filled, and the example with it


@pytest.mark.parametrize("line", ["shardgen --help", "shardgen weights --help"])
def test_the_lists_of_commands_cut_no_sentence_off(terminals: Terminals, line: str) -> None:
    said = terminals.at(State.PHOTOGRAPHS).type(line)
    assert "Commands:" in said.out
    assert "..." not in said.out.partition("Commands:")[2]


def test_every_example_of_the_help_is_typed_by_a_test() -> None:
    untyped = [one for examples in EXAMPLES.values() for one in examples if one not in SHOWN]
    assert untyped == [], "say in shown.py where they are typed and what comes of it"


def test_nothing_is_typed_that_nobody_shows() -> None:
    shown = {one for examples in EXAMPLES.values() for one in examples} | set(COMMANDS)
    assert set(SHOWN) <= shown


@pytest.mark.slow
@pytest.mark.parametrize("command", SHOWN)
def test_every_shown_command_does_what_it_shows(terminals: Terminals, command: str) -> None:
    SHOWN[command].check(terminals, command)

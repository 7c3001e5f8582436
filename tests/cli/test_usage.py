"""What a person types wrongly is answered in our words, with what was probably meant."""

from __future__ import annotations

import pytest
import typer

from shardgen.cli.app import app
from shardgen.cli.commands import LINES
from shardgen.errors import WrongOption, choose
from tests.cli.test_interface import OPTIONS
from tests.runs import shardgen


def test_every_command_knows_h() -> None:
    group = typer.main.get_command(app)
    context = group.make_context("shardgen", [], resilient_parsing=True)
    for name in OPTIONS:
        command = group
        above = context
        for word in name.split():
            command = command.get_command(above, word)  # type: ignore[attr-defined]
            above = command.make_context(word, [], parent=above, resilient_parsing=True)
        assert set(command.get_help_option_names(above)) == {"-h", "--help"}, name


@pytest.mark.parametrize("words", [["-h"], ["run", "-h"], ["weights", "fetch", "-h"]], ids=" ".join)
def test_h_is_help(words: list[str]) -> None:
    done = shardgen(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == shardgen(*words[:-1], "--help").stdout
    assert done.stdout.startswith(f"Usage: shardgen {' '.join(words[:-1])}".rstrip())


def test_a_word_is_chosen_in_any_case() -> None:
    assert choose("GPU", ("auto", "cpu", "gpu"), option="device") == "gpu"
    with pytest.raises(WrongOption, match=r"'gp' is not one of auto, cpu, gpu; did you mean gpu\?"):
        choose("gp", ("auto", "cpu", "gpu"), option="device")
    with pytest.raises(WrongOption) as refused:
        choose("quantum", ("auto", "cpu", "gpu"), option="device")
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_command_with_a_letter_too_few_is_recognised(name: str) -> None:
    typed = name[:1] + name[2:] if len(name) > 3 else name + name[-1]
    done = shardgen(typed)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: no such command: {typed}\nhint: did you mean {name}? Otherwise see: shardgen --help\n"
    )

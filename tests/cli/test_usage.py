"""What a person types wrongly is answered in our words, with what was probably meant."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import typer

from shardgen.cli import logs
from shardgen.cli.app import _deliberate, app
from shardgen.cli.commands import LINES
from shardgen.errors import PlanConflict, WrongOption, choose
from shardgen.storage.log_file import open_log
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["verify", "--requeue", "ZIP"],
            "--requeue: needs a run directory: a zip has no manifest",
        ),
        (
            ["run", "people", "--device", "g pu"],
            "--device: 'g pu' is not one of auto, cpu, gpu; did you mean gpu?",
        ),
        (
            ["init", "s3://bucket/people"],
            "RUN_DIR must be a folder on this machine; add --bucket s3://bucket/people",
        ),
    ],
)
def test_what_was_typed_is_said_once_and_not_of_a_flag(words: list[str], said: str, tmp_path: Path) -> None:
    (path := tmp_path / "people.zip").touch()
    done = shardgen(*(path if word == "ZIP" else word for word in words))
    assert done.stderr == f"error: {said}\nhint: shardgen {words[0]} --help\n"


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_command_with_a_letter_too_few_is_recognised(name: str) -> None:
    typed = name[:1] + name[2:] if len(name) > 3 else name + name[-1]
    done = shardgen(typed)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: no such command: {typed}\nhint: did you mean {name}? Otherwise see: shardgen --help\n"
    )


def test_each_of_several_problems_has_a_line_on_stderr_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = tuple(f"photograph {number} is gone" for number in range(23))
    conflict = PlanConflict(f"the folder: not as planned: {'; '.join(problems[:3])}", problems=problems)
    log = open_log(tmp_path / "worker.log")
    log.name = logs._FILE
    monkeypatch.setattr(logging.getLogger("shardgen"), "handlers", [log])
    monkeypatch.setattr(sys, "argv", ["shardgen", "worker"])
    assert _deliberate(conflict) == 10
    log.close()
    lines = [
        *(f"  - photograph {number} is gone" for number in range(20)),
        "  - and 3 more",
        "error: the folder: not as planned: 23 problems",
    ]
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("log: ")]
    assert said == lines
    text = (tmp_path / "worker.log").read_text(encoding="utf-8")
    assert lines[-1] in text.splitlines()[0]
    assert [line.strip() for line in text.splitlines()[1:22]] == [line.strip() for line in lines[:-1]]


def test_a_single_problem_stands_in_the_error_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["shardgen", "worker"])
    _deliberate(PlanConflict("not as planned: a.png", hint="copy it", problems=("a.png",)))
    assert capsys.readouterr().err == "error: not as planned: a.png\nhint: copy it\n"

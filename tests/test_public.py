"""What is public: the names that docs/python.md shows, and nothing else."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import shardgen
from shardgen import errors
from shardgen.cli.commands import load
from shardgen.errors import InputMissing, WrongOption
from tests.runs import shardgen as cli

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
FUNCTIONS = ("cut_out", "init", "plan", "preview", "run", "status", "merge", "verify", "export")
FOR_PROGRAMS = {"--json"}  # what it prints, a function returns


def test_the_public_names_are_those_of_the_page_and_all_are_there() -> None:
    shown = {
        *re.findall(r"`shardgen\.(\w+)", PAGE),
        *re.findall(r"^\|.*\| `([A-Z]\w+)`:", PAGE, re.MULTILINE),
    }
    about = {"__all__", "notebook", "toml"}
    assert {name for name in shardgen.__all__ if name != "__version__"} == shown - about
    assert set(dir(shardgen)) >= set(shardgen.__all__)
    for name in shardgen.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(shardgen, name)), name
    with pytest.raises(AttributeError, match="'nowhere'"):
        shardgen.nowhere  # type: ignore[attr-defined]  # noqa: B018


def test_the_page_lists_all_that_progress_says() -> None:
    (rows,) = re.findall(r"^\| `doing` \|.*\n\|[-|]*\n((?:\|.*\n)*)", PAGE, re.MULTILINE)
    listed = re.findall(r"^\| `([^`]+)`", rows, re.MULTILINE)
    described = re.findall('"([a-z][^"]*)"', " ".join((shardgen.Progress.__doc__ or "").split()))
    assert listed == described


def test_the_page_names_every_error_that_a_caller_may_meet() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", PAGE.partition("| family |")[2], re.MULTILINE)
    shown = {family: set(re.findall(r"`(\w+)`", names)) for family, names in rows}
    every = [one for one in vars(errors).values() if isinstance(one, type)]
    inside = (errors.SampleError, errors.LeaseLost)  # these never leave a worker
    families = {one for one in every if errors.ShardgenError in one.__bases__ and not issubclass(one, inside)}
    assert shown == {
        family.__name__: {one.__name__ for one in every if issubclass(one, family) and one is not family}
        for family in families
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_options_of_its_command(name: str) -> None:
    row = re.search(rf"^\| `shardgen\.{name}\(.*\|(.*)\|$", PAGE, re.MULTILINE)
    assert row is not None
    lacks = set(re.findall(r"`(--[a-z-]+)`", row[1]))
    parameters = inspect.signature(getattr(shardgen, name)).parameters.values()
    named = [one for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "on_progress"]
    options = {
        max(parameter.opts, key=len)
        for parameter in load(name.replace("_", "-")).params
        if parameter.param_type_name == "option" and parameter.name != "help"
    }
    assert {f"--{one.name.replace('_', '-')}" for one in named} == options - lacks - FOR_PROGRAMS
    assert lacks <= options


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_typed_and_its_options_are_named(name: str) -> None:
    function = getattr(shardgen, name)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    assert set(hints) == {"return", *(one.name for one in parameters)}
    others = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]
    assert [one.name for one in others] in (["folder"], ["run_dir"], ["subject"], ["subject", "out"])


def test_importing_the_package_imports_nothing_of_it() -> None:
    script = "import sys, shardgen; print(sorted(one for one in sys.modules if one.startswith('shardgen.')))"
    script += "; print({'numpy', 'pydantic', 'sqlalchemy', 'tensorflow', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nset()\n"


def test_the_example_of_the_page_is_the_file() -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    text = (ROOT / "examples" / "whole_run.py").read_text(encoding="utf-8")
    assert shown == text.partition('"""\n\n')[2]


def test_hints_name_the_run_directory_of_their_own_call(tmp_path: Path) -> None:
    for name in ("people", "other people"):
        with pytest.raises(InputMissing) as missing:
            shardgen.status(tmp_path / name)
        shown = f"'{tmp_path / name}'" if " " in name else str(tmp_path / name)
        assert missing.value.hint == f"shardgen init {shown} --foregrounds DIR --backgrounds DIR"


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda: shardgen.init("s3://bucket/people"), "run_dir"),
        (lambda: shardgen.init("people", bucket="s3://bucket/people", shared_folder=True), "bucket"),
        (lambda: shardgen.preview("people", samples=0), "samples"),
        (lambda: shardgen.run("people", limit=0), "limit"),
        (lambda: shardgen.run("people", limit="100"), "limit"),  # type: ignore[arg-type]
        (lambda: shardgen.run("people", deadline="11h"), "deadline"),  # type: ignore[arg-type]
        (lambda: shardgen.run("people", gpus="0,2"), "gpus"),
        (lambda: shardgen.run("people", gpus=0), "gpus"),  # type: ignore[arg-type]
        (lambda: shardgen.merge("people", exclude="foregrounds/anna.png"), "exclude"),
        (lambda: shardgen.export("zip", "out", format="files", exclude="foregrounds/anna.png"), "exclude"),
        (lambda: shardgen.export("zip", "out", format="files", split="800,100,100"), "split"),  # type: ignore[arg-type]
        (lambda: shardgen.export("zip", "out", format="tfrecord"), "format"),  # type: ignore[arg-type]
        (lambda: shardgen.export("zip", "out", format="coco", shard_size=5), "shard_size"),
        (lambda: shardgen.export("zip", "out", format="files", split=(80,)), "split"),
        (lambda: shardgen.export("zip", "out", format="files", split_by="both"), "split_by"),
    ],
)
def test_a_value_that_makes_no_sense_is_a_value_error_that_names_the_option(
    call: typing.Callable[[], object], option: str
) -> None:
    with pytest.raises(ValueError, match=f"^{option}: ") as wrong:
        call()
    assert isinstance(wrong.value, WrongOption)
    assert wrong.value.option == option


@pytest.mark.parametrize(
    ("name", "option"),
    [("preview", "samples"), ("run", "workers"), ("run", "limit"), ("export", "shard_size")],
)
def test_a_number_has_the_bounds_of_the_command_in_its_words(name: str, option: str, tmp_path: Path) -> None:
    (run_dir := tmp_path / "people").mkdir()
    (run_dir / "shardgen.toml").touch()
    needs = {"out": tmp_path / "out", "format": "parquet"} if name == "export" else {}
    flag, words = f"--{option.replace('_', '-')}", ["out", "--format", "parquet"] if needs else []
    found = next(one for one in load(name).params if one.name == option)
    for number in (0, *([] if found.max is None else [found.max + 1])):
        with pytest.raises(WrongOption) as wrong:
            getattr(shardgen, name)(run_dir, **{option: number}, **needs)
        typed = cli(name, run_dir, *words, flag, str(number))
        assert typed.returncode == 2
        as_typed = wrong.value.fact.replace("(found ", "(typed: ")
        assert typed.stderr.splitlines()[0] == f"error: {flag} {as_typed}"
    with pytest.raises(WrongOption, match=r"must be a whole number \(found True\)"):
        getattr(shardgen, name)(run_dir, **{option: True}, **needs)


def test_what_is_logged_is_printed_only_where_a_program_asks_for_it() -> None:
    script = "import logging, shardgen; logging.getLogger('shardgen.plan').warning('said')"
    for asks, printed in (("", ""), ("logging.basicConfig(); ", "WARNING:shardgen.plan:said\n")):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("logging.get", asks + "logging.get")],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("", printed)

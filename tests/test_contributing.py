"""CONTRIBUTING.md, CITATION.cff and what GitHub and pre-commit read are about this checkout."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import shardgen
from tests.test_examples import assert_parses

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BREAKS = re.findall(
    r"^\| .+? \| `(.+?)` \| `(.+?)` \| (?:`(.+?)`|nothing) \| `(tests/.+?)::(test_\w+)` \|$",
    PAGE,
    re.MULTILINE,
)
HOOKS = ROOT / ".pre-commit-config.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}


def test_every_path_of_the_page_exists() -> None:
    paths = re.findall(
        r"`((?:shardgen|tests|docs|examples|benchmarks|training|migrations|\.ci|\.github)/[^`:]*)", PAGE
    )
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_folder_of_the_package_is_in_the_table_from_the_door_down() -> None:
    from tests.test_layers import FLOORS  # noqa: PLC0415

    listed = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", PAGE, re.MULTILINE)
    floors = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    assert set(listed) == set(floors) - {"__main__", "__init__", "notebook"}
    assert [floors[name] for name in listed] == sorted(floors[name] for name in listed)


def test_every_promise_can_be_broken_as_the_page_says() -> None:
    table = PAGE.partition("## Break a promise")[2].partition("\n## ")[0]
    assert len(BREAKS) == len(re.findall(r"^\| ", table, re.MULTILINE)) - 1
    assert len(BREAKS) > 5
    for path, old, new, where, name in BREAKS:
        assert old != new
        assert old in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {old!r}"
        assert name in functions_in(ROOT / where), f"{where} has no {name}"


def test_pre_commit_runs_what_the_page_says() -> None:
    commands = [
        hook["entry"].removesuffix(" --force-exclude")
        for repo in parsed(HOOKS)["repos"]
        for hook in repo["hooks"]
    ]
    assert all(repo["repo"] == "local" for repo in parsed(HOOKS)["repos"])
    assert all(hook["language"] == "system" for repo in parsed(HOOKS)["repos"] for hook in repo["hooks"])
    shown = re.search(r"^\| lint, format, types \| `(.+)` \|$", PAGE, re.MULTILINE)
    assert shown is not None
    said = [one.removesuffix(" .").removesuffix(" --check") for one in shown[1].split(" && ")]
    assert commands == said


def test_ci_calls_the_script_of_this_checkout() -> None:
    workflow = parsed(WORKFLOW)
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads `on` so
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("[!c]*.yml")), ids=lambda path: path.stem)
def test_an_issue_template_asks_for_what_doctor_says(path: Path) -> None:
    form = parsed(path)
    assert form.keys() == {"name", "description", "labels", "body"}
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    assert len({one["id"] for one in fields}) == len(fields)
    assert all(one["attributes"]["label"] for one in fields)
    commands = [
        one["attributes"]["label"] for one in fields if one["attributes"]["label"].startswith("shardgen")
    ]
    assert any(command.startswith("shardgen doctor") for command in commands)
    for command in commands:
        assert_parses(shlex.split(command)[1:])


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = parsed(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == project["version"] == shardgen.__version__
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    for work in (citation, *citation["references"]):
        assert all(one.keys() in ({"name"}, {"family-names", "given-names"}) for one in work["authors"])

"""What commands print with `--json` is one document, of the schema in docs/schemas/; so are their errors."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from shardgen import errors
from shardgen.cli.app import app
from shardgen.cli.documents import DOCUMENTS
from shardgen.settings.run_directory import RunDirectory
from tests import poison, warm
from tests.cli.schemas import FOLDER, text_of
from tests.cli.test_interface import OPTIONS
from tests.runs import make_run, shardgen

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
SAMPLES = {"planned": 48, "stored": 47, "dead_letters": 1, "pending": 0}
OPEN = {"DeadLetterPart"}  # the recipe adds keys


def schema_in_docs(name: str) -> Any:
    """What a reader of the docs has."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, which refuses keys that it does not describe."""
    parts = {
        name: part if name in OPEN else part | {"additionalProperties": False}
        for name, part in schema.get("$defs", {}).items()
    }
    return schema | {"$defs": parts, "additionalProperties": False}


def read(name: str, done: subprocess.CompletedProcess[str]) -> Any:
    """The one document on stdout, which the schema describes to the last key."""
    document = json.loads(done.stdout)
    jsonschema.Draft202012Validator(closed(schema_in_docs(name))).validate(document)
    error = document.get("error")
    assert (done.returncode == 0) == (error is None), done.stderr
    if error is not None:
        assert error["exit_code"] == done.returncode
        said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert said[0] == f"error: {error['message']}" or error["problems"][1:], said
        assert said[1:] == [f"hint: {error['hint']}"]
        assert "RUN_DIR" not in error["hint"]
    return document


def test_the_schemas_in_docs_are_those_of_the_code() -> None:
    """If this fails: python -m tests.cli.schemas."""
    written = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert written == {name: text_of(printout) for name, printout in DOCUMENTS.items()}


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_schema_is_one(name: str) -> None:
    schema = schema_in_docs(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["description"]


def test_the_page_and_the_commands_name_each_other() -> None:
    rows = re.findall(r"^\| (.+?) \|.*\| \[(\S+)\.json\]\(schemas/(\S+)\.json\) \|$", PAGE, re.MULTILINE)
    assert [(one, other) for _, one, other in rows] == [(name, name) for name in DOCUMENTS]
    takes_json = {name for name, options in OPTIONS.items() if "--json" in options}
    assert takes_json == set(DOCUMENTS) - {"error"}
    group = typer.main.get_command(app)
    for typed, name, _ in rows[:-1]:
        program, command, *arguments = shlex.split(typed.strip("`"))
        assert (program, command, arguments[-1]) == ("shardgen", name, "--json")
        group.get_command(None, command).make_context(command, arguments)  # type: ignore[attr-defined]


def test_the_page_shows_a_real_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path).path.rename("people")
    found = read("error", shardgen("status", "peple", "--json"))
    shown = re.search(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert found == json.loads(shown[1])


def test_wrong_usage_is_a_document_even_where_the_command_has_none() -> None:
    for words in (["status", "--json", "--watch"], ["statsu", "--json"], ["sweep", "--json"], ["--json"]):
        found = read("error", shardgen(*words))["error"]
        assert (found["code"], found["exit_code"]) == ("UsageError", 2)
    assert shardgen("statsu", "--", "--json").stdout == ""


def test_several_problems_are_a_list(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    settings = run.path / "shardgen.toml"
    settings.write_text("[output]\nsize = 200\nimage_qualty = 3\n")
    found = read("error", shardgen("plan", run.path, "--json"))["error"]
    assert found["code"] == "InvalidSettings"
    assert len(found["problems"]) == 2


def test_a_bug_is_a_document_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from shardgen.cli import app as door  # noqa: PLC0415

    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("some text")

    monkeypatch.setattr(door, "app", broken)
    monkeypatch.setattr(door, "show_logs", lambda: None)
    monkeypatch.setattr(sys, "argv", ["shardgen", "status", "--json"])
    with pytest.raises(SystemExit) as ended:
        door.main()
    out, err = capsys.readouterr()
    done = subprocess.CompletedProcess([], int(ended.value.code or 0), out, err)
    assert read("error", done)["error"]["code"] == "Bug"
    assert "ZeroDivisionError: some text" in err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a dead letter, made in three commands."""
    run, poisoned = make_run(tmp_path_factory.mktemp("made")), poison.environment("raise", 9)
    planned = read("plan", shardgen("plan", run.path, "--json", "--rate", "2"))
    assert planned["state"] == "new"
    assert planned["plan"]["samples"] == 48
    assert (planned["seconds"], planned["forecast"]) == (24, None)
    assert set(planned["bytes"]["per_sample"]) == {"fgbg", "mask", "depth"}
    early = read("run", shardgen("run", run.path, "--json", "--limit", "4", environment=poisoned))
    assert early["zip"] is None
    assert early["samples"]["stored"] >= 4
    refused = read("error", shardgen("run", run.path, "--json", environment=poisoned))
    assert refused["error"]["code"] == "RunHasHoles"
    found = read("run", shardgen("run", run.path, "--json", "--allow-dead-letters"))
    assert found["plan"] == planned["plan"]
    assert found["samples"] == SAMPLES
    assert found["zip"]["path"] == str(run.path / "dataset.zip")
    assert found["zip"]["samples"] == SAMPLES | {"excluded": 0}
    return run


@pytest.mark.slow
def test_every_command_prints_a_document_of_a_finished_run(made: RunDirectory, tmp_path: Path) -> None:
    run, zip_file = made.path, tmp_path / "people.zip"
    assert read("status", shardgen("status", run, "--json"))["samples"] == SAMPLES
    merged = read("merge", shardgen("merge", run, "-o", zip_file, "--allow-dead-letters", "--json"))
    assert merged["size_bytes"] == zip_file.stat().st_size
    assert merged["samples"] == SAMPLES | {"excluded": 0}
    assert set(merged["statistics"]) == {"fgbg", "mask", "depth"}
    for subject, pending in ((run, 0), (zip_file, None)):
        checked = read("verify", shardgen("verify", subject, "--json"))
        assert (checked["subject"], checked["samples"], checked["findings"]) == (str(subject), 47, [])
        assert checked["pending"] == pending
    for there in (0, 47):
        exported = read(
            "export", shardgen("export", zip_file, tmp_path / "tars", "--format", "webdataset", "--json")
        )
        assert exported["already_there"] == there
        assert [one["samples"] for one in exported["splits"]] == [47]
    letters = read("dead-letters", shardgen("dead-letters", run, "--json"))
    assert [(one["sample"], one["reason"]) for one in letters["dead_letters"]] == [(9, "compose")]
    assert read("doctor", shardgen("doctor", run, "--json"))["checks"]


@pytest.mark.slow
def test_what_a_data_set_leaves_out_is_counted(made: RunDirectory, tmp_path: Path) -> None:
    name = min(path.name for path in made.folders({})["foregrounds"].iterdir())
    options: list[str | Path] = [
        "--allow-dead-letters",
        "--exclude",
        f"foregrounds/{name}",
        "-o",
        tmp_path / "some.zip",
    ]
    samples = read("merge", shardgen("merge", made.path, "--json", *options))["samples"]
    assert samples["planned"] == 48
    assert samples["excluded"] == 24
    assert samples["stored"] + samples["dead_letters"] == 24


@pytest.mark.slow
def test_findings_stand_beside_the_error(made: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory.open(shutil.copytree(made.path, tmp_path / "run"))
    victim = min(run.artifacts.glob("shard-00001/*.zip"))
    victim.write_bytes(victim.read_bytes()[:-1])
    found = read("verify", shardgen("verify", run.path, "--json"))
    assert found["error"]["code"] == "ArtifactCorrupt"
    assert victim.name in found["findings"][0]["subject"]
    assert found["requeued"] is None
    mended = read("verify", shardgen("verify", run.path, "--requeue", "--json"))
    assert mended["requeued"] == {"batches": 1, "samples": 4, "mended": 0}
    assert mended["error"]["hint"] == f"make what is pending, then merge: shardgen run {run.path}"
    assert read("verify", shardgen("verify", run.path, "--json"))["pending"] == 4


@pytest.mark.slow
def test_failing_checks_stand_beside_the_error(tmp_path: Path) -> None:
    found = read("doctor", shardgen("doctor", tmp_path, "--json"))
    assert [one["subject"] for one in found["checks"] if one["verdict"] == "fails"] == [str(tmp_path)]
    assert found["error"]["code"] == "ChecksFailed"
    assert str(tmp_path) in found["error"]["message"]


@pytest.mark.slow
def test_a_plan_says_what_has_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    settings = run.path / "shardgen.toml"
    assert read("plan", shardgen("plan", run.path, "--json"))["state"] == "new"
    assert read("plan", shardgen("plan", run.path, "--json"))["state"] == "unchanged"
    settings.write_text(settings.read_text().replace("grid = [3, 2]", "grid = [2, 2]"))
    found = read("plan", shardgen("plan", run.path, "--json"))
    assert (found["state"], found["changes"]) == ("changed", ["compose.grid: 3x2 -> 2x2"])
    assert read("status", shardgen("status", run.path, "--json"))["plan"] == found["plan"]


@pytest.mark.slow
def test_refused_photographs_are_remarks(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "sources" / "backgrounds" / "not.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    found = read("error", shardgen("plan", run.path, "--json"))["error"]
    assert found["code"] == "SourcesRefused"
    assert [(one["folder"], one["names"]) for one in found["remarks"]] == [("backgrounds", ["not.png"])]


@pytest.mark.slow
def test_a_stopped_command_prints_a_document(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes={"compose.grid": "[40, 40]"})
    said = tmp_path / "said"
    said.touch()
    command = warm.start("shardgen", ["run", run.path, "--json"], said=said)
    while "ready" not in said.read_text():
        assert command.poll() is None
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    text = said.read_text()
    document = json.loads(text[text.index("{\n") :])
    jsonschema.Draft202012Validator(closed(schema_in_docs("error"))).validate(document)
    assert document["error"]["code"] == "Interrupted"
    assert document["error"]["exit_code"] == 130


def test_codes_are_classes_that_stay() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {"UsageError", "Interrupted", "Bug"} & names == set()

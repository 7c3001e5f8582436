"""What was wrong with the readers of settings, plans and marks, each defect on its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.marks import read_marks
from shardgen.domain.limits import MAX_SAMPLES, plan_problem
from shardgen.domain.plan import Plan
from shardgen.errors import ArtifactCorrupt, InputMissing, InvalidSettings, ManifestCorrupt
from shardgen.recipes.base import given_threads
from shardgen.settings.plan_file import parse_plan, read_plan
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import FILE_NAME, read_settings
from shardgen.sources.folder import hash_file, list_folder, read_file
from tests.fuzzing.guarded import time_limit
from tests.plans import make_plan

DEEP = 100_000


def settings_of(folder: Path, text: str) -> RunDirectory:
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return RunDirectory.open(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000, "nested too deep"),
        ("a = " + "{a=" * 5000, "nested too deep"),
        ("a = " + "9" * 5000, "too many digits"),
        ("a = 0x" + "f" * 20_000, "too many digits"),
        ("[shards]\nsize = 10000000000000000000", "must be at most"),
        ("[compose]\ngrid = [1000000000, 1]", "must be at most"),
        ("[lease]\nmax_attempts = 9223372036854775808", "must be at most"),
        ('[artifacts]\nurl = "a\\u0000b"', "NUL"),
    ],
    ids=["lists", "tables", "digits", "hexadecimal", "shard", "grid", "attempts", "nul"],
)
def test_settings_that_no_program_could_use_are_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said) as caught:
        settings_of(tmp_path, text)
    assert len(str(caught.value)) < 1000
    assert caught.value.hint


def test_a_key_of_thousands_of_parts_takes_no_time(tmp_path: Path) -> None:
    """Python's reader takes half a minute for one of 64 kB."""
    began = time.monotonic()
    with time_limit(10), pytest.raises(InvalidSettings, match=r"dots \(at line 2\)"):
        settings_of(tmp_path, "# a comment\n" + ".".join("a" * 30_000) + " = 1")
    assert time.monotonic() - began < 5


def test_a_thousand_wrong_keys_are_counted_not_all_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"and 980 more") as caught:
        settings_of(tmp_path, "".join(f"x{number} = 1\n" for number in range(1000)))
    assert len(str(caught.value)) < 2000


def test_a_wrong_value_of_any_length_is_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        settings_of(tmp_path, f'[compose]\nflips = "{"x" * 60_000}"')
    assert len(str(caught.value)) < 500


def test_settings_of_any_size_are_not_read_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)
    with time_limit(10), pytest.raises(InputMissing, match="more than 65,536 bytes"):
        read_settings(tmp_path)


@pytest.mark.parametrize("name", [FILE_NAME, "plan.json"])
def test_a_named_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    read: Callable[[Path], object] = read_settings if name == FILE_NAME else read_plan
    with time_limit(10), pytest.raises(InputMissing, match="not a regular file"):
        read(tmp_path)


@pytest.mark.parametrize("setting", ["foregrounds", "weights"])
def test_the_home_of_a_user_who_is_not_there_is_one_clear_error(tmp_path: Path, setting: str) -> None:
    table = "depth" if setting == "weights" else "sources"
    run = settings_of(tmp_path, f'[{table}]\n{setting} = "~nobody-of-that-name/x"')
    with pytest.raises(InvalidSettings, match="nobody-of-that-name") as caught:
        _ = run.local if setting == "weights" else run.folders({})
    assert caught.value.hint


@pytest.mark.parametrize("text", ["²", "٣", "9" * 5000])
def test_threads_that_are_digits_of_another_kind_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SHARDGEN_THREADS", text)
    with pytest.raises(InvalidSettings, match="SHARDGEN_THREADS"):
        given_threads()


AT_RANDOM = {"placement": "random", "grid": None}


def changed_plan(change: Callable[[Any], object]) -> bytes:
    """A plan's canonical JSON after a change, its number of samples and its outputs those of its recipe."""
    document = json.loads(make_plan(backgrounds=1, foregrounds=1).canonical_json)
    change(document)
    columns, rows = document["recipe"]["compose"]["grid"] or (5, 4)
    document["blocks"][0]["samples"] = columns * rows
    for output in document["outputs"]:
        if output["name"] != "depth":
            output["size"] = document["recipe"]["output"]["size"]
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def background(**values: object) -> Callable[[Any], object]:
    return lambda plan: plan["blocks"][0]["sources"]["backgrounds"][0].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (background(name="../../../etc/passwd"), "leaves its folder"),
        (background(name="/etc/passwd"), "leaves its folder"),
        (background(name="a/../../b.jpg"), "leaves its folder"),
        (background(name="a\0b.jpg"), "leaves its folder"),
        (background(name=""), "leaves its folder"),
        (background(name="x" * 5000), "more than 4,096 bytes"),
        (background(sha256="not hexadecimal"), "sha256"),
        (background(bytes=-1), "size"),
        (background(width=0), "width"),
        (lambda plan: plan["blocks"][0]["sources"]["foregrounds"][0].update(placed_width=601), "canvas"),
        (lambda plan: plan["shards"].update(batch=0), "shards.batch is 0"),
        (lambda plan: plan["shards"].update(batch=10**9), "shards.batch"),
        (lambda plan: plan["shards"].update(slice_batches=10**9), "shards.slice_batches"),
        (lambda plan: plan["recipe"]["compose"].update(grid=[10_000, 10_000]), "places"),
        (lambda plan: plan["recipe"]["compose"].update(grid=[-2, -2]), "grid is -2"),
        (lambda plan: plan["recipe"]["compose"].update(canvas=[0, 600]), "canvas is 0"),
        (lambda plan: plan["recipe"]["output"].update(size=[200, 10**9]), "fgbg.size"),
        (lambda plan: plan["recipe"]["output"].update(image_quality=0), "image_quality"),
        (lambda plan: plan["recipe"]["compose"].update(overhang=1), "belongs to places at random"),
        (lambda plan: plan["recipe"]["compose"].update(foreground_height=340), "not placed as large"),
        (lambda plan: plan["recipe"]["compose"].update(AT_RANDOM, places=20, seed=2**63), "seed is"),
        (lambda plan: plan["recipe"]["compose"].update(AT_RANDOM, places=10**9, seed=0), "places is"),
        (lambda plan: plan["recipe"]["depth"].update(input=[31, 32]), "multiples of 32"),
        (lambda plan: plan["recipe"]["depth"]["weights"].update(sha256=""), "sha256"),
    ],
)
def test_a_plan_that_could_not_have_been_made_here_is_refused(
    change: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(ManifestCorrupt, match=said) as caught:
        parse_plan(changed_plan(change), where="plan.json")
    assert caught.value.hint


def test_the_change_of_these_tests_alone_makes_no_plan_unreadable() -> None:
    assert parse_plan(changed_plan(lambda _plan: None), where="plan.json").samples == 20


def test_a_plan_of_a_million_million_samples_reads_and_one_more_does_not() -> None:
    largest = make_plan(backgrounds=100, foregrounds=100, grid=(100, 100), shard_size=10**9)
    assert plan_problem(largest) is None
    one_more = replace(largest, blocks=(replace(largest.blocks[0], samples=MAX_SAMPLES + 1),))
    assert "samples" in (plan_problem(one_more) or "")


def test_a_plan_of_more_shards_than_rows_are_made_for_is_refused() -> None:
    plan = make_plan(backgrounds=100, foregrounds=100, grid=(100, 100))
    many: Plan = replace(plan, shards=replace(plan.shards, size=1))
    assert "shards" in (plan_problem(many) or "")


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "9" * DEEP, '{"format":' + "9" * 4000 + "}"])
def test_a_plan_nested_too_deep_or_of_too_many_digits_is_no_plan(text: str) -> None:
    with pytest.raises(Exception, match=r"^plan\.json: ") as caught:
        parse_plan(text, where="plan.json")
    assert caught.type.__module__ == "shardgen.errors"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "[" * DEEP,
        '{"batches":[0],"fence":Infinity,"fingerprint":"%s"}',
        '{"batches":[0],"fence":1e3,"fingerprint":"%s"}',
        '{"batches":[0],"fence":10000000000000000,"fingerprint":"%s"}',
        '{"batches":[0],"fence":-1,"fingerprint":"%s"}',
        '{"batches":"012","fence":1,"fingerprint":"%s"}',
        '{"batches":[true],"fence":1,"fingerprint":"%s"}',
        '{"batches":{"0":1},"fence":1,"fingerprint":"%s"}',
        "[]",
        "",
    ],
    ids=[
        "deep",
        "infinite",
        "a float",
        "huge",
        "negative",
        "a text",
        "a truth",
        "an object",
        "a list",
        "empty",
    ],
)
def test_a_mark_that_says_something_else_stops_a_rebuild(tmp_path: Path, text: str) -> None:
    plan = make_plan()
    (tmp_path / "requeued").mkdir()
    content = text.replace("%s", plan.fingerprint)
    (tmp_path / "requeued" / "0001-0123abcd.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactCorrupt, match="not a mark"):
        read_marks(plan, FolderStore(tmp_path))


@pytest.mark.parametrize("make", ["pipe", "link"])
def test_a_mark_that_is_no_file_stops_a_rebuild(tmp_path: Path, make: str) -> None:
    (tmp_path / "requeued").mkdir()
    path = tmp_path / "requeued" / "0001-0123abcd.json"
    if make == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc/passwd")
    with time_limit(10), pytest.raises(ArtifactCorrupt, match="0001-0123abcd") as caught:
        read_marks(make_plan(), FolderStore(tmp_path))
    assert caught.value.hint


@pytest.mark.parametrize("verb", [read_file, hash_file])
def test_a_named_pipe_among_the_photographs_is_not_waited_for(
    tmp_path: Path, verb: Callable[[Path, str], object]
) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with time_limit(10), pytest.raises(InputMissing, match="not a regular file") as caught:
        verb(tmp_path, "a.jpg")
    assert caught.value.hint


def test_a_photograph_of_any_size_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    os.truncate(tmp_path / "a.jpg", 1 << 42)
    with time_limit(10), pytest.raises(InputMissing, match="more than"):
        read_file(tmp_path, "a.jpg")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_folder_with_a_name_that_no_folder_has_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputMissing, match="not there"):
        list_folder(tmp_path / name, what="foregrounds", with_masks=True)

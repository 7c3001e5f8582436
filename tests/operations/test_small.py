from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.dataset.card import dataset_card
from shardgen.dataset.statistics import Statistics
from shardgen.depth.base import Quality
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.domain.plan import Plan
from shardgen.domain.selection import Selection
from shardgen.errors import InputMissing, InvalidSettings
from shardgen.operations import demo
from shardgen.operations.init import initialise
from shardgen.recipes.composites.tables import Tables
from shardgen.recipes.registry import recipe_of
from shardgen.settings.template import settings_text
from shardgen.storage.cache import CACHE_VARIABLE
from tests.legacy_weights import write_legacy_weights
from tests.photographs import write_photographs
from tests.plans import changed, depth_in, make_plan
from tests.runs import make_run, plan_run, sha256_of


def card(plan: Plan) -> str:
    empty: Statistics = {}
    selection = Selection(planned=plan.samples)
    return dataset_card(recipe_of(plan), empty, selection=selection, dead_letters=0, has_sheet=True).decode()


def test_small_weights_are_planned_by_name_and_digest_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "nothing"))
    run = make_run(tmp_path)
    run = plan_run(run)
    weights = depth_in(run.plan()).weights
    assert (weights.name, weights.sha256) == ("small", sha256_of(SHIPPED["small"]))
    assert weights.bytes == SHIPPED["small"].stat().st_size
    assert weights.quality is Quality.TRIAL
    assert str(SHIPPED["small"].parent) not in (run.path / "plan.json").read_text()
    assert not (tmp_path / "nothing").exists()


def test_a_weights_file_of_ones_own_is_planned_as_file_without_its_path(tmp_path: Path) -> None:
    own = write_legacy_weights(tmp_path / "my own.h5", width=32)
    run = make_run(tmp_path, changes={"depth.weights": f"'{own}'"})
    run = plan_run(run)
    weights = depth_in(run.plan()).weights
    assert (weights.name, weights.sha256, weights.quality) == ("file", sha256_of(own), Quality.DEPTH)
    assert weights.structure.startswith("decoder width 32, ")
    assert "my own" not in (run.path / "plan.json").read_text()


def test_the_demo_takes_the_small_network_and_init_the_released_one(tmp_path: Path) -> None:
    tables = demo.prepare(tmp_path / "demo").settings.tables
    assert isinstance(tables, Tables)
    assert tables.depth.planned_weights() == "small"
    text = settings_text(foregrounds=tmp_path, backgrounds=tmp_path)
    assert tomllib.loads(text)["depth"]["weights"] == "nyu"


def test_the_data_sets_card_says_that_depth_is_for_trials() -> None:
    plan = make_plan()
    depth = depth_in(plan)
    for quality in Quality:
        weights = replace(depth.weights, quality=quality)
        text = card(changed(plan, depth=replace(depth, weights=weights)))
        assert ("a network for trials (`nyu`)" in text) == (quality is Quality.TRIAL)


def test_init_writes_the_name_of_weights_or_the_whole_path_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("own.h5").touch()
    for weights, written in (
        ("small", "small"),
        ("random:64", "random:64"),
        ("own.h5", str(tmp_path / "own.h5")),
    ):
        path = initialise(
            tmp_path / weights.replace(".", "-"),
            {"foregrounds": foregrounds, "backgrounds": backgrounds},
            weights=weights,
        )
        assert tomllib.loads(path.read_text(encoding="utf-8"))["depth"]["weights"] == written


@pytest.mark.parametrize(
    ("weights", "error"), [("smal", InputMissing), ("folder", InputMissing), ("random:x", InvalidSettings)]
)
def test_init_refuses_weights_that_are_none_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, error: type[Exception]
) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(error, match=weights):
        initialise(
            tmp_path / "run", {"foregrounds": foregrounds, "backgrounds": backgrounds}, weights=weights
        )
    assert not (tmp_path / "run").exists()


def test_init_takes_other_values_than_the_presets(tmp_path: Path) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path)
    changes = {"compose.grid": "[2, 3]", "output.image": "png", "depth.weights": "🏠.h5"}
    changes["shards.slice_batches"] = "4"
    path = initialise(
        tmp_path / "run",
        {"foregrounds": foregrounds, "backgrounds": backgrounds},
        weights="small",
        shared="folder:",
        changes=changes,
    )
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    assert found["compose"]["grid"] == [2, 3]
    assert found["output"]["image"] == "png"
    assert found["depth"]["weights"] == "🏠.h5"
    assert found["shards"]["slice_batches"] == 4
    assert found["manifest"]["url"] == "folder:"
    assert found["shards"]["batch"] == 32


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("grid600", {"compose.grids": "[2, 2]"}, "compose.grids"),
        ("random224", {"compose.grid": "[2, 2]"}, "random224 has no such setting"),
        ("grid600", {"sources.foregrounds": "/elsewhere"}, "folders have their own options"),
        ("grid600", {"compose.grid": "[0, 2]"}, "grid"),
        ("grid600", {"output.image": "gif"}, "gif"),
        ("grid600", {"shards.batch": "8\nsize = 5"}, "batch"),
    ],
)
def test_init_refuses_values_that_its_settings_do_not_allow_and_writes_nothing(
    tmp_path: Path, preset: str, changes: dict[str, str], said: str
) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path)
    with pytest.raises(InvalidSettings, match=said):
        initialise(
            tmp_path / "run",
            {"foregrounds": foregrounds, "backgrounds": backgrounds},
            preset=preset,
            changes=changes,
        )
    assert not (tmp_path / "run").exists()

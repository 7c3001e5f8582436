from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardgen.depth import families
from shardgen.depth.device import describe_cpu
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan, Shards
from shardgen.errors import InvalidSettings, ManifestCorrupt, WeightsRefused
from shardgen.recipes.base import DeviceChoice, PlanEvents, Station
from shardgen.recipes.composites.kind import Composites
from shardgen.recipes.composites.maker import CompositesMaker
from shardgen.recipes.network import BESIDE_BYTES
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import parse_plan
from shardgen.settings.settings import parse_settings, settings_differences
from tests.depth.brightness import Brightness
from tests.logged import logged
from tests.photographs import write_photographs
from tests.plans import changed, depth_in

SETTINGS: dict[str, dict[str, object]] = {
    "compose": {"canvas": [96, 80], "grid": [2, 1]},
    "depth": {"model": "brightness", "weights": "plain", "input": [36, 28]},
    "output": {"size": [32, 24]},
    "shards": {"size": 20, "slice_batches": 2, "batch": 4},
}


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Known to this process for one test, in which nothing can import TensorFlow."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    families.register(Brightness())
    yield
    del families._FAMILIES["brightness"]


def refusal_of(**depth: object) -> str:
    with pytest.raises(InvalidSettings) as caught:
        parse_settings(SETTINGS | {"depth": SETTINGS["depth"] | depth}, where="here")
    return str(caught.value)


def test_a_family_of_its_own_goes_from_settings_to_samples_without_tensorflow(tmp_path: Path) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path, foregrounds=1, backgrounds=1)
    folders = {"foregrounds": foregrounds, "backgrounds": backgrounds}
    settings = parse_settings(SETTINGS, where="here")
    local = settings.tables.local(lambda _written, _key: tmp_path / "not asked for")

    draft = Composites().draft(settings.tables, folders, local, events=PlanEvents())
    shown = dict(draft.facts)["network"]
    assert shown.startswith("brightness plain, no layers, aligned upsampling, float32, sha256 bbbb")
    plan = Plan(
        recipe=draft.document,
        outputs=draft.document.outputs,
        shards=Shards(size=20, slice_batches=2, batch=4),
        blocks=draft.blocks,
    )
    assert parse_plan(plan.canonical_json, where="plan") == plan
    assert settings_differences(plan, settings) == []

    recipe = recipe_of(plan)
    demand = recipe.demand(local)
    least = BESIDE_BYTES + (1 << 20) + 2 * 36 * 28 * 4
    assert demand.micro_batches == (4, 2, 1)
    assert least < demand.bytes_for(2) < least + (1 << 20)  # and a few photographs of 60 x 60 pixels
    assert "a network for trials (`plain`)" in recipe.card().introduction

    said: list[str] = []
    with logged(said.append):
        maker = recipe.open_maker(Station(folders=folders, local=local, device=DeviceChoice(device="cpu")))
    assert said == [f"network plain on {describe_cpu()}, micro-batch 4; for trials only"]
    assert isinstance(maker, CompositesMaker)
    prepared = maker.prepare(SampleIndex(0))
    finished: list[int] = []
    nothing, raw = maker.compute([None, prepared], between=finished.append)
    assert nothing is None
    assert finished == [2]
    assert isinstance(raw, np.ndarray)
    np.testing.assert_array_equal(raw, prepared.network_input.mean(axis=2, dtype=np.float32))
    assert set(maker.encode(SampleIndex(0), prepared, raw).files) == {"fgbg", "mask", "depth"}
    facts = maker.provenance().facts
    assert (facts["numpy"], facts["micro_batch"]) == (np.__version__, 4)

    depth_plan = depth_in(plan)
    weights = replace(depth_plan.weights, sha256="c" * 64)
    other = changed(plan, depth=replace(depth_plan, weights=weights))
    with pytest.raises(WeightsRefused, match="the plan has cccc"):
        recipe_of(other).open_maker(Station(folders=folders, local=local, device=DeviceChoice()))
    for old, new, problem in (
        ('"brightness"', '"another"', "depth.model must be 'densedepth' or 'brightness'"),
        ("[36,28]", "[36,30]", "depth.input: not multiples of 4, at least 12"),
        ("no layers", "x" * 201, "depth.weights.structure: more than 200 characters"),
    ):
        with pytest.raises(ManifestCorrupt, match=problem):
            parse_plan(plan.canonical_json.decode().replace(old, new), where="plan")


def test_the_settings_are_checked_by_what_the_family_says() -> None:
    assert "[depth] model: must be 'densedepth' or 'brightness', or 'none' for" in refusal_of(model="bright")
    assert "[depth] weights: must be \"plain\" (found 'nyu')" in refusal_of(weights="nyu")
    assert "[depth]: input must be multiples of 4, at least 12 (found [36, 8])" in refusal_of(input=[36, 8])
    released = json.dumps(Composites.tables().model_dump(mode="json")["depth"])
    assert '"densedepth", "weights": "nyu"' in released

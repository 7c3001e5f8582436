from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Block, Plan, differences
from shardgen.errors import ManifestCorrupt, ManifestMismatch
from shardgen.recipes.composites.plan import CompositesPlan, Flips
from shardgen.settings.plan_file import parse_plan
from shardgen.settings.settings import parse_settings, settings_differences
from shardgen.sources.inventory import Sources
from tests.plans import at_random, changed, depth_in, grown, make_plan

PLAN = make_plan(flips=Flips.FOREGROUNDS)


@pytest.mark.parametrize("plan", [PLAN, make_plan(flips=Flips.BACKGROUNDS, grid=(1, 1), batch=7)])
def test_a_plan_reads_back_as_it_was_written(plan: Plan) -> None:
    assert parse_plan(plan.canonical_json, where="plan.json") == plan
    assert set(json.loads(plan.canonical_json)) == {"format", "recipe", "outputs", "shards", "blocks"}


@pytest.mark.parametrize(
    ("number", "hint"),
    [(2, "finish it with the version that made it, or plan again"), (4, "upgrade shardgen")],
)
def test_a_plan_of_another_format_is_refused_by_its_number_whatever_else_it_holds(
    number: int, hint: str
) -> None:
    text = json.dumps({"format": number, "samples": 120, "compose": {}, "sources": []})
    with pytest.raises(ManifestMismatch) as caught:
        parse_plan(text, where="plan.json")
    assert str(caught.value) == f"plan.json: plan format {number}, this shardgen reads format 3"
    assert hint in caught.value.hint


def test_outputs_that_are_not_those_of_the_recipe_are_refused() -> None:
    composite, *others = PLAN.outputs
    for outputs in (
        (replace(composite, suffix="png"), *others),
        (*others, composite),
        tuple(others),
        (composite, composite, *others),
    ):
        plan = replace(PLAN, outputs=outputs)
        with pytest.raises(ManifestCorrupt, match="its outputs are not those of its recipe"):
            parse_plan(plan.canonical_json, where="plan.json")


def test_blocks_that_the_recipe_does_not_make_are_refused() -> None:
    block = PLAN.blocks[0]
    half, one_less = replace(block, samples=block.samples // 2), replace(block, samples=block.samples - 1)
    for blocks in ((half, half), (one_less,), ()):
        with pytest.raises(ManifestCorrupt, match="not a plan"):
            parse_plan(replace(PLAN, blocks=blocks).canonical_json, where="plan.json")


GROWN = grown(PLAN, (1, 0), (0, 2), (2, 1))


def test_a_plan_of_several_blocks_reads_back_and_knows_the_plans_that_it_grew_from() -> None:
    assert parse_plan(GROWN.canonical_json, where="plan.json") == GROWN
    earlier = [GROWN.until(blocks) for blocks in range(1, 5)]
    assert earlier[0] == PLAN
    assert GROWN.fingerprints == tuple(plan.fingerprint for plan in earlier)
    assert len(set(GROWN.fingerprints)) == 4
    for number in range(GROWN.layout.batch_count):
        batch = BatchIndex(number)
        ends_with_it = next(plan for plan in earlier if number < plan.layout.batch_count)
        assert GROWN.fingerprint_of(batch) == ends_with_it.fingerprint


def test_blocks_that_photographs_added_later_do_not_make_are_refused() -> None:
    first, second, third, last = GROWN.blocks
    empty = Block(samples=1, sources=Sources(backgrounds=(), foregrounds=()))
    for blocks, said in (
        ((first, replace(second, samples=second.samples - 1)), "block 1: samples is 79"),
        ((first, third, second), "block 1: samples is"),
        ((first, replace(second, sources=last.sources)), "block 1: samples is"),
        ((first, empty), "block 1: no photograph is new"),
        ((second, first), "no background or no foreground"),
        ((first, second, third, replace(second, samples=160)), "'a_1_0.jpg': is there 2 times"),
    ):
        with pytest.raises(ManifestCorrupt, match=said):
            parse_plan(replace(PLAN, blocks=blocks).canonical_json, where="plan.json")


def test_what_changed_between_plans_of_several_blocks_is_said_of_photographs_not_of_blocks() -> None:
    two = GROWN.until(2)
    assert differences(PLAN, two) == ["backgrounds: 'a_1_0.jpg' is new"]
    assert differences(two, PLAN) == ["backgrounds: 'a_1_0.jpg' is gone"]
    sources = two.blocks[1].sources
    assert isinstance(sources, Sources)
    other = replace(sources, backgrounds=(replace(sources.backgrounds[0], bytes=9),))
    assert differences(two, replace(two, blocks=(two.blocks[0], replace(two.blocks[1], sources=other)))) == [
        "backgrounds: 'a_1_0.jpg' has changed (bytes: 1000 -> 9)"
    ]
    at_once = changed(two, sources=CompositesPlan(two).sources)
    assert differences(two, at_once) == [
        "blocks: the same sources in another order (240 + 80 -> 320 samples)"
    ]


def test_a_plan_of_a_recipe_that_this_program_does_not_know_is_refused() -> None:
    text = PLAN.canonical_json.replace(b'"kind":"composites"', b'"kind":"sculptures"')
    with pytest.raises(ManifestCorrupt, match="'sculptures' is not known"):
        parse_plan(text, where="plan.json")


def test_what_settings_would_change_is_said_in_their_own_words() -> None:
    assert settings_differences(PLAN, parse_settings({}, where="shardgen.toml")) == []
    tables = {
        "sources": {"mask": "alpha"},
        "compose": {"grid": [4, 4]},
        "depth": {"weights": "kitti", "encoding": "relative"},
        "output": {"depth": "png"},
        "shards": {"batch": 8},
    }
    assert settings_differences(PLAN, parse_settings(tables, where="shardgen.toml")) == [
        "compose.grid: 5x4 -> 4x4",
        "sources.mask: auto -> alpha",
        "depth.weights: nyu -> kitti",
        "depth.encoding: inverse-minmax -> relative",
        "output.depth: jpeg -> png",
        "shards.batch: 32 -> 8",
    ]


def test_two_plans_differ_in_what_was_set_and_found_and_in_nothing_that_follows_from_it() -> None:
    composites = CompositesPlan(PLAN)
    first, second, third = composites.sources.backgrounds
    weights = replace(depth_in(PLAN).weights, sha256="f" * 64)
    backgrounds = (replace(first, bytes=9), replace(second, name="new"))
    other = changed(
        PLAN,
        depth=replace(depth_in(PLAN), weights=weights),
        output=replace(composites.output, size=(64, 48)),
        sources=replace(composites.sources, backgrounds=backgrounds),
    )
    assert other.samples != PLAN.samples
    assert differences(PLAN, other) == [
        "depth.weights.sha256: 000000000000… -> ffffffffffff…",
        "output.size: 200x200 -> 64x48",
        f"backgrounds: {second.name!r} is gone",
        f"backgrounds: {third.name!r} is gone",
        "backgrounds: 'new' is new",
        f"backgrounds: {first.name!r} has changed (bytes: 1000 -> 9)",
    ]


def test_ranges_and_what_follows_from_settings_are_said_in_the_words_of_the_settings() -> None:
    first = changed(PLAN, compose=at_random())
    foregrounds = [replace(one, placed_height=7) for one in CompositesPlan(PLAN).sources.foregrounds]
    second = changed(
        PLAN,
        compose=replace(at_random(people=(1, 3)), foreground_height=(300, 600)),
        sources=replace(CompositesPlan(PLAN).sources, foregrounds=tuple(foregrounds)),
    )
    assert differences(first, second) == [
        "compose.foreground_height: halved -> [300, 600]",
        "compose.foregrounds_per_sample: [1, 1] -> [1, 3]",
    ]

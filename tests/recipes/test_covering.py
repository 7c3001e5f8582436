"""Samples to look at: what a sheet shows of a plan."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.dataset.labels import label_rows
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.limits import plan_problem
from shardgen.errors import InvalidSettings
from shardgen.recipes.composites.placement import Words
from shardgen.recipes.composites.plan import Combination, CompositesPlan, Flips
from shardgen.recipes.registry import recipe_of
from tests.plans import at_random, changed, make_plan

SIDES = st.integers(1, 7)


def shown(plan: CompositesPlan, samples: list[SampleIndex]) -> list[Combination]:
    return [plan.combination(sample) for sample in samples]


@given(st.integers(1, 25), st.integers(1, 25), SIDES, SIDES, st.sampled_from(Flips), st.integers(1, 60))
@settings(deadline=None, max_examples=150)
def test_nothing_comes_twice_before_all_of_its_kind_came_once(
    backgrounds: int, foregrounds: int, columns: int, rows: int, flips: Flips, wanted: int
) -> None:
    plan = CompositesPlan(
        make_plan(backgrounds=backgrounds, foregrounds=foregrounds, grid=(columns, rows), flips=flips)
    )
    samples = plan.covering(wanted)
    assert len(samples) == len(set(samples)) == min(wanted, plan.samples)
    made_of = shown(plan, samples)
    kinds = (
        ([one.background for one in made_of], backgrounds),
        ([one.foreground for one in made_of], foregrounds),
        ([one.flip for one in made_of], plan.flip_count),
        ([(one.column, one.row) for one in made_of], plan.place_count),
    )
    for values, count in kinds:
        first = values[: min(count, len(values))]
        # Repeated combinations are passed over, so a round may end early; it never begins with a repetition.
        assert len(set(first)) >= min(len(first), len(set(values)))


def test_twenty_backgrounds_and_ten_people_at_the_defaults_are_all_seen() -> None:
    plan = CompositesPlan(make_plan(backgrounds=20, foregrounds=10, flips=Flips.FOREGROUNDS))
    made_of = shown(plan, plan.covering(20))
    assert len({one.background for one in made_of}) == 20
    assert len({one.foreground for one in made_of}) == 10
    assert len({(one.column, one.row) for one in made_of}) == 20
    assert sorted(one.flip for one in made_of) == [0] * 10 + [1] * 10
    for person in range(10):
        assert len({one.flip for one in made_of if one.foreground == person}) >= 1


def test_kinds_of_one_count_are_not_locked_to_each_other() -> None:
    plan = CompositesPlan(make_plan(backgrounds=4, foregrounds=4, grid=(2, 2), flips=Flips.FOREGROUNDS))
    made_of = shown(plan, plan.covering(16))
    assert len({(one.background, one.foreground) for one in made_of}) == 16
    for background in range(4):
        seen = [one for one in made_of if one.background == background]
        assert len({(one.column, one.row) for one in seen}) >= 2
        assert {one.flip for one in seen} == {0, 1}


def test_each_photograph_of_a_folder_is_shown_when_asked_for() -> None:
    recipe = recipe_of(make_plan(backgrounds=2, foregrounds=45))
    plan = CompositesPlan(recipe.plan)
    assert [one.foreground for one in shown(plan, recipe.to_look_at(3, every="foregrounds"))] == [*range(45)]
    assert len(recipe.to_look_at(3, every="backgrounds")) == 2
    with pytest.raises(InvalidSettings, match="--all-cats: this run has no folder"):
        recipe.to_look_at(3, every="cats")


def test_of_a_thousand_million_samples_at_random_only_those_that_are_asked_for_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    draw = Words.of

    def counting(words: Words, sample: int) -> list[int]:
        drawn.append(sample)
        return draw(words, sample)

    monkeypatch.setattr(Words, "of", counting)
    plan = changed(make_plan(backgrounds=200, foregrounds=500), compose=at_random(10_000, people=(1, 3)))
    recipe = recipe_of(plan)
    assert plan.samples == 10**9
    assert recipe.problem() is plan_problem(plan) is None
    assert len(plan.fingerprint) == 64
    assert len(recipe.to_look_at(20)) == 20
    assert recipe.card().how_made
    assert not drawn
    last = BatchIndex(plan.layout.batch_count - 1)
    assert label_rows(recipe, last, without=(), facts=None).startswith("999999968,1,bg_199.jpg,")
    assert drawn == [*range(10**9 - 32, 10**9)]

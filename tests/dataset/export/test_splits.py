from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.dataset.export.splits import DROPPED, Assignment, Split, assigned, bounds
from shardgen.domain.identifiers import SampleIndex
from shardgen.errors import InvalidSettings
from shardgen.recipes.composites.recipe import CompositesRecipe
from shardgen.recipes.pictures.recipe import PicturesRecipe
from tests.dataset.export.made_samples import pictures
from tests.plans import at_random, changed, grown, make_plan
from tests.text_recipe import Text, TextDocument, TextSources

Digests = list[tuple[int, str, str]]
PARTS = st.lists(st.integers(0, 900), min_size=2, max_size=3).filter(lambda parts: sum(map(bool, parts)) > 1)


def photographs(draw: st.DrawFn, block: int) -> Digests:
    """Of one block: some of them the same file twice, under another name or in the other folder."""
    found = []
    for folder in ("backgrounds", "foregrounds"):
        numbers = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
        found += [
            (block, f"{folder}/{block}-{place}.jpg", f"{number:064x}") for place, number in enumerate(numbers)
        ]
    return found


@st.composite
def blocks(draw: st.DrawFn) -> list[Digests]:
    return [photographs(draw, block) for block in range(draw(st.integers(1, 3)))]


@given(blocks=blocks(), parts=PARTS, seed=st.integers(0, 5))
def test_a_photograph_is_in_one_split_whatever_it_is_called_and_an_extension_moves_none(
    blocks: list[Digests], parts: list[int], seed: int
) -> None:
    split = Split(parts=tuple(parts), seed=seed)
    every = [one for block in blocks for one in block]
    found = assigned(every, split)
    assert found.keys() == {name for _, name, _ in every}
    assert set(found.values()) <= set(range(len(split.names)))
    by_digest: dict[str, set[int]] = {}
    for _, name, sha256 in every:
        by_digest.setdefault(sha256, set()).add(found[name])
    assert all(len(places) == 1 for places in by_digest.values())
    for count in range(1, len(blocks)):
        before = assigned([one for block in blocks[:count] for one in block], split)
        assert before.items() <= found.items()


@given(count=st.integers(1, 300), parts=PARTS)
def test_splits_are_as_large_as_their_proportions_say(count: int, parts: list[int]) -> None:
    split = Split(parts=tuple(parts))
    found = assigned(((0, f"pictures/{one}", f"{one:064x}") for one in range(count)), split)
    sizes = [list(found.values()).count(place) for place in range(len(split.names))]
    wanted = [part for part in parts if part]
    assert sum(sizes) == count
    for size, part in zip(sizes, wanted, strict=True):
        assert abs(size - count * part / sum(wanted)) <= 1


def test_a_split_worked_out_by_hand() -> None:
    names = ["a", "b", "c", "d", "e"]
    ranked = sorted(names, key=lambda one: hashlib.sha256(f"7:{ord(one):064x}".encode()).hexdigest())
    found = assigned(
        ((0, f"pictures/{one}", f"{ord(one):064x}") for one in names), Split(parts=(3, 1, 1), seed=7)
    )
    assert [found[f"pictures/{one}"] for one in ranked] == [0, 0, 0, 1, 2]
    # printf '7:%064x' 0x61 | sha256sum, and so on
    assert found == {"pictures/a": 0, "pictures/b": 1, "pictures/c": 0, "pictures/d": 0, "pictures/e": 2}


def test_bounds_are_rounded_halves_up() -> None:
    assert bounds(5, [1, 1]) == [3, 5]  # 2.5
    assert bounds(10, [800, 100, 100]) == [8, 9, 10]
    assert bounds(3, [800, 100, 100]) == [2, 3, 3]  # 2.4, 2.7
    assert bounds(1, [1, 1]) == [1, 1]


def by_hand(recipe: CompositesRecipe, split: Split, folders: tuple[str, ...]) -> Iterator[int]:
    """The split of each sample, asked one by one."""
    places = assigned((one for one in recipe.digests() if one[1].startswith(folders)), split)
    for sample in range(recipe.plan.samples):
        found = {places[one] for one in recipe.sources_of(SampleIndex(sample)) if one in places}
        yield found.pop() if len(found) == 1 else DROPPED


GRID = make_plan(backgrounds=7, foregrounds=6, grid=(2, 2))
RECIPES = {
    "grid": GRID,
    "grown": grown(GRID, (3, 2), (0, 1)),
    "people": changed(GRID, compose=at_random(3, people=(1, 3))),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("by", "folders"),
    [
        ("foregrounds", ("foregrounds",)),
        ("backgrounds", ("backgrounds",)),
        ("both", ("foregrounds", "backgrounds")),
    ],
)
def test_samples_follow_their_photographs_and_those_that_mix_splits_are_dropped(
    name: str, by: str, folders: tuple[str, ...]
) -> None:
    recipe = CompositesRecipe(RECIPES[name])
    split = Split(parts=(60, 20, 20), by=by, seed=3)
    expected = list(by_hand(recipe, split, folders))
    assignment = Assignment(recipe, split)
    assert assignment.of(np.arange(recipe.plan.samples)).tolist() == expected
    some = np.array([one for one in range(recipe.plan.samples) if one % 7 not in (2, 3)])
    assert assignment.of(some).tolist() == [expected[one] for one in some]
    mixes = expected.count(DROPPED)
    one_source = by == "backgrounds" or (by == "foregrounds" and name != "people")
    assert (mixes == 0) == one_source
    assert len(set(expected)) > 2


def test_by_default_no_photograph_of_any_folder_is_in_two_splits() -> None:
    recipe = CompositesRecipe(GRID)
    assignment = Assignment(recipe, Split(parts=(1, 1)))
    assert assignment.by == "both"
    found = assignment.of(np.arange(recipe.plan.samples))
    seen: list[set[str]] = [set(), set()]
    for sample, place in enumerate(found.tolist()):
        if place != DROPPED:
            seen[place] |= recipe.sources_of(SampleIndex(sample))
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]
    assert "".join(assignment.table()).count("\n") == 1 + 13
    assert sum(assignment.photographs) == 13


def test_photographs_are_counted_without_reading_their_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PicturesRecipe, "digests", lambda _self: pytest.fail("was read"))
    recipe, _ = pictures(tmp_path)
    assert Assignment(recipe, None).photographs == [recipe.plan.samples]


def test_a_split_that_the_recipe_does_not_allow_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="no folder of that name") as raised:
        Assignment(CompositesRecipe(GRID), Split(parts=(1, 1), by="pictures"))
    assert raised.value.hint == "--split-by foregrounds or backgrounds or both"
    document = TextDocument(times=3)
    sources = TextSources(lines=("one", "two"), sha256="0" * 64)
    block = type(GRID.blocks[0])(samples=6, sources=sources)
    plan = type(GRID)(recipe=document, outputs=document.outputs, shards=GRID.shards, blocks=(block,))
    with pytest.raises(InvalidSettings, match="share no photographs"):
        Assignment(Text().recipe(plan), Split(parts=(1, 1)))


@pytest.mark.parametrize("parts", [(1,), (1, 0, 0), (0, 0), (1, 1, 1, 1), (1, -1, 3), (0.8, 0.2), ()])
def test_proportions_that_split_nothing_are_none(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="two or three"):
        Split(parts=parts)

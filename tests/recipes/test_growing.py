"""Plans of composites that grew: which sample is made of what, and which photographs are new."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block
from shardgen.recipes.base import Draft
from shardgen.recipes.composites.kind import Composites
from shardgen.recipes.composites.plan import CompositesPlan, Flips
from shardgen.recipes.registry import recipe_of
from shardgen.sources.inventory import Sources
from tests.photographs import write_photographs
from tests.plans import grown, make_plan

SIDES = st.integers(1, 3)
ADDED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any), max_size=5)


def pairs_by_the_rule(blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of every pair of a background and a foreground, in the order of their samples."""
    pairs, backgrounds, foregrounds = [], 0, 0
    for b, f in blocks:
        both = foregrounds + f
        pairs += [(backgrounds + p // both, p % both) for p in range(b * both)]
        pairs += [(q // f, foregrounds + q % f) for q in range(backgrounds * f)]
        backgrounds, foregrounds = backgrounds + b, foregrounds + f
    return pairs


@given(SIDES, SIDES, ADDED, SIDES, SIDES, st.sampled_from(Flips))
@settings(deadline=None, max_examples=150)
def test_samples_and_combinations_are_one_to_one_and_growing_changes_none(
    backgrounds: int, foregrounds: int, added: list[tuple[int, int]], columns: int, rows: int, flips: Flips
) -> None:
    first = make_plan(backgrounds=backgrounds, foregrounds=foregrounds, grid=(columns, rows), flips=flips)
    plan = CompositesPlan(grown(first, *added))
    assert plan.problem() is None
    made_of = [plan.combination(SampleIndex(sample)) for sample in range(plan.samples)]
    assert [(one.background, one.foreground, one.flip, one.row, one.column) for one in made_of] == [
        (*pair, flip, row, column)
        for pair in pairs_by_the_rule([(backgrounds, foregrounds), *added])
        for flip, row, column in product(range(plan.flip_count), range(rows), range(columns))
    ]
    assert len({replace(one, sample=SampleIndex(0)) for one in made_of}) == plan.samples
    assert len(plan.sources.backgrounds) * len(plan.sources.foregrounds) * plan.variants == plan.samples
    assert [plan.sample(one) for one in made_of] == list(range(plan.samples))
    for blocks in range(1, len(added) + 2):
        earlier = CompositesPlan(plan.plan.until(blocks))
        assert (
            earlier.samples
            == plan.plan.layout.starts[blocks - 1].sample + plan.plan.blocks[blocks - 1].samples
        )
        assert [earlier.combination(SampleIndex(sample)) for sample in range(earlier.samples)] == made_of[
            : earlier.samples
        ]
        assert earlier.sources.backgrounds == plan.sources.backgrounds[: len(earlier.sources.backgrounds)]


def test_what_is_known_of_samples_is_known_in_every_block() -> None:
    plan = grown(make_plan(backgrounds=2, foregrounds=2, grid=(2, 1), batch=3), (1, 0), (0, 1), (1, 2))
    recipe, composites = recipe_of(plan), CompositesPlan(plan)
    rows = csv.reader(recipe.label_rows(range(plan.samples), tail="\n", without=(), facts=None).splitlines())
    for sample, row in enumerate(rows):
        made_of = composites.combination(SampleIndex(sample))
        names = [
            composites.sources.backgrounds[made_of.background].name,
            composites.sources.foregrounds[made_of.foreground].name,
        ]
        assert row[:7] == [str(sample), "1", *names, *map(str, (made_of.flip, made_of.column, made_of.row))]
        assert recipe.sources_of(SampleIndex(sample)) == {
            f"backgrounds/{names[0]}",
            f"foregrounds/{names[1]}",
        }
    shown = [composites.combination(sample) for sample in recipe.to_look_at(20)]
    assert len({(one.background, one.foreground) for one in shown}) == 20
    assert "| 2 | 12 | 0 | 1 |" in recipe.card().how_made


def test_drafted_photographs_go_where_the_plan_has_them_and_new_ones_to_its_end() -> None:
    plan = grown(make_plan(), (1, 1))
    blocks, everything = plan.blocks, CompositesPlan(grown(plan, (2, 1))).sources
    drafted = Sources(
        backgrounds=tuple(sorted(everything.backgrounds, key=lambda one: one.name, reverse=True)),
        foregrounds=everything.foregrounds[::-1],
    )
    kind = Composites()

    def arranged(sources: Sources) -> tuple[Block, ...]:
        draft = Draft(document=plan.recipe, blocks=(Block(samples=1, sources=sources),), facts=())
        return kind.arrange(recipe_of(plan), draft).blocks

    assert arranged(drafted) == grown(plan, (2, 1)).blocks
    assert arranged(CompositesPlan(plan).sources) == blocks
    other = replace(everything.backgrounds[1], bytes=7)
    first, *_ = arranged(replace(everything, backgrounds=(other,)))
    assert isinstance(first.sources, Sources)
    assert (first.samples, first.sources.backgrounds) == (40, (other,))
    gone = arranged(Sources(backgrounds=everything.backgrounds[:3], foregrounds=everything.foregrounds[:2]))
    assert [block.samples for block in gone] == [120, 0]


def test_photographs_that_the_plan_does_not_know_are_named_and_their_masks_are_not(tmp_path: Path) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path)
    folders = {"foregrounds": foregrounds, "backgrounds": backgrounds}
    plan = make_plan(backgrounds=2, foregrounds=2)
    like = CompositesPlan(plan).sources
    sources = Sources(
        backgrounds=tuple(
            replace(like.backgrounds[0], name=path.name) for path in sorted(backgrounds.iterdir())
        ),
        foregrounds=tuple(
            replace(like.foregrounds[0], name=path.name) for path in sorted(foregrounds.iterdir())
        ),
    )
    recipe = recipe_of(replace(plan, blocks=(replace(plan.blocks[0], sources=sources),)))
    assert recipe.unknown_sources(folders) == []
    (foregrounds / "foreground-000.mask.png").touch()
    (backgrounds / "notes.txt").touch()
    assert recipe.unknown_sources(folders) == []
    (foregrounds / "more").mkdir()
    (foregrounds / "more/anna.png").touch(mode=0)
    (backgrounds / "park.mask.png").touch()
    assert recipe.unknown_sources(folders) == ["foregrounds/more/anna.png", "backgrounds/park.mask.png"]
    gone = folders | {"foregrounds": tmp_path / "gone"}
    assert recipe.unknown_sources(gone) == ["backgrounds/park.mask.png"]

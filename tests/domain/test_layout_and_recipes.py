from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.recipes.composites.plan import CompositesPlan, Flips
from tests.plans import make_plan

sizes = st.integers(1, 40)


@settings(max_examples=300)
@given(samples=st.integers(1, 500), shard=sizes, batch=sizes, slices=sizes)
def test_shards_slices_and_batches_tile_the_samples(
    samples: int, shard: int, batch: int, slices: int
) -> None:
    layout = Layout(blocks=(samples,), shard_size=shard, batch_size=batch, slice_batches=slices)
    seen: list[int] = []
    batches: list[int] = []
    for index in map(ShardIndex, range(layout.shard_count)):
        for slice_ in map(SliceIndex, range(layout.slice_count(index))):
            for number in map(BatchIndex, layout.slice_batch_range(index, slice_)):
                assert layout.shard_of_batch(number) == index
                assert layout.slice_of_batch(number) == slice_
                batches.append(number)
                for sample in layout.batch_samples(number):
                    assert layout.batch_of_sample(SampleIndex(sample)) == number
                    assert sample in layout.shard_samples(index)
                    seen.append(sample)
    assert seen == list(range(samples))
    assert batches == list(range(layout.batch_count))


def test_the_reference_data_set_is_408040_samples_in_5_shards() -> None:
    plan = make_plan(backgrounds=101, foregrounds=101, flips=Flips.FOREGROUNDS)
    layout = plan.layout
    assert plan.samples == 408_040
    assert [len(layout.shard_samples(ShardIndex(s))) for s in range(layout.shard_count)] == [
        100_000,
        100_000,
        100_000,
        100_000,
        8_040,
    ]
    assert layout.batch_count == 4 * 3_125 + 252


@pytest.mark.parametrize("flips", Flips)
def test_a_recipe_inverts_the_order_of_samples(flips: Flips) -> None:
    plan = make_plan(flips=flips, grid=(3, 2))
    expected = [
        (b, f, flip, row, column)
        for b in range(3)
        for f in range(2)
        for flip in range(1 if flips is Flips.NONE else 2)
        for row in range(2)
        for column in range(3)
    ]
    made_of = [CompositesPlan(plan).combination(SampleIndex(i)) for i in range(plan.samples)]
    assert [(c.background, c.foreground, c.flip, c.row, c.column) for c in made_of] == expected


def test_the_last_column_and_row_touch_the_far_edge_and_a_single_one_is_centred() -> None:
    plan = CompositesPlan(make_plan())
    foreground = plan.sources.foregrounds[1]
    last = plan.place(foreground, column=4, row=3)
    assert (last.x + last.width, last.y + last.height) == (600, 600)
    assert plan.place(foreground, column=1, row=1).x == (600 - 121) // 4
    assert plan.place(foreground, column=1, row=2).y == (600 - 200) * 2 // 3
    single = CompositesPlan(make_plan(grid=(1, 1)))
    centred = single.place(foreground, column=0, row=0)
    assert (centred.x, centred.y) == ((600 - 121) // 2, 200)

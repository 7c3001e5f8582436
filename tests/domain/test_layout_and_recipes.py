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
@given(blocks=st.lists(st.integers(1, 120), min_size=1, max_size=4), shard=sizes, batch=sizes, slices=sizes)
def test_shards_slices_and_batches_tile_the_samples_and_none_spans_two_blocks(
    blocks: list[int], shard: int, batch: int, slices: int
) -> None:
    layout = Layout(blocks=tuple(blocks), shard_size=shard, batch_size=batch, slice_batches=slices)
    block_of = [number for number, samples in enumerate(blocks) for _ in range(samples)]
    seen: list[int] = []
    batches: list[int] = []
    for index in map(ShardIndex, range(layout.shard_count)):
        assert len({block_of[sample] for sample in layout.shard_samples(index)}) == 1
        assert layout.slice_count(index) >= 1
        for slice_ in map(SliceIndex, range(layout.slice_count(index))):
            for number in map(BatchIndex, layout.slice_batch_range(index, slice_)):
                assert layout.shard_of_batch(number) == index
                assert layout.slice_of_batch(number) == slice_
                assert number in layout.shard_batches(index)
                assert layout.batch_samples(number)
                batches.append(number)
                for sample in layout.batch_samples(number):
                    assert layout.batch_of_sample(SampleIndex(sample)) == number
                    assert sample in layout.shard_samples(index)
                    seen.append(sample)
    assert seen == list(range(sum(blocks))) == list(range(layout.sample_count))
    assert batches == list(range(layout.batch_count))


@given(samples=st.integers(1, 10**9), shard=st.integers(1, 10**6), batch=sizes, data=st.data())
def test_in_a_single_block_every_number_is_a_division(
    samples: int, shard: int, batch: int, data: st.DataObject
) -> None:
    layout = Layout(blocks=(samples,), shard_size=shard, batch_size=batch, slice_batches=3)
    per_shard = -(-shard // batch)
    assert layout.shard_count == -(-samples // shard)
    assert layout.batch_count == samples // shard * per_shard + -(-(samples % shard) // batch)
    sample = SampleIndex(data.draw(st.integers(0, samples - 1)))
    number = layout.batch_of_sample(sample)
    assert number == sample // shard * per_shard + sample % shard // batch
    assert layout.shard_of_batch(number) == number // per_shard == sample // shard
    assert layout.slice_of_batch(number) == number % per_shard // 3
    start = number // per_shard * shard + number % per_shard * batch
    stop = min(start + batch, (number // per_shard + 1) * shard, samples)
    assert layout.batch_samples(number) == range(start, stop)


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
    last = plan.place(1, column=4, row=3)
    assert (last.x + last.width, last.y + last.height) == (600, 600)
    assert plan.place(1, column=1, row=1).x == (600 - 121) // 4
    assert plan.place(1, column=1, row=2).y == (600 - 200) * 2 // 3
    single = CompositesPlan(make_plan(grid=(1, 1)))
    centred = single.place(1, column=0, row=0)
    assert (centred.x, centred.y) == ((600 - 121) // 2, 200)

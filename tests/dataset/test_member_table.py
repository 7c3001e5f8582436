from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shardgen.artifacts.zip_records import Entry, ZipLimits, central_entry, local_header, read_entries
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.sample import member_name
from tests.plans import grown, make_plan

SMALL = make_plan(batch=4)


def plan_of_many() -> Plan:
    """More than 10^9 samples, so that a folder's name grows by a digit on the way."""
    plan = make_plan(backgrounds=1, foregrounds=1, grid=(100_000, 20_000))
    assert plan.samples == 2 * 10**9
    return plan


def plan_that_outgrew_its_names(first: int) -> Plan:
    """A first block of so many samples, whose numbers have 7 digits, then as many as 2 * 10^9."""
    plan = grown(make_plan(backgrounds=1, foregrounds=1, grid=(1, first)), (1, 0))
    later = replace(plan.blocks[1], samples=2 * 10**9)
    return replace(plan, blocks=(plan.blocks[0], later))


def columns_of(plan: Plan, samples: list[int]) -> tuple[MemberColumns, list[Entry]]:
    """Members of made-up sizes that follow each other, and the same as plain entries."""
    entries, offset = [], 0
    for sample in samples:
        for output in plan.outputs:
            name = member_name(output, SampleIndex(sample), digits=plan.name_digits)
            entry = Entry(
                name=name, crc=(sample * 31 + offset) % 2**32, size=100 + offset % 17, offset=offset
            )
            entries.append(entry)
            offset = entry.stop
    columns = MemberColumns(
        samples=np.array(samples, np.int64),
        crcs=np.array([entry.crc for entry in entries], np.uint32).reshape(-1, 3),
        sizes=np.array([entry.size for entry in entries], np.uint32).reshape(-1, 3),
        offsets=np.array([entry.offset for entry in entries], np.int64).reshape(-1, 3),
    )
    return columns, entries


CASES = [
    (SMALL, list(range(20))),
    (SMALL, [3]),
    (SMALL, [0, 5, 119]),
    (plan_of_many(), list(range(10**9 - 3, 10**9 + 3))),
    (plan_of_many(), [10**9]),
    *(
        (plan_that_outgrew_its_names(first), list(range(border - 2, border + 2)))
        for first in (9, 10**7, 10**7 + 1)
        for border in (10, 10**7, 10**8, 10**9)
    ),
    (plan_that_outgrew_its_names(9), [9, 10**7 - 1, 10**7, 10**8, 10**9 - 1, 10**9]),
]


def test_the_first_block_gives_names_their_width_and_longer_numbers_are_longer() -> None:
    for first, digits in ((9, 7), (10**7, 7), (10**7 + 1, 8)):
        plan = plan_that_outgrew_its_names(first)
        names = [
            member_name(plan.outputs[0], SampleIndex(sample), digits=plan.name_digits)
            for sample in (8, 10**7, 10**9)
        ]
        assert plan.name_digits == digits
        assert names == [
            f"fgbg/00000/{'0' * (digits - 1)}8.jpg",
            "fgbg/01000/10000000.jpg",
            "fgbg/100000/1000000000.jpg",
        ]


@pytest.mark.parametrize(("plan", "samples"), CASES)
@pytest.mark.parametrize("first_far", [0, 1, 2, 3, 4, 7, 10**6])
def test_entries_of_many_samples_at_once_are_those_of_one_member_after_the_other(
    plan: Plan, samples: list[int], first_far: int
) -> None:
    columns, entries = columns_of(plan, samples)
    limit = entries[first_far].offset if first_far < len(entries) else 2**32 - 1
    expected = b"".join(central_entry(entry, ZipLimits(offset=limit)) for entry in entries)
    table = MemberTable(plan)
    assert table.render_central(columns, zip64_offset=limit) == expected
    assert list(read_entries(expected)) == entries
    crcs, sizes = table.read_central(expected, columns.samples, zip64_from=min(first_far, len(entries)))
    assert np.array_equal(crcs, columns.crcs)
    assert np.array_equal(sizes, columns.sizes)
    assert np.array_equal(table.stops(columns.samples, sizes).ravel(), [entry.stop for entry in entries])
    assert table.central_size(columns.samples, zip64_from=min(first_far, len(entries))) == len(expected)


@pytest.mark.parametrize(("plan", "samples"), CASES)
@pytest.mark.parametrize("shift", [0, 1000, 2**32 - 1300])
def test_moved_entries_are_those_rendered_anew(plan: Plan, samples: list[int], shift: int) -> None:
    columns, _ = columns_of(plan, samples)
    table = MemberTable(plan)
    moved = replace(columns, offsets=columns.offsets + shift)
    assert bytes(table.move_central(table.render_central(columns), moved)) == table.render_central(moved)


@pytest.mark.parametrize(("plan", "samples"), CASES)
def test_local_headers_are_compared_to_the_byte(plan: Plan, samples: list[int]) -> None:
    columns, entries = columns_of(plan, samples)
    body = bytearray(b"".join(local_header(entry) + bytes(entry.size) for entry in entries))
    table = MemberTable(plan)
    assert table.has_local_headers(columns, np.frombuffer(body, np.uint8))
    for entry in (entries[0], entries[-1]):
        for position in (entry.offset, entry.data_offset - 1, entry.offset + 20):
            body[position] ^= 1
            assert not table.has_local_headers(columns, np.frombuffer(body, np.uint8))
            body[position] ^= 1
        body[entry.data_offset] ^= 1  # data is not the header's business
        assert table.has_local_headers(columns, np.frombuffer(body, np.uint8))

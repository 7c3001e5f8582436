"""Rows of which only pixels tell a part, compared with what the plan tells of them."""

from __future__ import annotations

import pytest

from shardgen.dataset.labels import first_wrong_row, label_rows, labels_header
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Block, Plan, Shards
from shardgen.domain.receipt import Facts
from shardgen.errors import ArtifactCorrupt
from tests.text_recipe import TextDocument, TextRecipe, TextSources

DOCUMENT = TextDocument(times=2)
SOURCES = TextSources(lines=("one", "two, or three", "four"), sha256="0" * 64)
RECIPE = TextRecipe(
    Plan(
        recipe=DOCUMENT,
        outputs=DOCUMENT.outputs,
        shards=Shards(size=4, slice_batches=2, batch=2),
        blocks=(Block(samples=6, sources=SOURCES),),
    )
)
DEAD = {2}
FACTS: Facts = {SampleIndex(sample): (sample + 10,) for sample in range(6) if sample not in DEAD}
ROWS = [
    labels_header(RECIPE),
    *(
        line
        for batch in range(3)
        for line in label_rows(RECIPE, BatchIndex(batch), without=DEAD, facts=FACTS).splitlines(keepends=True)
    ),
]


def wrong(rows: list[str]) -> str | None:
    return first_wrong_row(RECIPE, rows, without=DEAD)


def test_right_rows_are_accepted_whatever_number_a_fact_is() -> None:
    assert ROWS[:4] == [
        "sample,time,characters,shard,batch\n",
        "0,0,10,0,0\n",
        "1,1,11,0,0\n",
        "3,1,13,0,1\n",
    ]
    assert len(ROWS) == 6
    assert wrong(ROWS) is None
    assert wrong([*ROWS[:3], "3,1,-5,0,1\n", *ROWS[4:]]) is None


@pytest.mark.parametrize(
    ("rows", "fact"),
    [
        (["sample,time,letters,shard,batch\n", *ROWS[1:]], "a row 'sample,time,letters,shard,batch'"),
        ([*ROWS[:3], "2,0,12,0,1\n", *ROWS[3:]], "a row '2,0,12,0,1' (expected '3,1,,0,1')"),
        ([*ROWS[:2], *ROWS[3:]], "a row '3,1,13,0,1' (expected '1,1,,0,0')"),
        ([*ROWS[:3], "3,1,,0,1\n", *ROWS[4:]], "a row '3,1,,0,1', in which a fact is no number"),
        ([*ROWS[:3], "3,1,many,0,1\n", *ROWS[4:]], "in which a fact is no number"),
        ([*ROWS[:3], "3,1,13,0\n", *ROWS[4:]], "a row '3,1,13,0' (expected"),
        ([*ROWS[:3], "3,1,13,0,2\n", *ROWS[4:]], "(expected '3,1,,0,1')"),
        ([*ROWS[:3], "\n", *ROWS[3:]], "a row '' (expected"),
        (ROWS[:-1], "ends before its last row"),
        ([], "ends before its last row"),
        ([*ROWS, ROWS[-1]], "has rows behind its last one"),
        ([*ROWS[:-1], ROWS[-1][:-1]], "not written as"),
        ([*ROWS[:3], '"3",1,13,0,1\n', *ROWS[4:]], "not written as"),
        ([row.replace("\n", "\r\n") for row in ROWS], "not written as"),
        ([*ROWS[:3], "3,1\r,13,0,1\n", *ROWS[4:]], "does not read"),
        ([*ROWS[:3], "3" * 200_000 + ",1,13,0,1\n", *ROWS[4:]], "does not read"),
    ],
)
def test_a_row_that_is_not_the_plans_is_named(rows: list[str], fact: str) -> None:
    found = wrong(rows)
    assert found is not None
    assert fact in found
    assert len(found) < 1200


def test_a_stored_sample_without_facts_is_its_artifacts_fault() -> None:
    bare = {sample: facts for sample, facts in FACTS.items() if sample != 3}
    with pytest.raises(ArtifactCorrupt, match=r"batch 1: .* no facts of sample 3"):
        label_rows(RECIPE, BatchIndex(1), without=DEAD, facts=bare)

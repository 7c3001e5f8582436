"""Rows of which only pixels tell a part: made of what artifacts hold, compared with what the plan tells."""

from __future__ import annotations

import re
import zlib
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.dataset.labels import first_wrong_row, generous_label_bytes, label_rows, labels_header
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.verify import verify_run, verify_zip
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Block, Output, Plan, Shards
from shardgen.domain.receipt import ArtifactRef, Facts, OutputSums
from shardgen.errors import ArtifactCorrupt
from shardgen.recipes import registry
from shardgen.recipes.base import Recipe, csv_field
from tests.dataset.made_runs import MadeRun, sums_of_image
from tests.runs import sha256_of
from tests.text_recipe import Text, TextDocument, TextRecipe, TextSources

LINES = ("one", 'two, or "three"', "four\nfive")


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    registry.register(Text())
    yield
    del registry._KINDS["text"]


class MadeText(TextRecipe):
    """Of files that are made-up bytes."""

    def recount(self, output: Output, data: bytes) -> OutputSums:
        return sums_of_image(output, data)


def recipe_with(rows: int = 1, times: int = 2) -> TextRecipe:
    document = TextDocument(times=times, rows=rows)
    return MadeText(
        Plan(
            recipe=document,
            outputs=document.outputs,
            shards=Shards(size=4, slice_batches=2, batch=2),
            blocks=(Block(samples=6, sources=TextSources(lines=LINES * (2 // times), sha256="0" * 64)),),
        )
    )


class QuotingRecipe(TextRecipe):
    """Rows with the line itself, and a fact on both sides of it."""

    label_columns = ("sample", "characters", "line", "half")
    fact_columns = ("characters", "half")
    decimal_columns = frozenset({"half"})

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        rows = []
        for sample in map(SampleIndex, samples):
            if sample not in without:
                count, half = ("", "") if facts is None else (facts[sample][0], facts[sample][0] / 2)
                rows.append(f"{sample},{count},{csv_field(self.line(sample))},{half}{tail}")
        return "".join(rows)


RECIPE = recipe_with()
DEAD = {2}
FACTS: Facts = {SampleIndex(sample): (sample + 10,) for sample in range(6) if sample not in DEAD}
TWO_FACTS: Facts = {sample: (*facts, -7) for sample, facts in FACTS.items()}


def rows_of(recipe: Recipe, facts: Facts) -> list[str]:
    rows = (label_rows(recipe, BatchIndex(batch), without=DEAD, facts=facts) for batch in range(3))
    return [labels_header(recipe), *"".join(rows).splitlines(keepends=True)]


ROWS = rows_of(RECIPE, FACTS)


def wrong(rows: list[str], *, recipe: Recipe = RECIPE, size: int = 1000) -> str | None:
    data = "".join(rows).encode()
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    return first_wrong_row(recipe, pieces, without=DEAD)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_right_rows_are_accepted_whatever_number_a_fact_is(size: int) -> None:
    assert ROWS[:4] == [
        "sample,time,characters,shard,batch\n",
        "0,0,10,0,0\n",
        "1,1,11,0,0\n",
        "3,1,13,0,1\n",
    ]
    assert len(ROWS) == 6
    assert wrong(ROWS, size=size) is None
    assert wrong([*ROWS[:3], "3,1,-5,0,1\n", *ROWS[4:]], size=size) is None
    quoting = QuotingRecipe(RECIPE.plan)
    rows = rows_of(quoting, FACTS)
    assert rows[-2:] == ['5,15,"four\n', 'five",7.5,1,2\n']
    assert wrong(rows, recipe=quoting, size=size) is None
    assert rows[3] == '3,13,"two, or ""three""",6.5,0,1\n'
    moved = '3,13,"two, 6.5or ""three""",6.5,0,1\n'
    assert "(expected " in (wrong([*rows[:3], moved, *rows[4:]], recipe=quoting, size=size) or "")


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("rows", "fact"),
    [
        (["sample,time,letters,shard,batch\n", *ROWS[1:]], "a row 'sample,time,letters,shard,batch'"),
        ([*ROWS[:3], "2,0,12,0,1\n", *ROWS[3:]], "a row '2,0,12,0,1' (expected '3,1,,0,1')"),
        ([*ROWS[:2], *ROWS[3:]], "a row '3,1,13,0,1' (expected '1,1,,0,0')"),
        ([*ROWS[:3], "3,1,,0,1\n", *ROWS[4:]], "a row '3,1,,0,1', in which a fact is not a number"),
        ([*ROWS[:3], "3,1,many,0,1\n", *ROWS[4:]], "in which a fact is not a number"),
        ([*ROWS[:3], f"3,1,{10**15},0,1\n", *ROWS[4:]], "in which a fact is not a number"),
        ([*ROWS[:3], "3,1,13,0\n", *ROWS[4:]], "a row '3,1,13,0' (expected"),
        ([*ROWS[:3], "3,1,13,0,2\n", *ROWS[4:]], "(expected '3,1,,0,1')"),
        ([*ROWS[:3], "3,,13,0,1\n", *ROWS[4:]], "(expected '3,1,,0,1')"),
        ([*ROWS[:3], "\n", *ROWS[3:]], "a row '' (expected"),
        (ROWS[:-1], "ends before its last row"),
        ([], "ends before its last row"),
        ([*ROWS, ROWS[-1]], "has bytes behind its last row"),
        ([*ROWS, "\n"], "has bytes behind its last row"),
        ([*ROWS[:-1], ROWS[-1][:-1]], "(expected '5,1,,1,2')"),
        ([*ROWS[:3], '"3",1,13,0,1\n', *ROWS[4:]], "a row '\"3\",1,13,0,1' (expected"),
        ([*ROWS[:3], '3,1,"13",0,1\n', *ROWS[4:]], "in which a fact is not a number"),
        ([*ROWS[:3], '3,1,13,0,"1\n', *ROWS[4:]], "(expected '3,1,,0,1')"),
        ([row.replace("\n", "\r\n") for row in ROWS], "characters,shard,batch\\r' (expected"),
        ([*ROWS[:3], "3,1\r,13,0,1\n", *ROWS[4:]], "(expected '3,1,,0,1')"),
        ([*ROWS[:3], "3" * 2000 + ",1,13,0,1\n", *ROWS[4:]], "(expected '3,1,,0,1')"),
    ],
)
def test_a_row_that_is_not_the_plans_is_named(rows: list[str], fact: str, size: int) -> None:
    found = wrong(rows, size=size)
    assert found is not None
    assert fact in found
    assert len(found) < 1200


def test_bytes_without_an_end_of_a_row_are_not_read_to_their_end() -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        yield ROWS[0].encode()
        while True:
            read += 1
            yield b"3" * (1 << 20)

    found = first_wrong_row(RECIPE, endless(), without=DEAD)
    assert found is not None
    assert "(expected '0,0,,0,0')" in found
    assert read == 2


def test_a_sample_may_have_several_rows() -> None:
    two = recipe_with(rows=2)
    rows = rows_of(two, TWO_FACTS)
    assert rows[1:4] == ["0,0,10,0,0\n", "0,0,-7,0,0\n", "1,1,11,0,0\n"]
    assert wrong(rows, recipe=two) is None
    assert wrong(rows[:-1], recipe=two) == "ends before its last row"
    swapped = [*rows[:2], rows[3], rows[2], *rows[4:]]
    assert wrong(swapped, recipe=two) == "has a row '1,1,11,0,0' (expected '0,0,,0,0')"
    assert generous_label_bytes(two) == 2 * generous_label_bytes(RECIPE)


def test_a_stored_sample_without_facts_is_its_artifacts_fault() -> None:
    bare = {sample: facts for sample, facts in FACTS.items() if sample != 3}
    with pytest.raises(ArtifactCorrupt, match=r"batch 1: .* no facts of sample 3"):
        label_rows(RECIPE, BatchIndex(1), without=DEAD, facts=bare)
    with pytest.raises(ArtifactCorrupt, match=r"batch 1: .* sample 3 has 2 counts, not 1"):
        label_rows(RECIPE, BatchIndex(1), without=DEAD, facts=TWO_FACTS)


def empty_run(recipe: Recipe, folder: Path) -> MadeRun:
    (folder / "artifacts").mkdir()
    return MadeRun(recipe.plan, FolderStore(folder / "artifacts"))


def merged(run: MadeRun, recipe: Recipe, output: Path, *exclude: str, partial: bool = False) -> list[str]:
    """The rows of labels.csv, after a look at the whole zip."""
    inputs = MergeInputs(
        recipe=recipe,
        source=run,
        store=run.store,
        allow_dead_letters=True,
        exclude=frozenset(exclude),
        partial=partial,
    )
    merge(inputs, output)
    assert verify_zip(output).findings == ()
    with ZipFile(output) as archive:
        return archive.read("labels.csv").decode().splitlines(keepends=True)


def test_facts_come_from_the_attempt_that_counts(tmp_path: Path) -> None:
    recipe = recipe_with(rows=2)
    run = empty_run(recipe, tmp_path)
    other: Facts = dict.fromkeys(TWO_FACTS, (999, 999))
    run.publish(range(2), count=range(1), dead=[2], facts=TWO_FACTS)
    run.publish(range(1, 2), fence=2, dead=[2], facts=TWO_FACTS)
    run.publish(range(2, 3), fence=3, count=range(0), facts=other)
    rows = rows_of(recipe, TWO_FACTS)
    part = merged(run, recipe, tmp_path / "part.zip", partial=True)
    assert part == rows[:7]
    run.publish(range(2, 3), fence=4, facts=TWO_FACTS)
    assert merged(run, recipe, tmp_path / "whole.zip") == rows
    for excluded, rest in {"lines/0": rows[5:], "lines/1": rows[1:5] + rows[7:]}.items():
        assert merged(run, recipe, tmp_path / f"{len(rest)}.zip", excluded) == [rows[0], *rest]


def test_of_a_batch_that_is_kept_in_part_only_the_facts_of_that_part_are_taken(tmp_path: Path) -> None:
    recipe = recipe_with(rows=2, times=1)
    run = empty_run(recipe, tmp_path)
    run.publish(range(2), dead=[2], facts=TWO_FACTS)
    run.publish(range(2, 3), facts=TWO_FACTS)
    rows = rows_of(recipe, TWO_FACTS)
    left = merged(run, recipe, tmp_path / "out.zip", "lines/0", "4")
    assert left == [rows[0], *rows[3:7], *rows[9:]]


def run_with_facts(folder: Path) -> MadeRun:
    run = empty_run(RECIPE, folder)
    for batch in range(3):
        run.publish(range(batch, batch + 1), dead=[2], facts=FACTS)
    return run


def change(run: MadeRun, batch: int, old: bytes, new: bytes, *, with_crc: bool = True) -> None:
    """Change `receipt.json` in the artifact of a batch, and what its receipt says of the whole file."""
    name = run.rows[batch].artifact.name
    path = run.store.root / name
    data = path.read_bytes()
    content = data[data.rindex(b'{"batches"') : data.index(b"PK\1\2")]
    changed = content.replace(old, new)
    assert changed != content
    assert len(changed) == len(content)
    data = data.replace(content, changed)
    if with_crc:
        crcs = [zlib.crc32(text).to_bytes(4, "little") for text in (content, changed)]
        assert data.count(crcs[0]) == 2
        data = data.replace(crcs[0], crcs[1])
    path.write_bytes(data)
    ref = ArtifactRef(name=name, size_bytes=len(data), sha256=sha256_of(path))
    run.rows[batch] = replace(run.rows[batch], artifact=ref)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"[3,13]", b"[3,1.]", "receipt.json: Invalid JSON"),
        (b"[3,13]", b"[3,{}]", "facts.0.1: Input should be a valid integer"),
        (b"[[3,13]]", b"[[3131]]", "facts.0: "),
        (b"[3,13]", b"[5,13]", "no facts of sample 3"),
        (b"[3,13]", b"[2,13]", "no facts of sample 3"),
    ],
)
def test_wrong_facts_never_become_labels(tmp_path: Path, old: bytes, new: bytes, why: str) -> None:
    run = run_with_facts(tmp_path)
    change(run, 1, old, new)
    refused(run, tmp_path, why)


def refused(run: MadeRun, folder: Path, why: str) -> None:
    """By merge; and verify finds the batch, so that it can be put back."""
    with pytest.raises(ArtifactCorrupt, match=re.escape(why)) as caught:
        merged(run, RECIPE, folder / "out.zip")
    assert "batch-00000001" in str(caught.value) or "batch 1:" in str(caught.value)
    assert verify_run(RECIPE.plan, run, run.store).bad_batches == (1,)


def test_facts_without_their_crc_their_header_or_their_number_never_become_labels(tmp_path: Path) -> None:
    run = run_with_facts(tmp_path)
    change(run, 1, b"[3,13]", b"[3,14]", with_crc=False)
    refused(run, tmp_path, "receipt.json: its CRC does not match")

    change(run, 1, b"[3,14]", b"[3,13]", with_crc=False)
    path = run.store.root / run.rows[1].artifact.name
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\3\4") + 6] ^= 1
    path.write_bytes(data)
    run.rows[1] = replace(run.rows[1], artifact=replace(run.rows[1].artifact, sha256=sha256_of(path)))
    refused(run, tmp_path, "local header")

    run.rows[1:2] = []
    run.publish(range(1, 2), fence=2, dead=[2], facts=TWO_FACTS)
    refused(run, tmp_path, "batch 1: its receipt.json has wrong facts: sample 3 has 2 counts, not 1")


def test_facts_of_another_artifacts_samples_are_not_taken(tmp_path: Path) -> None:
    run = empty_run(RECIPE, tmp_path)
    run.publish(range(1), facts=dict.fromkeys(FACTS, (10000,)))
    run.publish(range(1, 2), dead=[2], facts={})
    run.publish(range(2, 3), facts=FACTS)
    change(run, 0, b"[[0,10000],[1,10000]]", b"[[0,1],[1,1],[3,100]]")
    with pytest.raises(ArtifactCorrupt, match="no facts of sample 3"):
        merged(run, RECIPE, tmp_path / "out.zip")

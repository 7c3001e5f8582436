"""`labels.csv`: the recipe's rows, each with its shard and batch (docs/formats.md: "Final zip")."""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Iterable, Iterator

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import Facts
from shardgen.domain.selection import Ranges, Selection, batches_with
from shardgen.errors import ArtifactCorrupt
from shardgen.recipes.base import Recipe

_FACT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")


def labels_header(recipe: Recipe) -> str:
    """The first line."""
    return ",".join((*recipe.label_columns, "shard", "batch")) + "\n"


def label_rows(recipe: Recipe, batch: BatchIndex, *, without: Container[int], facts: Facts | None) -> str:
    """The rows of one batch, without the dead samples.

    Raises ArtifactCorrupt when a stored sample lacks facts that its recipe writes down.
    """
    layout = recipe.plan.layout
    samples, tail = layout.batch_samples(batch), f",{layout.shard_of_batch(batch)},{batch}\n"
    if facts is not None and recipe.fact_columns:
        bare = next((one for one in samples if one not in without and SampleIndex(one) not in facts), None)
        if bare is not None:
            raise ArtifactCorrupt(f"batch {batch}: its receipt.json has no facts of sample {bare}")
    return recipe.label_rows(samples, tail=tail, without=without, facts=facts)


def planned_rows(
    recipe: Recipe, *, without: Container[int], selection: Selection | None = None
) -> Iterator[str]:
    """The header, then the rows of each batch as far as the plan tells them.

    Batches that the selection leaves out as a whole are not looked at.
    """
    yield labels_header(recipe)
    layout = recipe.plan.layout
    kept = Ranges([(0, layout.sample_count)]) if selection is None else selection.kept
    for batch in batches_with(kept, layout):
        yield label_rows(recipe, batch, without=without, facts=None)


def first_wrong_row(
    recipe: Recipe, found: Iterable[str], *, without: Container[int], selection: Selection | None = None
) -> str | None:
    """What is wrong with rows of which only pixels tell a part: of that, whether it is numbers.

    `found` are lines with their ends. None when nothing is wrong.
    """
    try:
        return _first_wrong_row(
            recipe, _Rows(found), planned_rows(recipe, without=without, selection=selection)
        )
    except csv.Error as error:
        return f"does not read ({error})"


def _first_wrong_row(recipe: Recipe, rows: _Rows, parts: Iterator[str]) -> str | None:
    header = (*recipe.label_columns, "shard", "batch")
    facts = {header.index(column) for column in recipe.fact_columns}
    expected = _Rows(line for part in parts for line in part.splitlines(keepends=True))
    unplanned = 0
    for number, right in enumerate(expected):
        row = next(rows, None)
        if row is None:
            return "ends before its last row"
        shown = ",".join(row)[:500]
        if number and len(row) == len(right):
            if not all(_FACT.fullmatch(row[column]) for column in facts):
                return f"has a row {shown!r}, in which a fact is no number"
            unplanned += sum(len(row[column]) for column in facts)
            row = ["" if column in facts else value for column, value in enumerate(row)]
        if row != right:
            return f"has a row {shown!r} (expected {','.join(right)!r})"
        # The same values can be written otherwise, but then with other quotes and line ends.
        if rows.characters != expected.characters + unplanned:
            return f"has a row {shown!r}, which is not written as merge writes it"
    return None if next(rows, None) is None else "has rows behind its last one"


class _Rows(Iterator[list[str]]):
    """The rows of these lines, and of how many characters they were read."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.characters = 0
        self._rows = csv.reader(self._counted(lines))

    def _counted(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.characters += len(line)
            yield line

    def __next__(self) -> list[str]:
        return next(self._rows)

"""`labels.csv`: the recipe's rows, each with its shard and batch (docs/formats.md: "Final zip")."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from itertools import chain
from math import ceil

import numpy as np
from numpy.typing import NDArray

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import Facts
from shardgen.domain.sample import spread_samples
from shardgen.domain.selection import Ranges, Selection, batches_with
from shardgen.errors import ArtifactCorrupt
from shardgen.recipes.base import Recipe, WrongFacts

_FACT = re.compile(rb"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_DIGITS_MAX = 15
_ROW_BYTES = 400  # a generous row; file names may be long
_ROW_BYTES_MAX = 1 << 20  # of a row that is looked for in bytes that may be anything
_LOOKED_AT = 8  # batches whose rows are counted
_SHOWN = 500
_COMMA, _LINE_END, _QUOTE, _ZERO = b',\n"0'
_HINT = "shardgen verify RUN_DIR --requeue"


def labels_header(recipe: Recipe) -> str:
    """The first line."""
    return ",".join((*recipe.label_columns, "shard", "batch")) + "\n"


def label_rows(recipe: Recipe, batch: BatchIndex, *, without: Container[int], facts: Facts | None) -> str:
    """The rows of one batch, without the dead samples.

    Raises ArtifactCorrupt when a stored sample lacks facts that its recipe writes down, or has wrong ones.
    """
    layout = recipe.plan.layout
    samples, tail = layout.batch_samples(batch), f",{layout.shard_of_batch(batch)},{batch}\n"
    if facts is not None and recipe.fact_columns:
        bare = next((one for one in samples if one not in without and SampleIndex(one) not in facts), None)
        if bare is not None:
            raise ArtifactCorrupt(
                f"batch {batch}: its receipt.json has no facts of sample {bare}", hint=_HINT
            )
    try:
        return recipe.label_rows(samples, tail=tail, without=without, facts=facts)
    except WrongFacts as error:
        raise ArtifactCorrupt(
            f"batch {batch}: its receipt.json has wrong facts: {error}", hint=_HINT
        ) from error


def generous_label_bytes(recipe: Recipe) -> int:
    """So many bytes of `labels.csv` a sample takes at most, or hardly more."""
    layout = recipe.plan.layout
    batches = {layout.batch_of_sample(sample) for sample in spread_samples(recipe.plan.samples, _LOOKED_AT)}
    rows = max(
        label_rows(recipe, batch, without=(), facts=None).count("\n") / len(layout.batch_samples(batch))
        for batch in batches
    )
    return _ROW_BYTES * ceil(rows)


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
    recipe: Recipe, found: Iterable[bytes], *, without: Container[int], selection: Selection | None = None
) -> str | None:
    """What is wrong with the rows; of what only pixels tell, whether it is numbers. None: nothing is wrong.

    `found` are the bytes of `labels.csv` in pieces, which are compared as a whole: rows are parsed, and
    quoting understood, only as far as there are facts to pass over.
    """
    planned = _Pieces(rows.encode() for rows in planned_rows(recipe, without=without, selection=selection))
    pieces = _Pieces(found)
    header = labels_header(recipe).encode()
    if (head := pieces.take(len(header))) != planned.take(len(header)):
        return differing(next(rows_of([head]), b""), header)
    facts = _FactFields(recipe)
    for data, stops in facts.whole_rows(pieces):
        blanked = facts.blanked(data, stops)
        expected = planned.take(len(data if blanked is None else blanked))
        if blanked != expected:
            return facts.named(data, rows_of(chain([expected], planned)))
    return "ends before its last row" if planned.take(1) else None


class _Pieces(Iterator[bytes]):
    """Bytes that come in pieces, and may be taken in others."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = filter(None, pieces)
        self._rest = b""

    def take(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        parts, missing = [], size
        while missing > 0 and (piece := next(self, b"")):
            parts.append(piece)
            missing -= len(piece)
        taken = b"".join(parts)
        self._rest = taken[size:]
        return taken[:size]

    def __next__(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest or next(self._pieces)


class _FactFields:
    """Which fields of a row are facts, and rows without them."""

    def __init__(self, recipe: Recipe) -> None:
        header = (*recipe.label_columns, "shard", "batch")
        self._are_facts = np.array([column in recipe.fact_columns for column in header])

    def whole_rows(self, pieces: Iterable[bytes]) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
        """Rows, many at once, and where their fields end, (rows, fields); last what is no whole row."""
        width = len(self._are_facts)
        rest = b""
        for piece in pieces:
            rest += piece
            stops = _field_stops(rest)
            stops = stops[: len(stops) // width * width].reshape(-1, width)
            if len(stops):
                end = int(stops[-1, -1]) + 1
                yield rest[:end], stops
                rest = rest[end:]
            elif len(rest) > _ROW_BYTES_MAX:
                break
        if rest:
            yield rest, np.empty((0, width), np.int64)

    def blanked(self, data: bytes, stops: NDArray[np.int64]) -> bytes | None:
        """The rows with nothing in the place of each fact; None when one is no number."""
        if not (len(stops) and self._are_facts.any()):
            return data
        starts = np.concatenate(([0], stops.ravel()[:-1] + 1)).reshape(stops.shape)
        sizes = stops - starts
        is_fact = np.repeat(np.tile(self._are_facts, len(stops)), sizes.ravel() + 1)
        is_fact[stops] = False
        characters = np.frombuffer(data, np.uint8)
        digits = characters[is_fact] - np.uint8(_ZERO)  # whatever is no digit wraps around, above 9
        sizes = sizes[:, self._are_facts]
        if sizes.min() < 1 or sizes.max() > _DIGITS_MAX or digits.max() > 9:
            places = (edges[:, self._are_facts].ravel().tolist() for edges in (starts, stops))
            if not all(_FACT.fullmatch(data, start, stop) for start, stop in zip(*places, strict=True)):
                return None
        return bytes(characters[~is_fact])

    def named(self, data: bytes, expected: Iterator[bytes]) -> str:
        """The first row that is wrong; there is one."""
        for row in rows_of([data]):
            right = next(expected, b"")
            stops = _field_stops(row)
            is_whole = len(stops) == len(self._are_facts)
            blanked = self.blanked(row, stops[None]) if is_whole else row
            if blanked is None:
                return f"has a row {_shown(row)}, in which a fact is not a number"
            if wrong := differing(blanked, right, shown=row):
                return wrong
        return "cannot be read"


def _field_stops(data: bytes) -> NDArray[np.int64]:
    """Where the commas and line ends are that end a field: those outside of quotes."""
    characters = np.frombuffer(data, np.uint8)
    ends = (characters == _COMMA) | (characters == _LINE_END)
    if b'"' in data:
        ends &= np.cumsum(characters == _QUOTE) % 2 == 0
    return np.flatnonzero(ends)


def rows_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Rows with their line ends, one at a time; there may be line ends in quotes."""
    row = rest = b""
    for piece in pieces:
        text = rest + piece
        *lines, rest = text.split(b"\n")
        if not row and b'"' not in text:
            for line in lines:
                yield line + b"\n"
            continue
        for line in lines:
            row += line + b"\n"
            if row.count(b'"') % 2 == 0:
                yield row
                row = b""
    if row or rest:
        yield row + rest


def differing(row: bytes, right: bytes, *, shown: bytes | None = None) -> str | None:
    """What is wrong with a row of a file, that should be another or none; None when nothing is."""
    if row == right:
        return None
    if not right:
        return "has bytes behind its last row"
    if not row:
        return "ends before its last row"
    return f"has a row {_shown(row if shown is None else shown)} (expected {_shown(right)})"


def _shown(row: bytes) -> str:
    return repr(row[:_SHOWN].decode(errors="replace").removesuffix("\n"))

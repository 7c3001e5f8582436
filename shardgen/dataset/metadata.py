"""`metadata.csv`: one row a sample, with the names of its images, for those who train on the zip.

It says what `labels.csv` says, in the form that Hugging Face's `imagefolder` reads: columns that end in
`_file_name` are images. See docs/formats.md: "Final zip".
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from shardgen.dataset.labels import differing, rows_of
from shardgen.domain.sample import SAMPLES_PER_FOLDER
from shardgen.recipes.base import Recipe, csv_field

_ROWS_AT_ONCE = 4096
_ENGINE_COLUMNS = 2  # shard and batch, the last ones of labels.csv


class Metadata:
    """The columns and rows of a recipe's `metadata.csv`."""

    def __init__(self, recipe: Recipe) -> None:
        self.label_columns = recipe.label_columns
        self.file_columns = tuple(
            f"{output.name}_{'file_name' if output.channels else 'path'}" for output in recipe.plan.outputs
        )
        """One for each output: `fgbg_file_name`, or `said_path` where the file is no image."""
        self.columns = (*self.file_columns, *self.label_columns)
        self.header = (",".join(self.columns) + "\n").encode()
        digits = recipe.plan.name_digits
        names = (f"{one.name}/%05d/%0{digits}d.{one.suffix}," for one in recipe.plan.outputs)
        self._names = "".join(names).encode()
        self._files = len(recipe.plan.outputs)
        self._is_text = [column in recipe.text_columns for column in self.label_columns]
        self._has_lists = recipe.has_several_rows
        self._is_list = [
            self._has_lists and column not in recipe.sample_columns for column in self.label_columns
        ]
        self._read = [
            _list if is_list else str if is_text else _number
            for is_list, is_text in zip(self._is_list, self._is_text, strict=True)
        ]

    def file(self, labels: Iterable[bytes]) -> Iterator[bytes]:
        """The bytes of `metadata.csv`, of those of `labels.csv`; both in pieces."""
        rows = rows_of(labels)
        next(rows, b"")
        yield self.header
        yield from self._pieces(rows)

    def rows(self, labels: bytes) -> bytes:
        """The rows of some samples, of all their rows in `labels.csv`."""
        return b"".join(self._pieces(rows_of([labels])))

    def start(self, number: int) -> bytes:
        """What the row of a sample begins with: the names of its files, and its number."""
        return self._names % ((number // SAMPLES_PER_FOLDER, number) * self._files) + b"%d," % number

    def values(self, row: bytes) -> dict[str, Any]:
        """The labels in a row: numbers, texts, None where there is nothing, or lists of these.

        Raises ValueError for what is no row of ours.
        """
        try:
            fields = next(csv.reader([row.decode()]), [])
        except csv.Error as error:
            raise ValueError(f"a row that does not read: {error}") from error
        if len(fields) != len(self.columns):
            raise ValueError(f"a row of {len(fields)} fields, not {len(self.columns)}")
        columns = zip(self.label_columns, self._read, fields[self._files :], strict=True)
        return {name: read(text) for name, read, text in columns}

    def _pieces(self, rows: Iterator[bytes]) -> Iterator[bytes]:
        made = self._of_several(rows) if self._has_lists else self._of_one(rows)
        found: list[bytes] = []
        for row in made:
            found.append(row)
            if len(found) == _ROWS_AT_ONCE:
                yield b"".join(found)
                found.clear()
        if found:
            yield b"".join(found)

    def _of_one(self, rows: Iterable[bytes]) -> Iterator[bytes]:
        # Not parsed: what stands between the names and shard and batch is the row of `labels.csv` itself.
        names, files = self._names, self._files
        for row in rows:
            number = int(row[: row.index(b",")])
            named = names % ((number // SAMPLES_PER_FOLDER, number) * files)
            yield named + row.rsplit(b",", _ENGINE_COLUMNS)[0] + b"\n"

    def _of_several(self, rows: Iterator[bytes]) -> Iterator[bytes]:
        parsed = csv.reader(row.decode() for row in rows)
        for text, of_it in groupby(parsed, key=lambda fields: fields[0]):
            number, columns = int(text), list(zip(*of_it, strict=True))[: len(self.label_columns)]
            fields = [
                _json_list(values, is_text=is_text)
                if is_list
                else csv_field(values[0])
                if is_text
                else values[0]
                for values, is_text, is_list in zip(columns, self._is_text, self._is_list, strict=True)
            ]
            names = self._names % ((number // SAMPLES_PER_FOLDER, number) * self._files)
            yield names + ",".join(fields).encode() + b"\n"


def first_wrong_metadata(recipe: Recipe, labels: Iterable[bytes], found: Iterable[bytes]) -> str | None:
    """What is wrong with a `metadata.csv` beside right labels; None when nothing is."""
    expected, theirs = rows_of(Metadata(recipe).file(labels)), rows_of(found)
    for row in expected:
        if wrong := differing(next(theirs, b""), row):
            return wrong
    return differing(next(theirs, b""), b"")


def _list(text: str) -> list[Any]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(f"{text[:100]!r} is no list")  # noqa: TRY004 - the row is wrong, not a type
    return found


def _number(text: str) -> int | float | None:
    if not text:
        return None
    return float(text) if "." in text else int(text)


def _json_list(values: Sequence[str], *, is_text: bool) -> str:
    """A field with a JSON list, quoted: numbers as they stand, nothing as null."""
    if is_text:
        return csv_field(f"[{','.join(json.dumps(value, ensure_ascii=False) for value in values)}]")
    if "" in values:
        values = [value or "null" for value in values]
    return f'"[{",".join(values)}]"' if len(values) > 1 else f"[{values[0]}]"

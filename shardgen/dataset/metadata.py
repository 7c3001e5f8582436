"""`metadata.csv`: one row per sample, with the names of its images, for training on the zip.

It says what `labels.csv` says, in the form that Hugging Face's `imagefolder` reads: columns that end in
`_file_name` are images. See docs/formats.md: "Final zip".
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, islice, repeat
from math import isfinite
from typing import Any

from shardgen.dataset.labels import differing, rows_of
from shardgen.domain.sample import SAMPLES_PER_FOLDER
from shardgen.recipes.base import Recipe, csv_field
from shardgen.storage.bounded import parse_json

_ROWS_AT_ONCE = 4096
_DIGITS_IN_FOLDER = len(str(SAMPLES_PER_FOLDER)) - 1
_ENGINE_COLUMNS = 2  # shard and batch, the last ones of labels.csv
_PLAIN = re.compile("0|[1-9][0-9]{0,14}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFields:
    """What a label's fields in `metadata.csv` hold: texts, numbers, or JSON lists of either."""

    name: str
    is_text: bool
    is_list: bool
    is_decimal: bool

    def value(self, field: str) -> Any:
        """That of one field, as `values` has it."""
        # Most are plain, and what reads many at once is slow for one.
        if not self.is_text and not self.is_list and _PLAIN.fullmatch(field):
            return int(field)
        return self.values([field])[0]

    def values(self, fields: Sequence[str]) -> Sequence[Any]:
        """The value of each field; None is a number that is not there.

        Raises ValueError for what merge does not write: constants, exponents, decimals of whole numbers.
        """
        if self.is_text and not self.is_list:
            return fields
        if not self.is_list and not all(fields):
            fields = [field or "null" for field in fields]
        text = ",\n".join(fields)  # JSON has no line end within a text
        try:
            found = parse_json(f"[{text}]")
        except ValueError:
            found = None
        if not isinstance(found, list) or len(found) != len(fields) or not self._are_right(found, text):
            number = "number" if self.is_decimal else "whole number"
            what = f"{'list of ' * self.is_list}{'text' if self.is_text else number}{'s' * self.is_list}"
            raise ValueError(f"{self.name} has a field that is no {what}")
        return found

    def _are_right(self, found: list[Any], text: str) -> bool:
        values: Iterable[Any] = found
        if self.is_list:
            # Each field is a list by itself: none ends within one, and begins another.
            borders = text.count("],\n[")
            if borders != len(found) - 1 or text.count("\n") != borders or set(map(type, found)) != {list}:
                return False
            values = list(chain.from_iterable(found))
        types = set(map(type, values))
        if self.is_text:
            return types <= {str}
        if not types <= {int, float, type(None)} or "e" in text or "E" in text:
            return False
        return float not in types or (
            self.is_decimal and all(isfinite(value) for value in values if type(value) is float)
        )


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
        self._outputs = recipe.plan.outputs
        self._digits = recipe.plan.name_digits
        self._around_numbers = lru_cache(maxsize=1)(self._around_numbers_in)
        self._has_lists = recipe.has_several_rows
        self.label_fields = tuple(
            LabelFields(
                name=name,
                is_text=name in recipe.text_columns,
                is_list=self._has_lists and name not in recipe.sample_columns,
                is_decimal=name in recipe.decimal_columns,
            )
            for name in self.label_columns
        )

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
        text = b"%d" % number
        return self._file_names([text])[0] + text + b","

    def _file_names(self, numbers: Iterable[bytes]) -> list[bytes]:
        """What the rows of these samples begin with: the names of their files."""
        found = []
        filled = (number.zfill(self._digits) for number in numbers)
        for folder, in_it in groupby(filled, lambda number: number[:-_DIGITS_IN_FOLDER]):
            around = self._around_numbers(int(folder))
            found += [number.join(around) for number in in_it]
        return found

    def _around_numbers_in(self, folder: int) -> list[bytes]:
        """What stands before, between and behind the numbers in the names of a sample's files."""
        names = "".join(f"{one.name}/{folder:05d}/\n.{one.suffix}," for one in self._outputs)
        return names.encode().split(b"\n")

    def values(self, row: bytes) -> dict[str, Any]:
        """The labels in a row: numbers, texts, None where there is nothing, or lists of these.

        Raises ValueError for what is no row of ours.
        """
        try:
            fields = next(csv.reader([row.decode()]), [])
        except csv.Error as error:
            raise ValueError(f"a row that cannot be read: {error}") from error
        if len(fields) != len(self.columns):
            raise ValueError(f"a row of {len(fields)} fields, not {len(self.columns)}")
        columns = zip(self.label_fields, fields[len(self._outputs) :], strict=True)
        return {one.name: one.value(field) for one, field in columns}

    def _pieces(self, rows: Iterator[bytes]) -> Iterator[bytes]:
        if self._has_lists:
            rows = self._of_several(rows)
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            yield b"".join(some) if self._has_lists else self._of_one(some)

    def _of_one(self, rows: Sequence[bytes]) -> bytes:
        # Not parsed: what stands between the names and shard and batch is the row of `labels.csv` itself.
        names = self._file_names([row[: row.index(b",")] for row in rows])
        labels = [row.rsplit(b",", _ENGINE_COLUMNS)[0] for row in rows]
        return b"".join(chain.from_iterable(zip(names, labels, repeat(b"\n"), strict=False)))

    def _of_several(self, rows: Iterator[bytes]) -> Iterator[bytes]:
        parsed = csv.reader(row.decode() for row in rows)
        for text, of_it in groupby(parsed, key=lambda fields: fields[0]):
            columns = list(zip(*of_it, strict=True))[: len(self.label_columns)]
            fields = [
                _json_list(values, is_text=one.is_text)
                if one.is_list
                else csv_field(values[0])
                if one.is_text
                else values[0]
                for one, values in zip(self.label_fields, columns, strict=True)
            ]
            yield self._file_names([text.encode()])[0] + ",".join(fields).encode() + b"\n"


def first_wrong_metadata(recipe: Recipe, labels: Iterable[bytes], found: Iterable[bytes]) -> str | None:
    """What is wrong with a `metadata.csv` beside right labels; None when nothing is."""
    expected, theirs = rows_of(Metadata(recipe).file(labels)), rows_of(found)
    for row in expected:
        if wrong := differing(next(theirs, b""), row):
            return wrong
    return differing(next(theirs, b""), b"")


def _json_list(values: Sequence[str], *, is_text: bool) -> str:
    """A field with a JSON list, quoted: numbers as they stand, nothing as null."""
    if is_text:
        return csv_field(f"[{','.join(json.dumps(value, ensure_ascii=False) for value in values)}]")
    if "" in values:
        values = [value or "null" for value in values]
    return f'"[{",".join(values)}]"' if len(values) > 1 else f"[{values[0]}]"

"""Parquet files that Hugging Face's `datasets` reads: images as their encoded bytes, labels as columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from shardgen.dataset.export.base import ExportSample, ShardWriter
from shardgen.domain.sample import member_name
from shardgen.errors import InputMissing
from shardgen.recipes.base import Recipe

# A reader decodes a row group as a whole, and the writer keeps one in memory: a hundred small samples are a
# megabyte, and of large ones these bytes are a few.
_GROUP_ROWS = 100
_GROUP_BYTES = 8 << 20
# With the page index one row costs a page of each column. A page ends behind so many bytes, which are looked
# at every so many rows.
_PAGE_BYTES = 64 << 10
_PAGE_ROWS = 8
_MAGIC = b"PAR1"
_FOOTER_SIZE_BYTES = 4
_IMAGE = {"_type": "Image"}
"""Of `datasets`: a struct of the encoded bytes and a file name."""


def refuse_parquet() -> None:
    """Raise InputMissing where the extra that writes Parquet is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise InputMissing(
            f"pyarrow, which writes Parquet, cannot be imported: {error}",
            hint='python -m pip install "shardgen[export]"',
        ) from error


class ParquetWriter(ShardWriter):
    """One Parquet file; the same samples give the same bytes with the same version of pyarrow.

    The types of its columns follow from the recipe, never from values: all files of a data set have one
    schema. Memory holds one row group.
    """

    suffix: ClassVar[str] = "parquet"

    def __init__(self, recipe: Recipe, path: Path) -> None:
        refuse_parquet()
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

        self._outputs, self._digits = recipe.plan.outputs, recipe.plan.name_digits
        self._labels = recipe.label_columns
        features = dict(_features(recipe))
        self._types = {name: _arrow_type(feature) for name, feature in features.items()}
        described = json.dumps({"info": {"features": features}})
        self._schema = pa.schema(self._types, metadata={"huggingface": described})
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        names = [f"{name}.path" for name, feature in features.items() if feature is _IMAGE]
        labels = [
            f"{name}.list.element" if pa.types.is_list(self._types[name]) else name for name in self._labels
        ]
        # Opened here, not by pyarrow: what a full disk raises is then Python's error.
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            # The files themselves are compressed already, and no two are alike.
            compression=dict.fromkeys([*labels, *names], "zstd"),
            use_dictionary=labels,
            write_statistics=labels,
            write_page_index=True,
            data_page_size=_PAGE_BYTES,
            write_batch_size=_PAGE_ROWS,
        )

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        """Whether it ends in a footer of a length that fits."""
        with path.open("rb") as file:
            begin, size = file.read(len(_MAGIC)), file.seek(0, os.SEEK_END)
            least = 2 * len(_MAGIC) + _FOOTER_SIZE_BYTES
            if size <= least:
                return False
            file.seek(-len(_MAGIC) - _FOOTER_SIZE_BYTES, os.SEEK_END)
            footer = int.from_bytes(file.read(_FOOTER_SIZE_BYTES), "little")
            return begin == file.read() == _MAGIC and 0 < footer <= size - least

    def add(self, sample: ExportSample) -> None:
        """Keep it until a row group is full."""
        row: dict[str, Any] = {}
        for output in self._outputs:
            data = sample.files[output.name]
            name = PurePosixPath(member_name(output, sample.number, digits=self._digits)).name
            row[output.name] = {"bytes": data, "path": name} if output.channels else data
            self._bytes += len(data)
        self._rows.append(row | {name: sample.labels[name] for name in self._labels})
        if len(self._rows) == _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def finish(self) -> None:
        """Write the last row group and the footer."""
        if self._rows:
            self._write_group()
        self._writer.close()
        self._file.close()

    def abandon(self) -> None:
        """Close without a footer."""
        self._writer.is_open = False  # else it would write one when it is collected
        with suppress(OSError):  # of what need not be written any more
            self._file.close()

    def _write_group(self) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an extra

        # Not made in their types at once: `pa.array` would cut decimals off, where a cast refuses to.
        arrays = [
            pa.array([row[name] for row in self._rows]).cast(kind) for name, kind in self._types.items()
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


def _features(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each column is, as `datasets` says it."""
    for output in recipe.plan.outputs:
        yield output.name, _IMAGE if output.channels else {"dtype": "large_binary", "_type": "Value"}
    for name in recipe.label_columns:
        number = "float64" if name in recipe.decimal_columns else "int64"
        value = {"dtype": "string" if name in recipe.text_columns else number, "_type": "Value"}
        has_several = recipe.has_several_rows and name not in recipe.sample_columns
        # Not "List", its newer name, which `datasets` reads from version 4 on.
        yield name, {"feature": value, "_type": "Sequence"} if has_several else value


def _arrow_type(feature: dict[str, Any]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    if feature is _IMAGE:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if "feature" in feature:
        return pa.list_(_arrow_type(feature["feature"]))
    return pa.type_for_alias(feature["dtype"])

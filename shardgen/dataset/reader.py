"""A finished data set for training: `shardgen.DataSet("people.zip")`."""

from __future__ import annotations

import csv
import io
import os
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import index as as_index
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, SupportsIndex
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.zip_records import LOCAL, BrokenZip
from shardgen.dataset.member_table import MemberTable
from shardgen.dataset.metadata import LabelFields, Metadata
from shardgen.dataset.opened_zip import OpenedZip
from shardgen.dataset.output import LABELS, METADATA, PLAN, STATS
from shardgen.dataset.statistics import OutputStatistics, read_statistics
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.sample import member_name
from shardgen.domain.selection import Selection
from shardgen.errors import (
    ArtifactCorrupt,
    InvalidSettings,
    MachineUnfit,
    ManifestCorrupt,
    PlanConflict,
    SampleError,
)
from shardgen.recipes.base import Recipe
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import parse_plan
from shardgen.storage.files import storage_error

_ROWS_AT_ONCE = 4096
_LINE_FEED, _QUOTE = b'\n"'
_SAMPLE = "sample"
_OTHER_SAMPLES = f"{METADATA}: has rows of other samples than the images"

Column = NDArray[Any] | Sequence[Any]
"""int64 or float64 if all rows have numbers, else objects; a sequence of lists for several people."""
Transform = Callable[[dict[str, Any]], Any]


class DataSet:
    """The stored samples of a data set, in the order of their numbers, read straight from the zip.

    `data[i]` is a dict with everything about one sample. First come the stored files, by the names of
    `outputs`: an image with three channels as uint8 (height, width, 3), RGB; an image with one channel as
    uint8 (height, width), or uint16 if it is stored in 16 bits; any other file as bytes. Then come the
    labels, by the columns of `metadata.csv`: int, float, str, or None for an empty field. If a sample may
    show several people, each label is a list with a value for each person.

    Dead letters and samples that were left out are not included; `samples` has the number of each sample.
    Every file's CRC is checked when it is read. Threads and forked processes may share a data set; a pickled
    one opens its path again. Opening reads the zip's directory and keeps 40 bytes per sample; labels are
    read on first use. Close the data set, or use `with`, to release the file at once.

    Raises InputMissing if there is no such file, ArtifactCorrupt if the file is damaged or not a data set of
    shardgen, ManifestMismatch if it is from another version, and StorageFailed.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are
        self._zip = OpenedZip(self.path)
        # Not by `__del__`: when Python ends, what closes a file may be gone before this is.
        finalize(self, self._zip.close).atexit = False
        try:
            self._open()
        except BaseException:
            self._zip.close()
            raise

    def _open(self) -> None:
        with _reading(self.path):
            self.plan: Plan = _plan_in(self._zip)
            self.recipe: Recipe = recipe_of(self.plan, beside=self._zip.beside)
            dead_letters = self._zip.dead_letters(self.plan)
            self.dead_letters: Mapping[int, DeadLetterReason] = MappingProxyType(dead_letters)
            self.selection: Selection = self._zip.selection(self.plan)
            self._read_directory()
        self._headers = [
            LOCAL.size + len(member_name(output, SampleIndex(0), digits=self.plan.name_digits))
            for output in self.outputs
        ]
        # Of a number as large as these the names are longer.
        self._short_names_until = 10**self.plan.name_digits
        self._metadata = _MetadataFile(self._zip, self.recipe, self.samples)
        self._statistics: Mapping[str, OutputStatistics] | None = None
        self._labels: Mapping[str, Column] | None = None

    def _read_directory(self) -> None:
        self._zip.check_order()
        table = MemberTable(self.plan)
        count = self.selection.kept.count - len(self.dead_letters)
        if wrong := self._zip.miscount(table, self.dead_letters, self.selection):
            raise BrokenZip(wrong)
        self.samples: NDArray[np.int64] = np.empty(count, np.int64)
        """The number of each stored sample in the plan, ascending."""
        self._offsets = np.empty(count + 1, np.int64)  # of each sample's first header, and of the end
        self._offsets[-1] = self._zip.tail.entries[LABELS].offset
        self._sizes = np.empty((count, table.width), np.uint32)
        self._crcs = np.empty((count, table.width), np.uint32)
        row = 0
        for columns in self._zip.images(table, self.dead_letters, self.selection):
            rows = slice(row, row + len(columns.samples))
            self.samples[rows], self._offsets[rows] = columns.samples, columns.offsets[:, 0]
            self._sizes[rows], self._crcs[rows] = columns.sizes, columns.crcs
            row = rows.stop
        self.samples.flags.writeable = False  # names are made of them

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The files stored for each sample, in this order."""
        return self.plan.outputs

    @property
    def statistics(self) -> Mapping[str, OutputStatistics]:
        """Mean and standard deviation of each image output's pixels, from 0 to 1, as in `stats.json`."""
        if self._statistics is None:
            with _reading(self.path):
                self._statistics = _statistics_in(self._zip, self.plan)
        return self._statistics

    @property
    def labels(self) -> Mapping[str, Column]:
        """The columns of `metadata.csv` except file names, with a value for each stored sample.

        Numbers are int64 or float64; texts, and numbers that are missing in some rows, are objects. If a
        sample may show several people, a column is a sequence of lists. The first call reads all columns.
        They are read-only.
        """
        if self._labels is None:
            with _reading(self.path):
                self._labels = MappingProxyType(self._metadata.columns())
        return self._labels

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row = self._row(index)
        return {**self._decoded(row), **self._labels_of(row)}

    def __getitems__(self, indexes: Sequence[SupportsIndex]) -> list[dict[str, Any]]:
        """Several samples at once, as PyTorch asks for them."""
        return [self[index] for index in indexes]

    def encoded(self, index: SupportsIndex) -> dict[str, bytes]:
        """The stored files of a sample, by the names of `outputs`, with their CRCs checked."""
        return self._encoded(self._row(index))

    def labels_of(self, index: SupportsIndex) -> dict[str, Any]:
        """Only the labels of a sample, without reading images."""
        return self._labels_of(self._row(index))

    def as_torch(
        self, *, labels: Sequence[str] = (_SAMPLE,), transform: Transform | None = None
    ) -> TorchView:
        """The same samples for a `torch.utils.data.DataLoader`, with any number of workers.

        Each sample is a dict of uint8 tensors, (3, height, width) RGB or (1, height, width), int32 if stored
        in 16 bits, plus the named `labels`. `transform` turns it into what you train on. A label of several
        people is a list, and images may differ in size. PyTorch's loader can stack neither, so make them
        uniform in `transform`, or give the loader a `collate_fn`.

        PyTorch is imported when the first sample is read; MachineUnfit is raised if that fails. Naming labels
        other than `sample` reads all labels first. Raises InvalidSettings for a label that does not exist, or
        that has no value in some rows.
        """
        return TorchView(self, self._complete(labels, of="as_torch"), transform)

    def as_tf_data(self, *, labels: Sequence[str] = (_SAMPLE,), shuffle_seed: int | None = None) -> Any:
        """The same samples as a `tf.data.Dataset` of dicts, in order, decoded by many threads.

        Images are uint8, (height, width, 3) RGB or (height, width, 1), or uint16 if stored in 16 bits. If
        samples differ in size, the shape has None. A label of several people is a vector whose length varies:
        use `ragged_batch`, since `batch` cannot stack these. `shuffle_seed` shuffles all samples, in another
        order in each epoch. Raises InvalidSettings for a label that does not exist, or that has no value in
        some rows, and MachineUnfit without TensorFlow.
        """
        return _tf_data(self, self._complete(labels, of="as_tf_data"), shuffle_seed)

    def close(self) -> None:
        """Release the file; reading from it then raises ValueError, as for any closed file."""
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(output.name for output in self.outputs)
        return f"DataSet({str(self.path)!r}): {len(self):,} samples of {names}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (str(self.path), self.plan.fingerprint, len(self))

    def _row(self, index: SupportsIndex) -> int:
        if isinstance(index, slice):
            raise TypeError(
                "a DataSet returns one sample at a time, not a slice: [data[i] for i in range(10)]"
            )
        row, count = as_index(index), len(self)
        if not -count <= row < count:
            raise IndexError(f"sample {row} of {count:,}")
        return row % count

    def _encoded(self, row: int) -> dict[str, bytes]:
        start, stop = self._offsets[row : row + 2].tolist()
        with _reading(self.path):
            data = self._zip.at_once(start, stop)
        number = int(self.samples[row])
        longer = 0 if number < self._short_names_until else self._longer(number)
        files: dict[str, bytes] = {}
        offset = 0
        sizes, crcs = self._sizes[row].tolist(), self._crcs[row].tolist()
        for output, header, size, crc in zip(self.outputs, self._headers, sizes, crcs, strict=True):
            offset += header + longer
            file = data[offset : offset + size]
            if zlib.crc32(file) != crc:
                raise self._corrupt(row, output, "its bytes do not match its CRC")
            files[output.name] = file
            offset += size
        return files

    def _longer(self, number: int) -> int:
        name = member_name(self.outputs[0], SampleIndex(number), digits=self.plan.name_digits)
        return LOCAL.size + len(name) - self._headers[0]

    def _decoded(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = self._encoded(row)
        for output in self.outputs:
            try:
                found[output.name] = self.recipe.decoded(output, found[output.name])
            except SampleError as error:
                raise self._corrupt(row, output, str(error)) from error
        return found

    def _labels_of(self, row: int) -> dict[str, Any]:
        with _reading(self.path):
            return self._metadata.values(row)

    def _corrupt(self, row: int, output: Output, fact: str) -> ArtifactCorrupt:
        name = member_name(output, SampleIndex(int(self.samples[row])), digits=self.plan.name_digits)
        return _damaged(self.path, f"{name}: {fact}")

    def _complete(self, labels: Sequence[str], *, of: str) -> tuple[str, ...]:
        """The names of labels; InvalidSettings unless there are these, with a value for everyone."""
        names = (labels,) if isinstance(labels, str) else tuple(labels)
        known = self.recipe.label_columns
        if strange := [name for name in names if name not in known]:
            raise InvalidSettings(
                f"{of}(labels=…): there is no label {strange[0]!r}", hint=f"labels are {', '.join(known)}"
            )
        for name in names:
            if name != _SAMPLE and any(value is None for value in _objects_in(self.labels[name])):
                raise InvalidSettings(
                    f"{of}(labels=…): {name!r} has no value in some rows", hint="choose other labels"
                )
        return names


class TorchView:
    """A data set in the form that PyTorch's loaders need; see `DataSet.as_torch`."""

    def __init__(self, data: DataSet, labels: tuple[str, ...], transform: Transform | None) -> None:
        self.data, self.labels, self.transform = data, labels, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: SupportsIndex) -> Any:
        row = self.data._row(index)  # noqa: SLF001 - the two are one
        found = {name: _tensor(value) for name, value in self.data._decoded(row).items()}  # noqa: SLF001
        if self.labels == (_SAMPLE,):
            found[_SAMPLE] = int(self.data.samples[row])
        elif self.labels:
            labels = self.data.labels_of(row)
            found |= {name: labels[name] for name in self.labels}
        return found if self.transform is None else self.transform(found)

    def __getitems__(self, indexes: Sequence[SupportsIndex]) -> list[Any]:
        """Several samples at once, as PyTorch asks for them."""
        return [self[index] for index in indexes]


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MachineUnfit("PyTorch is not installed", hint="python -m pip install torch") from error
    if value.dtype == np.uint16:
        value = value.astype(np.int32)  # of 16 unsigned bits PyTorch knows little
    planes = value[np.newaxis] if value.ndim == 2 else np.ascontiguousarray(value.transpose(2, 0, 1))
    return torch.from_numpy(planes)


def _tf_data(data: DataSet, labels: tuple[str, ...], shuffle_seed: int | None) -> Any:
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise MachineUnfit("TensorFlow is not installed", hint="python -m pip install tensorflow") from error
    columns = {name: data.samples if name == _SAMPLE else data.labels[name] for name in labels}
    images = {output.name for output in data.outputs if output.channels}
    types = {output.name: _array_type(output) for output in data.outputs}
    types |= {name: _values_in(column).dtype for name, column in columns.items()}
    shapes: dict[str, tuple[int | None, ...]] = {
        output.name: (*reversed(output.size or (None, None)), output.channels) if output.channels else ()
        for output in data.outputs
    }
    shapes |= {name: (None,) if isinstance(one, Lists) else () for name, one in columns.items()}

    def read(index: SupportsIndex) -> list[NDArray[Any]]:
        row = as_index(index)
        values = data._decoded(row)  # noqa: SLF001 - the two are one
        for name in images:
            if values[name].ndim == 2:
                values[name] = values[name][..., np.newaxis]
        values |= {name: column[row] for name, column in columns.items()}
        return [np.asarray(values[name], dtype) for name, dtype in types.items()]

    def load(index: Any) -> dict[str, Any]:
        wanted = [tf.as_dtype(np.dtype(dtype)) for dtype in types.values()]
        found = dict(zip(types, tf.numpy_function(read, [index], wanted, stateful=False), strict=True))
        for name, tensor in found.items():
            tensor.set_shape(shapes[name])
        return found

    indexes = tf.data.Dataset.range(len(data))
    if shuffle_seed is not None:
        indexes = indexes.shuffle(len(data), seed=shuffle_seed)
    return indexes.map(load, num_parallel_calls=tf.data.AUTOTUNE)


def _array_type(output: Output) -> Any:
    if not output.channels:
        return object
    return np.uint16 if (output.full_scale or 0) > np.iinfo(np.uint8).max else np.uint8


def _values_in(column: Column) -> NDArray[Any]:
    return column.values if isinstance(column, Lists) else np.asarray(column)


def _objects_in(column: Column) -> NDArray[Any]:
    values = _values_in(column)
    return values if values.dtype == object else values[:0]


class Lists(Sequence[list[Any]]):
    """A column of lists, in the memory of their values; `values` has them all, `starts` where each begins."""

    def __init__(self, values: NDArray[Any], starts: NDArray[np.int64]) -> None:
        self.values, self.starts = values, starts
        values.flags.writeable = starts.flags.writeable = False

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        start, stop = self.starts[row : row + 2].tolist()
        return self.values[start:stop].tolist()


class _MetadataFile:
    """`metadata.csv` in a zip: a row for each stored sample."""

    def __init__(self, opened: OpenedZip, recipe: Recipe, samples: NDArray[np.int64]) -> None:
        self._zip, self._samples = opened, samples
        self._metadata = Metadata(recipe)
        self._stops: NDArray[np.int64] | None = None

    def values(self, row: int) -> dict[str, Any]:
        """The labels of one sample."""
        data = self._rows(row, row + 1)
        try:
            found = self._metadata.values(data)
        except ValueError as error:
            raise BrokenZip(f"{METADATA}: cannot be read ({error})") from error
        if found[_SAMPLE] != self._samples[row]:
            raise BrokenZip(_OTHER_SAMPLES)
        return found

    def columns(self) -> dict[str, Column]:
        """All labels, by column."""
        count = len(self._samples)
        made = [_Builder(fields) for fields in self._metadata.label_fields]
        for start in range(0, count, _ROWS_AT_ONCE):
            rows = self._rows(start, min(start + _ROWS_AT_ONCE, count))
            try:
                fields = self._fields(rows)
                for place, builder in enumerate(made, len(self._metadata.file_columns)):
                    builder.add(fields[place :: len(self._metadata.columns)])
            except (ValueError, csv.Error) as error:
                raise BrokenZip(f"{METADATA}: cannot be read ({error})") from error
        found = {builder.name: builder.column() for builder in made}
        if not np.array_equal(np.asarray(found[_SAMPLE]), self._samples):
            raise BrokenZip(_OTHER_SAMPLES)
        return found

    def _fields(self, rows: bytes) -> list[str]:
        """Of all rows, one behind the other."""
        text, width = rows.decode(), len(self._metadata.columns)
        if '"' not in text:
            fields = text[:-1].replace("\n", ",").split(",")
            if len(fields) != width * text.count("\n"):
                raise ValueError(f"has rows of other than {width} fields")
            return fields
        parsed = list(csv.reader(io.StringIO(text, newline="")))
        if any(len(fields) != width for fields in parsed):
            raise ValueError(f"has rows of other than {width} fields")
        return list(chain.from_iterable(parsed))

    def _rows(self, start: int, stop: int) -> bytes:
        # Threads may both look for the ends at first, and both find the same. A lock would be worse: whoever
        # forks while another thread holds it has it held for ever.
        if self._stops is None:
            self._stops = self._row_stops()
        return self._zip.at_once(int(self._stops[start]), int(self._stops[stop]))

    def _row_stops(self) -> NDArray[np.int64]:
        """Where the header and each row end; the CRC of the whole is compared on the way."""
        entry = self._zip.tail.entries[METADATA]
        found: list[NDArray[np.int64]] = []
        offset, quotes, crc = entry.data_offset, 0, 0
        for piece in self._zip.pieces(METADATA):
            crc = zlib.crc32(piece, crc)
            characters = np.frombuffer(piece, np.uint8)
            ends = np.flatnonzero(characters == _LINE_FEED)
            if quotes % 2 or b'"' in piece:
                places = np.flatnonzero(characters == _QUOTE)
                ends = ends[(np.searchsorted(places, ends) + quotes) % 2 == 0]
                quotes += len(places)
            found.append(ends + offset + 1)
            offset += len(piece)
        stops = np.concatenate(found) if found else np.empty(0, np.int64)
        header = self._metadata.header
        if crc != entry.crc:
            raise BrokenZip(f"{METADATA}: its bytes do not match its CRC")
        if (
            len(stops) != len(self._samples) + 1
            or stops[-1] != entry.stop
            or self._zip.at_once(entry.data_offset, int(stops[0])) != header
        ):
            raise BrokenZip(f"{METADATA}: has another header, or other rows than the {len(self._samples):,}")
        return stops


class _Builder:
    """Makes a column of its fields, many rows at a time; equal texts share their memory."""

    def __init__(self, kind: LabelFields) -> None:
        self._kind, self.name = kind, kind.name
        self._texts: dict[str, str] = {}
        self._parts: list[NDArray[Any]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(self, fields: Sequence[str]) -> None:
        """Add the fields of some rows. Raises ValueError for what is none of its kind."""
        values = self._kind.values(fields)
        if self._kind.is_list:
            self._counts.append(np.fromiter(map(len, values), np.int64, len(values)))
            values = list(chain.from_iterable(values))
        self._parts.append(self._array(values))

    def _array(self, values: Sequence[Any]) -> NDArray[Any]:
        if self._kind.is_text:
            shared = self._texts
            return np.array([shared.setdefault(value, value) for value in values], object)
        found = np.array(values) if values else np.empty(0, np.int64)
        return found if found.dtype in (np.int64, np.float64) else np.array(values, object)

    def column(self) -> Column:
        """All that was added."""
        values = np.concatenate(self._parts) if self._parts else np.empty(0, np.int64)
        if not self._kind.is_list:
            values.flags.writeable = False
            return values
        counts = np.concatenate([np.zeros(1, np.int64), *self._counts])
        return Lists(values, np.cumsum(counts))


def _plan_in(opened: OpenedZip) -> Plan:
    where = f"{opened.path}: {PLAN}"
    try:
        return parse_plan(opened.member(PLAN), where=where, hint=_verify(opened.path))
    except ManifestCorrupt as error:
        raise ArtifactCorrupt(str(error), hint=error.hint) from error


def _statistics_in(opened: OpenedZip, plan: Plan) -> Mapping[str, OutputStatistics]:
    data = opened.member(STATS)
    try:
        return MappingProxyType(read_statistics(data, plan))
    except ValueError as error:
        raise BrokenZip(f"{STATS}: cannot be read ({error})") from error


def _reopened(path: str, fingerprint: str, count: int) -> DataSet:
    """What a pickled data set becomes in another process: the same one, or PlanConflict."""
    data = DataSet(path)
    if (data.plan.fingerprint, len(data)) != (fingerprint, count):
        data.close()
        raise PlanConflict(f"{path}: was replaced: it holds a different data set now", hint="open it again")
    return data


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise the deliberate errors for bytes that are none of ours, and for a disk that fails."""
    try:
        yield
    except BrokenZip as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise storage_error(error, path) from error


def _damaged(path: Path, fact: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"{path}: {fact}", hint=_verify(path))


def _verify(path: Path) -> str:
    return f"shardgen verify {shlex.quote(str(path))}"

"""The directory entries of many samples at once: a member for each output, as numpy records.

A Python loop over a million members would cost more than hashing their bytes, so the records of a whole run
of samples are rendered, and compared with what an artifact says, as one array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.zip_records import (
    CENTRAL,
    FULL_32,
    LOCAL,
    BrokenZip,
    Entry,
    ZipLimits,
    central_entry,
    local_header,
)
from shardgen.domain.plan import Output, Plan
from shardgen.domain.sample import SAMPLES_PER_FOLDER

_ZERO = ord("0")
_FOLDER_DIGITS = 5
# Where these stand in a directory entry and in a local header (`zip_records.CENTRAL`, `LOCAL`).
_CENTRAL_FIELDS = {"crc": 16, "stored_size": 20, "size": 24, "offset": 42}
_LOCAL_FIELDS = {"crc": 14, "stored_size": 18, "size": 22}
_ZIP64_OFFSET = 4  # inside the extra field

Digits = tuple[NDArray[np.bytes_], NDArray[np.bytes_]]
"""The folders and the numbers of samples, as they stand in their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberColumns:
    """Members in their order, as (samples, outputs) arrays; offsets are those of local headers."""

    samples: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive samples whose records have the same lengths; `digits` of the folder and of the number."""

    start: int
    stop: int
    digits: tuple[int, int]
    zip64: tuple[bool, ...]

    @property
    def names(self) -> tuple[int, int, tuple[int, int]]:
        """What decides the names."""
        return self.start, self.stop, self.digits


class MemberTable:
    """Renders and reads the records of a plan's members."""

    def __init__(self, plan: Plan) -> None:
        self._digits = plan.name_digits
        self._outputs = plan.outputs
        self._written: tuple[NDArray[np.int64], _Run, Digits] | None = None
        self._template = lru_cache(maxsize=64)(self._make_template)

    @property
    def width(self) -> int:
        """Members of a sample."""
        return len(self._outputs)

    def header_sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of each member's local header with its name, (samples, outputs)."""
        sizes = np.empty((len(samples), self.width), np.int64)
        for run in self._runs(samples, zip64_from=self.width * len(samples)):
            names = (self._name(output, run.digits) for output in self._outputs)
            sizes[run.start : run.stop] = [LOCAL.size + len(name) for name in names]
        return sizes

    def stops(self, samples: NDArray[np.int64], sizes: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Where each member ends when the first one starts at 0, (samples, outputs)."""
        return np.cumsum(self.header_sizes(samples) + sizes).reshape(-1, self.width)

    def render_central(self, columns: MemberColumns, *, zip64_offset: int = FULL_32) -> bytes:
        """Pack the central directory entries; offsets from `zip64_offset` on get their zip64 extra."""
        zip64_from = int(np.searchsorted(columns.offsets.ravel(), zip64_offset))
        parts = []
        for run in self._runs(columns.samples, zip64_from):
            rows = slice(run.start, run.stop)
            records = self._records(run, columns.samples)
            for index, output in enumerate(self._outputs):
                records[f"{output.name} crc"] = columns.crcs[rows, index]
                records[f"{output.name} stored_size"] = records[f"{output.name} size"] = columns.sizes[
                    rows, index
                ]
                records[f"{output.name} offset"] = columns.offsets[rows, index]
            parts.append(records.tobytes())
        return b"".join(parts)

    def move_central(
        self, directory: bytes, columns: MemberColumns, *, zip64_offset: int = FULL_32
    ) -> bytes | memoryview:
        """Give these checked entries the offsets of `columns`: `render_central` at a third of its cost."""
        if columns.offsets.size and columns.offsets[-1, -1] >= zip64_offset:
            return self.render_central(columns, zip64_offset=zip64_offset)
        moved = np.frombuffer(directory, np.uint8).copy()
        position = 0
        for run in self._runs(columns.samples, zip64_from=columns.offsets.size):
            _, dtype = self._template(run.digits, run.zip64)
            records = np.frombuffer(moved, dtype, run.stop - run.start, position)
            position += records.nbytes
            for index, output in enumerate(self._outputs):
                records[f"{output.name} offset"] = columns.offsets[run.start : run.stop, index]
        return moved.data

    def read_central(
        self, data: bytes | memoryview, samples: NDArray[np.int64], *, zip64_from: int | None = None
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Read CRCs and sizes, both (samples, outputs), from entries that should be those of `samples`.

        Sizes give the offsets of members that follow each other; the caller renders all that and compares:
        only then is every byte known to be right. `zip64_from` is the first member with a zip64 extra.
        """
        crcs = np.empty((len(samples), self.width), np.uint32)
        sizes = np.empty((len(samples), self.width), np.uint32)
        position = 0
        for run in self._runs(samples, self.width * len(samples) if zip64_from is None else zip64_from):
            _, dtype = self._template(run.digits, run.zip64)
            count = run.stop - run.start
            if position + count * dtype.itemsize > len(data):
                raise BrokenZip("has a directory that ends too early")
            records = np.frombuffer(data, dtype, count, position)
            position += count * dtype.itemsize
            rows = slice(run.start, run.stop)
            for index, output in enumerate(self._outputs):
                crcs[rows, index] = records[f"{output.name} crc"]
                sizes[rows, index] = records[f"{output.name} size"]
        if position != len(data):
            raise BrokenZip("has more directory entries than its samples")
        return crcs, sizes

    def central_size(self, samples: NDArray[np.int64], *, zip64_from: int) -> int:
        """Bytes of the directory entries of these samples."""
        return sum(
            (run.stop - run.start) * self._template(run.digits, run.zip64)[1].itemsize
            for run in self._runs(samples, zip64_from)
        )

    def has_local_headers(self, columns: MemberColumns, body: NDArray[np.uint8]) -> bool:
        """Whether the local headers at `offsets` of these bytes are those of the columns."""
        for run in self._runs(columns.samples, zip64_from=columns.offsets.size):
            rows = slice(run.start, run.stop)
            for index, output in enumerate(self._outputs):
                expected = self._local_headers(run, columns, output)
                expected["crc"] = columns.crcs[rows, index]
                expected["size"] = expected["stored_size"] = columns.sizes[rows, index]
                at = columns.offsets[rows, index]
                # One overlapping record per byte of the body: taking those at `at` copies whole headers.
                count = len(body) - expected.itemsize + 1
                if at[-1] >= count:
                    return False
                headers = np.ndarray((count,), f"V{expected.itemsize}", body, strides=(1,))
                if headers[at].tobytes() != expected.tobytes():
                    return False
        return True

    def _local_headers(self, run: _Run, columns: MemberColumns, output: Output) -> NDArray[np.void]:
        template = self._entry(output, run.digits, is_far=False)
        header = local_header(template)
        fields: list[tuple[str, str, int]] = [(name, "<u4", at) for name, at in _LOCAL_FIELDS.items()]
        fields += self._digit_fields(output, run.digits, name_at=LOCAL.size, prefix="")
        records = np.frombuffer(bytearray(header * (run.stop - run.start)), _dtype(fields, len(header)))
        records["folder"], records["number"] = self._digits_of(run, columns.samples)
        return records

    def _runs(self, samples: NDArray[np.int64], zip64_from: int) -> Iterator[_Run]:
        """Cut ascending samples where a number gets one more digit, and around the first zip64 offset."""
        cuts = {0, len(samples)}
        last = int(samples[-1]) if len(samples) else 0
        for shortest, counted in ((_FOLDER_DIGITS, SAMPLES_PER_FOLDER), (self._digits, 1)):
            longer = 10**shortest * counted
            while longer <= last:
                cuts.add(int(np.searchsorted(samples, longer)))
                longer *= 10
        border, inside = divmod(zip64_from, self.width)
        cuts |= {cut for cut in (border, border + (inside > 0)) if cut < len(samples)}
        edges = sorted(cuts)
        for start, stop in pairwise(edges):
            flags = tuple(self.width * start + index >= zip64_from for index in range(self.width))
            first = int(samples[start])
            folder = max(_FOLDER_DIGITS, len(str(first // SAMPLES_PER_FOLDER)))
            yield _Run(start, stop, (folder, max(self._digits, len(str(first)))), flags)

    def _name(self, output: Output, digits: tuple[int, int]) -> str:
        folder, number = digits
        return f"{output.name}/{0:0{folder}d}/{0:0{number}d}.{output.suffix}"

    def _entry(self, output: Output, digits: tuple[int, int], *, is_far: bool) -> Entry:
        name = self._name(output, digits)
        return Entry(name=name, crc=0, size=0, offset=FULL_32 if is_far else 0)

    def _make_template(
        self, digits: tuple[int, int], zip64: tuple[bool, ...]
    ) -> tuple[bytes, np.dtype[np.void]]:
        """The directory entries of one sample, and where in them stands what differs between samples."""
        template = b""
        fields: list[tuple[str, str, int]] = []
        for output, is_far in zip(self._outputs, zip64, strict=True):
            start = len(template)
            entry = self._entry(output, digits, is_far=is_far)
            template += central_entry(entry, ZipLimits())
            positions = dict(_CENTRAL_FIELDS)
            if is_far:
                positions["offset"] = CENTRAL.size + len(entry.name) + _ZIP64_OFFSET
            for name, at in positions.items():
                size = "<u8" if name == "offset" and is_far else "<u4"
                fields.append((f"{output.name} {name}", size, start + at))
            name_at = start + CENTRAL.size
            fields += self._digit_fields(output, digits, name_at=name_at, prefix=f"{output.name} ")
        return template, _dtype(fields, len(template))

    def _digit_fields(
        self, output: Output, digits: tuple[int, int], *, name_at: int, prefix: str
    ) -> list[tuple[str, str, int]]:
        folder, number = digits
        at = name_at + len(output.name) + 1
        return [(f"{prefix}folder", f"S{folder}", at), (f"{prefix}number", f"S{number}", at + folder + 1)]

    def _records(self, run: _Run, samples: NDArray[np.int64]) -> NDArray[np.void]:
        template, dtype = self._template(run.digits, run.zip64)
        records = np.frombuffer(bytearray(template * (run.stop - run.start)), dtype)
        folders, numbers = self._digits_of(run, samples)
        for output in self._outputs:
            records[f"{output.name} folder"] = folders
            records[f"{output.name} number"] = numbers
        return records

    def _digits_of(self, run: _Run, all_samples: NDArray[np.int64]) -> Digits:
        # The same samples are asked for several times in a row.
        if self._written and self._written[0] is all_samples and self._written[1].names == run.names:
            return self._written[2]
        samples = all_samples[run.start : run.stop]
        folder, number = run.digits
        digits = _decimal(samples // SAMPLES_PER_FOLDER, folder), _decimal(samples, number)
        self._written = (all_samples, run, digits)
        return digits


def _decimal(values: NDArray[np.int64], digits: int) -> NDArray[np.bytes_]:
    """Write each value in ASCII, padded with zeros."""
    text = np.empty((len(values), digits), np.uint8)
    rest = values
    for column in range(digits - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, column] = digit + _ZERO
    return text.view(f"S{digits}")[:, 0]


def _dtype(fields: list[tuple[str, str, int]], size: int) -> np.dtype[np.void]:
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype(
        {"names": list(names), "formats": list(formats), "offsets": list(offsets), "itemsize": size}
    )

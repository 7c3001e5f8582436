"""The directory entries of many samples at once: three members a sample, as numpy records.

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
    CENTRAL_SIGNATURE,
    DATE,
    FILE_MODE,
    FULL_32,
    LOCAL,
    LOCAL_SIGNATURE,
    UNIX,
    VERSION,
    VERSION_ZIP64,
    ZIP64_EXTRA_ID,
    BrokenZip,
)
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ImageKind
from shardgen.domain.sample import SAMPLES_PER_FOLDER, name_digits, output_format

KINDS = tuple(ImageKind)
_ZERO = ord("0")

Names = list[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberColumns:
    """Members in their order, three a sample, as (samples, 3) arrays; offsets are those of local headers."""

    samples: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive samples whose records have the same lengths."""

    start: int
    stop: int
    folder_digits: int
    zip64: tuple[bool, bool, bool]

    @property
    def names(self) -> tuple[int, int, int]:
        """What decides the names."""
        return self.start, self.stop, self.folder_digits


class MemberTable:
    """Renders and reads the records of a plan's members."""

    def __init__(self, plan: Plan) -> None:
        self._digits = name_digits(plan.samples)
        self._suffixes = tuple(output_format(plan.output, kind).suffix for kind in KINDS)

        self._named: tuple[NDArray[np.int64], _Run, Names] | None = None

    def header_sizes(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of each member's local header with its name, (samples, 3)."""
        sizes = np.empty((len(samples), 3), np.int64)
        for run in self._runs(samples, zip64_from=3 * len(samples)):
            sizes[run.start : run.stop] = [LOCAL.size + n for n in self._name_sizes(run)]
        return sizes

    def stops(self, samples: NDArray[np.int64], sizes: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Where each member ends when the first one starts at 0, (samples, 3)."""
        return np.cumsum(self.header_sizes(samples) + sizes).reshape(-1, 3)

    def render_central(self, columns: MemberColumns, *, zip64_offset: int = FULL_32) -> bytes:
        """Pack the central directory entries; offsets from `zip64_offset` on get their zip64 extra."""
        zip64_from = int(np.searchsorted(columns.offsets.ravel(), zip64_offset))
        parts = []
        for run in self._runs(columns.samples, zip64_from):
            records = self._central_template(run, columns.samples)
            for place, kind in enumerate(KINDS):
                record, rows = records[kind.value], slice(run.start, run.stop)
                record["crc"] = columns.crcs[rows, place]
                record["size"] = record["stored_size"] = columns.sizes[rows, place]
                offsets = columns.offsets[rows, place]
                if run.zip64[place]:
                    record["offset"] = FULL_32
                    record["zip64_offset"] = offsets
                else:
                    record["offset"] = offsets
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
            records = np.frombuffer(
                moved, _central_dtype(self._name_sizes(run), run.zip64), run.stop - run.start, position
            )
            position += records.nbytes
            for place, kind in enumerate(KINDS):
                records[kind.value]["offset"] = columns.offsets[run.start : run.stop, place]
        return moved.data

    def read_central(
        self, data: bytes | memoryview, samples: NDArray[np.int64], *, zip64_from: int | None = None
    ) -> MemberColumns:
        """Read entries that should be those of `samples`; what they say is not checked.

        The caller renders the columns again and compares: only then is every byte known to be right.
        `zip64_from` is the first member whose offset stands in a zip64 extra.
        """
        crcs = np.empty((len(samples), 3), np.uint32)
        sizes = np.empty((len(samples), 3), np.uint32)
        offsets = np.empty((len(samples), 3), np.int64)
        position = 0
        for run in self._runs(samples, 3 * len(samples) if zip64_from is None else zip64_from):
            dtype = _central_dtype(self._name_sizes(run), run.zip64)
            count = run.stop - run.start
            if position + count * dtype.itemsize > len(data):
                raise BrokenZip("has a directory that ends too early")
            records = np.frombuffer(data, dtype, count, position)
            position += count * dtype.itemsize
            for place, kind in enumerate(KINDS):
                record, rows = records[kind.value], slice(run.start, run.stop)
                crcs[rows, place] = record["crc"]
                sizes[rows, place] = record["size"]
                offsets[rows, place] = record["zip64_offset" if run.zip64[place] else "offset"]
        if position != len(data):
            raise BrokenZip("has more directory entries than its samples")
        return MemberColumns(samples=samples, crcs=crcs, sizes=sizes, offsets=offsets)

    def central_size(self, samples: NDArray[np.int64], *, zip64_from: int) -> int:
        """Bytes of the directory entries of these samples."""
        return sum(
            (run.stop - run.start) * _central_dtype(self._name_sizes(run), run.zip64).itemsize
            for run in self._runs(samples, zip64_from)
        )

    def has_local_headers(self, columns: MemberColumns, body: NDArray[np.uint8]) -> bool:
        """Whether the local headers at `offsets` of these bytes are those of the columns."""
        for run in self._runs(columns.samples, 3 * len(columns.samples)):
            rows = slice(run.start, run.stop)
            names = self._names(run, columns.samples)
            for place in range(3):
                dtype = _local_dtype(names[place].shape[1])
                expected = np.zeros(run.stop - run.start, dtype)
                expected["signature"] = LOCAL_SIGNATURE
                expected["version"], expected["date"] = VERSION, DATE
                expected["crc"] = columns.crcs[rows, place]
                expected["size"] = expected["stored_size"] = columns.sizes[rows, place]
                expected["name_size"] = names[place].shape[1]
                expected["name"] = names[place]
                at = columns.offsets[rows, place]
                if len(at) and at[-1] + dtype.itemsize > len(body):
                    return False
                if not len(at):
                    continue
                # One overlapping record per byte of the body: taking those at `at` copies whole headers.
                count = len(body) - dtype.itemsize + 1
                headers = np.ndarray((count,), f"V{dtype.itemsize}", body, strides=(1,))
                if headers[at].tobytes() != expected.tobytes():
                    return False
        return True

    def _runs(self, samples: NDArray[np.int64], zip64_from: int) -> Iterator[_Run]:
        """Cut ascending samples where a folder gets one more digit, and around the first zip64 offset."""
        cuts = {0, len(samples)}
        last = int(samples[-1]) if len(samples) else 0
        digits = 5
        while last // SAMPLES_PER_FOLDER >= 10**digits:
            cuts.add(int(np.searchsorted(samples, 10**digits * SAMPLES_PER_FOLDER)))
            digits += 1
        border, inside = divmod(zip64_from, 3)
        cuts |= {cut for cut in (border, border + (inside > 0)) if cut < len(samples)}
        edges = sorted(cuts)
        for start, stop in pairwise(edges):
            first, *_ = flags = tuple(3 * start + place >= zip64_from for place in range(3))
            folder_digits = max(5, len(str(int(samples[start]) // SAMPLES_PER_FOLDER)))
            yield _Run(start, stop, folder_digits, (first, flags[1], flags[2]))

    def _name_sizes(self, run: _Run) -> tuple[int, int, int]:
        first, second, third = (
            len(kind.value) + 1 + run.folder_digits + 1 + self._digits + 1 + len(suffix)
            for kind, suffix in zip(KINDS, self._suffixes, strict=True)
        )
        return first, second, third

    def _names(self, run: _Run, all_samples: NDArray[np.int64]) -> Names:
        """Write the names of each kind as uint8 (samples of the run, bytes), ASCII."""
        # Merging asks three times in a row for the names of the same samples.
        if self._named and self._named[0] is all_samples and self._named[1].names == run.names:
            return self._named[2]
        samples = all_samples[run.start : run.stop]
        folders = _decimal(samples // SAMPLES_PER_FOLDER, run.folder_digits)
        numbers = _decimal(samples, self._digits)
        names = []
        for kind, suffix, size in zip(KINDS, self._suffixes, self._name_sizes(run), strict=True):
            name = np.empty((len(samples), size), np.uint8)
            folder = len(kind.value) + 1
            number = folder + run.folder_digits + 1
            name[:, :folder] = np.frombuffer(f"{kind.value}/".encode(), np.uint8)
            name[:, folder : number - 1] = folders
            name[:, number - 1] = ord("/")
            name[:, number : number + self._digits] = numbers
            name[:, number + self._digits :] = np.frombuffer(f".{suffix}".encode(), np.uint8)
            names.append(name)
        self._named = (all_samples, run, names)
        return names

    def _central_template(self, run: _Run, samples: NDArray[np.int64]) -> NDArray[np.void]:
        records = np.zeros(run.stop - run.start, _central_dtype(self._name_sizes(run), run.zip64))
        for kind, name, zip64 in zip(KINDS, self._names(run, samples), run.zip64, strict=True):
            record = records[kind.value]
            record["signature"] = CENTRAL_SIGNATURE
            record["made_by"] = record["needs"] = VERSION_ZIP64 if zip64 else VERSION
            record["system"] = UNIX
            record["date"] = DATE
            record["name_size"] = name.shape[1]
            record["mode"] = FILE_MODE
            record["name"] = name
            if zip64:
                record["extra_size"] = 12
                record["zip64_id"] = ZIP64_EXTRA_ID
                record["zip64_size"] = 8
        return records


def _decimal(values: NDArray[np.int64], digits: int) -> NDArray[np.uint8]:
    """ASCII digits of each value, padded with zeros: uint8 (values, digits)."""
    text = np.empty((len(values), digits), np.uint8)
    rest = values
    for place in range(digits - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, place] = digit + _ZERO
    return text


@lru_cache(maxsize=64)
def _central_dtype(name_sizes: tuple[int, int, int], zip64: tuple[bool, bool, bool]) -> np.dtype[np.void]:
    return np.dtype(
        [
            (kind.value, _entry_dtype(name_size, zip64=is_far))
            for kind, name_size, is_far in zip(KINDS, name_sizes, zip64, strict=True)
        ]
    )


def _entry_dtype(name_size: int, *, zip64: bool) -> np.dtype[np.void]:
    fields: list[tuple[str, object]] = [
        ("signature", "S4"),
        ("made_by", "u1"),
        ("system", "u1"),
        ("needs", "<u2"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u2"),
        ("date", "<u2"),
        ("crc", "<u4"),
        ("stored_size", "<u4"),
        ("size", "<u4"),
        ("name_size", "<u2"),
        ("extra_size", "<u2"),
        ("comment_size", "<u2"),
        ("disk", "<u2"),
        ("inner_mode", "<u2"),
        ("mode", "<u4"),
        ("offset", "<u4"),
        ("name", f"({name_size},)u1"),
    ]
    if zip64:
        fields += [("zip64_id", "<u2"), ("zip64_size", "<u2"), ("zip64_offset", "<u8")]
    dtype = np.dtype(fields)
    if dtype.itemsize != CENTRAL.size + name_size + 12 * zip64:
        raise ValueError(f"a directory entry of {dtype.itemsize} bytes")
    return dtype


@lru_cache(maxsize=64)
def _local_dtype(name_size: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("signature", "S4"),
            ("version", "<u2"),
            ("flags", "<u2"),
            ("method", "<u2"),
            ("time", "<u2"),
            ("date", "<u2"),
            ("crc", "<u4"),
            ("stored_size", "<u4"),
            ("size", "<u4"),
            ("name_size", "<u2"),
            ("extra_size", "<u2"),
            ("name", f"({name_size},)u1"),
        ]
    )

"""Artifact bodies on their way into the final zip: read, checked and passed on in large pieces."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.archive import RECEIPT_NAME, read_artifact
from shardgen.artifacts.receipt_json import parse_facts
from shardgen.artifacts.store import ArtifactReader
from shardgen.artifacts.zip_records import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    END_RECORDS_MAX,
    LOCAL,
    BrokenZip,
    Directory,
    Entry,
    ZipLimits,
    central_entry,
    local_header,
    read_end,
)
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import ArtifactRef, BatchRecord, Facts
from shardgen.errors import ArtifactCorrupt

PIECE_BYTES = 4 << 20  # large enough that numpy's cost per piece does not count
_RECEIPT_ENTRY_SIZE = CENTRAL.size + len(RECEIPT_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The checked bodies of some artifacts; the columns' offsets count from the start of `body`.

    `directory` is the artifacts' own entries, each artifact's offsets counting from its own start.
    """

    body: memoryview
    directory: bytes
    columns: MemberColumns

    def files(self, row: int) -> list[bytes]:
        """Copy the files of the sample in that row, in the order of the plan's outputs."""
        found = []
        columns = self.columns
        for offset, size in zip(columns.offsets[row].tolist(), columns.sizes[row].tolist(), strict=True):
            start = offset + LOCAL.size + LOCAL.unpack_from(self.body, offset)[9]
            found.append(bytes(self.body[start : start + size]))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One artifact, or the members of some of its batches, inside the piece being filled."""

    name: str
    directory: bytes
    samples: NDArray[np.int64]
    start: int
    size: int
    offset: int


class BodySink(Protocol):
    """Where bodies go: first the bytes of each artifact, then the entries of some artifacts together."""

    def add_body(self, body: memoryview) -> None:
        """Take the images of one artifact; the memory is reused afterwards."""
        ...

    def add_piece(self, piece: Piece) -> None:
        """Take the entries of all bodies since the last piece, now that they are checked."""
        ...


class BodyReader:
    """Reads artifacts one at a time into one buffer and checks many at once, when it is full.

    A body goes to the sink while the processor's cache still holds it, so before it is checked: nothing in
    the sink may count before `flush` has returned.
    """

    def __init__(self, store: ArtifactReader, table: MemberTable, sink: BodySink) -> None:
        self._store = store
        self._table = table
        self._sink = sink
        self._buffer = np.empty(PIECE_BYTES, np.uint8)
        self._parts: list[_Part] = []
        self._filled = 0

    def add(
        self,
        ref: ArtifactRef,
        records: Sequence[BatchRecord],
        samples: NDArray[np.int64],
        *,
        kept: NDArray[np.bool_] | None = None,
        facts: bool,
    ) -> Facts:
        """Take the members of these consecutive batches, which are those of `samples` in their order.

        With `kept` only of the samples for which it is true. Returns the facts of what is taken, if they are
        wanted: only the artifact has them.
        """
        if self._filled + ref.size_bytes > len(self._buffer):
            self.flush()
            if ref.size_bytes > len(self._buffer):
                self._buffer = np.empty(ref.size_bytes, np.uint8)
        start = self._filled
        view = self._buffer.data[start : start + ref.size_bytes]
        self._store.read_into(ref, view)
        try:
            # Before members are moved to where it lies.
            found = _facts_in(view) if facts else {}
            if kept is None:
                parts = [self._part(ref, view, records, samples)]
            else:
                parts = self._parts_of_some_samples(ref, view, records, samples, kept)
        except ValueError as error:
            raise ArtifactCorrupt(f"{ref.name}: {error}") from error
        self._parts += parts
        self._filled = parts[-1].start + parts[-1].size
        self._sink.add_body(view[: self._filled - start])
        if not found:
            return {}
        taken = samples if kept is None else samples[kept]
        return {sample: found[sample] for sample in map(SampleIndex, taken.tolist()) if sample in found}

    def flush(self) -> None:
        """Check what is in the buffer and pass on its entries."""
        if not self._parts:
            return
        try:
            columns, directory = self._check(self._parts)
        except BrokenZip:
            for part in self._parts:
                self._blame(part)
            raise
        body = self._buffer.data[: self._filled]
        self._sink.add_piece(Piece(body=body, directory=directory, columns=columns))
        self._parts.clear()
        self._filled = 0

    def _part(
        self,
        ref: ArtifactRef,
        view: memoryview,
        records: Sequence[BatchRecord],
        samples: NDArray[np.int64],
    ) -> _Part:
        _refuse_gaps(records)
        directory = _directory(view)
        stop = directory.offset + directory.size
        if (records[0].members_start, records[-1].members_stop) != (0, directory.members - 1):
            return self._part_of_some_batches(ref, view, records, samples)
        body_size = _receipt_entry(view, directory).offset
        return _Part(
            name=ref.name,
            directory=bytes(view[directory.offset : stop - _RECEIPT_ENTRY_SIZE]),
            samples=samples,
            start=self._filled,
            size=body_size,
            offset=0,
        )

    def _part_of_some_batches(
        self,
        ref: ArtifactRef,
        view: memoryview,
        records: Sequence[BatchRecord],
        samples: NDArray[np.int64],
    ) -> _Part:
        """Other batches of this artifact have their receipts from another attempt."""
        entries, _ = read_artifact(bytes(view), name=ref.name)
        wanted = entries[records[0].members_start : records[-1].members_stop]
        start, stop = (wanted[0].offset, wanted[-1].stop) if wanted else (0, 0)
        view[: stop - start] = bytes(view[start:stop])
        return _Part(
            name=ref.name,
            directory=b"".join(central_entry(entry, ZipLimits()) for entry in wanted),
            samples=samples,
            start=self._filled,
            size=stop - start,
            offset=start,
        )

    def _parts_of_some_samples(
        self,
        ref: ArtifactRef,
        view: memoryview,
        records: Sequence[BatchRecord],
        samples: NDArray[np.int64],
        kept: NDArray[np.bool_],
    ) -> list[_Part]:
        """Move the members of kept samples together: a part for each run of neighbours."""
        _refuse_gaps(records)
        entries, _ = read_artifact(bytes(view), name=ref.name)
        mine = entries[records[0].members_start : records[-1].members_stop]
        width = self._table.width
        if len(mine) != width * len(samples):
            raise BrokenZip("its members are not as many as its receipts say")
        parts: list[_Part] = []
        filled = 0
        edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
        for first, end in edges.reshape(-1, 2).tolist():
            wanted = mine[width * first : width * end]
            start, stop = wanted[0].offset, wanted[-1].stop
            view[filled : filled + stop - start] = bytes(view[start:stop])
            part = _Part(
                name=ref.name,
                directory=b"".join(central_entry(entry, ZipLimits()) for entry in wanted),
                samples=samples[first:end],
                start=self._filled + filled,
                size=stop - start,
                offset=start,
            )
            parts.append(part)
            filled += part.size
        return parts

    def _check(self, parts: Sequence[_Part]) -> tuple[MemberColumns, bytes]:
        """Compare every byte of the parts' headers and directories with what plan and receipts say."""
        table = self._table
        samples = np.concatenate([part.samples for part in parts])
        directory = b"".join(part.directory for part in parts)
        crcs, sizes = table.read_central(directory, samples)
        stops = table.stops(samples, sizes)
        starts = np.empty_like(stops)
        starts.ravel()[1:] = stops.ravel()[:-1]
        starts.ravel()[:1] = 0
        part_starts = np.array([part.start for part in parts]) - parts[0].start
        part_stops = part_starts + np.array([part.size for part in parts])
        counts = [len(part.samples) for part in parts]
        edges = np.concatenate(([0], stops[:, -1]))[np.cumsum(counts)]
        if not np.array_equal(edges, part_stops):
            raise BrokenZip("its members do not end where its directory says")
        shifts = np.array([part.offset for part in parts]) - part_starts
        in_piece = MemberColumns(samples=samples, crcs=crcs, sizes=sizes, offsets=starts)
        in_artifact = replace(in_piece, offsets=starts + np.repeat(shifts, counts)[:, None])
        body = self._buffer[parts[0].start : parts[-1].start + parts[-1].size]
        if table.render_central(in_artifact) != directory or not table.has_local_headers(in_piece, body):
            raise BrokenZip("its members are not those of the plan and its receipt")
        return in_piece, directory

    def _blame(self, part: _Part) -> None:
        try:
            self._check([part])
        except BrokenZip as error:
            raise ArtifactCorrupt(f"{part.name}: {error}") from error


def _refuse_gaps(records: Sequence[BatchRecord]) -> None:
    if any(before.members_stop != after.members_start for before, after in pairwise(records)):
        raise BrokenZip("its receipts do not agree which members are whose")


def _directory(view: memoryview) -> Directory:
    return read_end(bytes(view[-END_RECORDS_MAX:]), len(view))


def _facts_in(view: memoryview) -> Facts:
    """The facts in `receipt.json` after its CRC passed; no other member is looked at."""
    directory = _directory(view)
    entry = _receipt_entry(view, directory)
    content = view[entry.data_offset : directory.offset]
    if view[entry.offset : entry.data_offset] != local_header(entry):
        raise BrokenZip(f"{RECEIPT_NAME}: its local header is not the directory's")
    if zlib.crc32(content) != entry.crc:
        raise BrokenZip(f"{RECEIPT_NAME}: its CRC does not match")
    return parse_facts(bytes(content))


def _receipt_entry(view: memoryview, directory: Directory) -> Entry:
    """The entry of `receipt.json`, which lies behind all images; only our own form is accepted."""
    at = directory.offset + directory.size - _RECEIPT_ENTRY_SIZE
    if at < directory.offset or view[at + CENTRAL.size : at + _RECEIPT_ENTRY_SIZE] != RECEIPT_NAME.encode():
        raise BrokenZip(f"its last member is not {RECEIPT_NAME}")
    fields = CENTRAL.unpack_from(view, at)
    size, offset = fields[10], int(fields[17])
    if fields[0] != CENTRAL_SIGNATURE or offset + LOCAL.size + len(RECEIPT_NAME) + size != directory.offset:
        raise BrokenZip(f"its {RECEIPT_NAME} does not end where the directory starts")
    return Entry(name=RECEIPT_NAME, crc=fields[8], size=size, offset=offset)

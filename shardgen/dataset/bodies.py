"""Artifact bodies on their way into the final zip: read, checked and passed on in large pieces."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.archive import RECEIPT_NAME, read_artifact
from shardgen.artifacts.receipt_json import parse_facts
from shardgen.artifacts.store import ArtifactReader, refuse_changed
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
PIECES_HELD = 2
"""So many pieces a sink may hold: after that the memory of the first one is filled anew."""
_RECEIPT_ENTRY_SIZE = CENTRAL.size + len(RECEIPT_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The checked bodies of some artifacts, one behind another; offsets count from the start of the first.

    `directory` is the artifacts' own entries, each artifact's offsets counting from its own start.
    """

    bodies: memoryview
    directory: bytes
    columns: MemberColumns

    def files(self, row: int) -> list[bytes]:
        """Copy the files of the sample in that row, in the order of the plan's outputs."""
        found = []
        columns = self.columns
        for at, size in zip(columns.offsets[row].tolist(), columns.sizes[row].tolist(), strict=True):
            start = at + LOCAL.size + LOCAL.unpack_from(self.bodies, at)[9]
            found.append(bytes(self.bodies[start : start + size]))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The members of some neighbouring samples of an artifact; `offset` is where they start in it."""

    ref: ArtifactRef
    directory: bytes
    samples: NDArray[np.int64]
    size: int
    offset: int


class BodySink(Protocol):
    """Where bodies go."""

    def add_piece(self, piece: Piece) -> None:
        """Take the bodies of some artifacts."""
        ...


class BodyReader:
    """Reads artifacts one at a time into a buffer and checks many at once, when it is full.

    Only their bodies stay in it, without a gap: what comes next is read over the end of what was there.
    """

    def __init__(self, store: ArtifactReader, table: MemberTable, sink: BodySink) -> None:
        self._store = store
        self._table = table
        self._sink = sink
        self._buffers = deque(np.empty(PIECE_BYTES, np.uint8) for _ in range(PIECES_HELD + 1))
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
        if self._filled + ref.size_bytes > len(self._buffers[0]):
            self.flush()
            if ref.size_bytes > len(self._buffers[0]):
                self._buffers[0] = np.empty(ref.size_bytes, np.uint8)
        view = self._buffers[0].data[self._filled : self._filled + ref.size_bytes]
        self._store.fill(ref, view)
        refuse_changed(ref, len(view), view)
        try:
            found = _facts_in(view) if facts else {}
            if kept is None:
                parts = [self._part(ref, view, records, samples)]
            else:
                parts = self._parts_of_some_samples(ref, view, records, samples, kept)
            self._filled += _joined(view, parts)
        except ValueError as error:
            raise ArtifactCorrupt(f"{ref.name}: {error}") from error
        self._parts += parts
        if not found:
            return {}
        taken = samples if kept is None else samples[kept]
        return {sample: found[sample] for sample in map(SampleIndex, taken.tolist()) if sample in found}

    def flush(self) -> None:
        """Check what is in the buffer and pass it on."""
        if not self._parts:
            return
        try:
            piece = self._checked(self._parts, start=0)
        except BrokenZip:
            self._blame()
            raise
        self._sink.add_piece(piece)
        self._buffers.rotate(-1)
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
            # Other batches of this artifact have their receipts from another attempt.
            return self._part_of(ref, _entries_of(ref, view, records), samples)
        return _Part(
            ref=ref,
            directory=bytes(view[directory.offset : stop - _RECEIPT_ENTRY_SIZE]),
            samples=samples,
            size=_receipt_entry(view, directory).offset,
            offset=0,
        )

    def _parts_of_some_samples(
        self,
        ref: ArtifactRef,
        view: memoryview,
        records: Sequence[BatchRecord],
        samples: NDArray[np.int64],
        kept: NDArray[np.bool_],
    ) -> list[_Part]:
        """A part for each run of neighbours that are kept."""
        _refuse_gaps(records)
        entries, width = _entries_of(ref, view, records), self._table.width
        if len(entries) != width * len(samples):
            raise BrokenZip("its receipts name another number of members")
        edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
        return [
            self._part_of(ref, entries[width * first : width * end], samples[first:end])
            for first, end in edges.reshape(-1, 2).tolist()
        ]

    def _part_of(self, ref: ArtifactRef, entries: Sequence[Entry], samples: NDArray[np.int64]) -> _Part:
        start, stop = (entries[0].offset, entries[-1].stop) if entries else (0, 0)
        return _Part(
            ref=ref,
            directory=b"".join(central_entry(entry, ZipLimits()) for entry in entries),
            samples=samples,
            size=stop - start,
            offset=start,
        )

    def _checked(self, parts: Sequence[_Part], *, start: int) -> Piece:
        """Compare every byte of their headers and directories with what plan and receipts say.

        `start` is where in the buffer the first one starts.
        """
        table = self._table
        samples = np.concatenate([part.samples for part in parts])
        directory = b"".join(part.directory for part in parts)
        crcs, sizes = table.read_central(directory, samples)
        stops = table.stops(samples, sizes)
        offsets = np.empty_like(stops)
        offsets.ravel()[1:] = stops.ravel()[:-1]
        offsets.ravel()[:1] = 0
        part_sizes = np.array([part.size for part in parts])
        part_stops = np.cumsum(part_sizes)
        counts = [len(part.samples) for part in parts]
        edges = np.concatenate(([0], stops[:, -1]))[np.cumsum(counts)]
        if not np.array_equal(edges, part_stops):
            raise BrokenZip("its members do not end where its directory says")
        columns = MemberColumns(samples=samples, crcs=crcs, sizes=sizes, offsets=offsets)
        shifts = np.array([part.offset for part in parts]) - (part_stops - part_sizes)
        in_artifacts = replace(columns, offsets=offsets + np.repeat(shifts, counts)[:, None])
        bodies = self._buffers[0][start : start + part_stops[-1]]
        if table.render_central(in_artifacts) != directory or not table.has_local_headers(columns, bodies):
            raise BrokenZip("its members are not those of the plan and its receipt")
        return Piece(bodies=bodies.data, directory=directory, columns=columns)

    def _blame(self) -> None:
        """Raise ArtifactCorrupt for the first part that is wrong by itself."""
        start = 0
        for part in self._parts:
            try:
                self._checked([part], start=start)
            except BrokenZip as error:
                raise ArtifactCorrupt(f"{part.ref.name}: {error}") from error
            start += part.size


def _joined(view: memoryview, parts: Sequence[_Part]) -> int:
    """Move the bodies of these parts together, to the start of their artifact; returns where they end."""
    stop = 0
    for part in parts:
        if part.offset != stop:
            view[stop : stop + part.size] = view[part.offset : part.offset + part.size]
        stop += part.size
    return stop


def _entries_of(ref: ArtifactRef, view: memoryview, records: Sequence[BatchRecord]) -> Sequence[Entry]:
    entries, _ = read_artifact(bytes(view), name=ref.name)
    return entries[records[0].members_start : records[-1].members_stop]


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

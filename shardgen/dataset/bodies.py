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

PIECE_BYTES = 4 << 20  # so large that numpy's cost per piece does not count, and still in a processor's cache
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
    """One artifact, or the members of some of its batches; `body` starts at `offset` of the artifact."""

    name: str
    directory: bytes
    samples: NDArray[np.int64]
    body: memoryview
    offset: int


class BodySink(Protocol):
    """Where bodies go."""

    def add_piece(self, piece: Piece) -> None:
        """Take the bodies of some artifacts, which are checked; nobody changes their bytes any more."""
        ...


class BodyReader:
    """Reads artifacts one at a time, and checks and passes on many at once, as one piece."""

    def __init__(self, store: ArtifactReader, table: MemberTable, sink: BodySink) -> None:
        self._store = store
        self._table = table
        self._sink = sink
        self._parts: list[_Part] = []
        self._size = 0

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
        if self._size + ref.size_bytes > PIECE_BYTES:
            self.flush()
        data = self._store.read(ref)
        view = memoryview(data)
        try:
            found = _facts_in(view) if facts else {}
            if kept is None:
                parts = [_part(ref, data, records, samples)]
            else:
                parts = self._parts_of_some_samples(ref, data, records, samples, kept)
        except ValueError as error:
            raise ArtifactCorrupt(f"{ref.name}: {error}") from error
        self._parts += parts
        self._size += sum(len(part.body) for part in parts)
        if not found:
            return {}
        taken = samples if kept is None else samples[kept]
        return {sample: found[sample] for sample in map(SampleIndex, taken.tolist()) if sample in found}

    def flush(self) -> None:
        """Check what was added since the last piece, and pass it on."""
        if not self._parts:
            return
        try:
            piece = self._checked(self._parts)
        except BrokenZip:
            for part in self._parts:
                self._blame(part)
            raise
        self._sink.add_piece(piece)
        self._parts.clear()
        self._size = 0

    def _parts_of_some_samples(
        self,
        ref: ArtifactRef,
        data: bytes,
        records: Sequence[BatchRecord],
        samples: NDArray[np.int64],
        kept: NDArray[np.bool_],
    ) -> list[_Part]:
        """The members of kept samples: a part for each run of neighbours."""
        _refuse_gaps(records)
        entries, width = _entries_of(ref, data, records), self._table.width
        if len(entries) != width * len(samples):
            raise BrokenZip("its members are not as many as its receipts say")
        edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
        return [
            _part_of(ref, data, entries[width * first : width * end], samples[first:end])
            for first, end in edges.reshape(-1, 2).tolist()
        ]

    def _checked(self, parts: Sequence[_Part]) -> Piece:
        """Compare every byte of the parts' headers and directories with what plan and receipts say."""
        table = self._table
        samples = np.concatenate([part.samples for part in parts])
        directory = b"".join(part.directory for part in parts)
        crcs, sizes = table.read_central(directory, samples)
        stops = table.stops(samples, sizes)
        starts = np.empty_like(stops)
        starts.ravel()[1:] = stops.ravel()[:-1]
        starts.ravel()[:1] = 0
        part_sizes = np.array([len(part.body) for part in parts])
        part_stops = np.cumsum(part_sizes)
        counts = [len(part.samples) for part in parts]
        edges = np.concatenate(([0], stops[:, -1]))[np.cumsum(counts)]
        if not np.array_equal(edges, part_stops):
            raise BrokenZip("its members do not end where its directory says")
        shifts = np.array([part.offset for part in parts]) - (part_stops - part_sizes)
        in_piece = MemberColumns(samples=samples, crcs=crcs, sizes=sizes, offsets=starts)
        in_artifact = replace(in_piece, offsets=starts + np.repeat(shifts, counts)[:, None])
        body = parts[0].body if len(parts) == 1 else memoryview(b"".join([part.body for part in parts]))
        if table.render_central(in_artifact) != directory or not table.has_local_headers(
            in_piece, np.frombuffer(body, np.uint8)
        ):
            raise BrokenZip("its members are not those of the plan and its receipt")
        return Piece(body=body, directory=directory, columns=in_piece)

    def _blame(self, part: _Part) -> None:
        try:
            self._checked([part])
        except BrokenZip as error:
            raise ArtifactCorrupt(f"{part.name}: {error}") from error


def _part(ref: ArtifactRef, data: bytes, records: Sequence[BatchRecord], samples: NDArray[np.int64]) -> _Part:
    _refuse_gaps(records)
    view = memoryview(data)
    directory = _directory(view)
    stop = directory.offset + directory.size
    if (records[0].members_start, records[-1].members_stop) != (0, directory.members - 1):
        # Other batches of this artifact have their receipts from another attempt.
        return _part_of(ref, data, _entries_of(ref, data, records), samples)
    return _Part(
        name=ref.name,
        directory=data[directory.offset : stop - _RECEIPT_ENTRY_SIZE],
        samples=samples,
        body=view[: _receipt_entry(view, directory).offset],
        offset=0,
    )


def _entries_of(ref: ArtifactRef, data: bytes, records: Sequence[BatchRecord]) -> Sequence[Entry]:
    entries, _ = read_artifact(data, name=ref.name)
    return entries[records[0].members_start : records[-1].members_stop]


def _part_of(ref: ArtifactRef, data: bytes, entries: Sequence[Entry], samples: NDArray[np.int64]) -> _Part:
    start, stop = (entries[0].offset, entries[-1].stop) if entries else (0, 0)
    return _Part(
        name=ref.name,
        directory=b"".join(central_entry(entry, ZipLimits()) for entry in entries),
        samples=samples,
        body=memoryview(data)[start:stop],
        offset=start,
    )


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

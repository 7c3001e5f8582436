"""Artifact bodies on their way into the final zip: read, checked and passed on in large pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.archive import RECEIPT_NAME, read_artifact
from shardgen.artifacts.member_table import KINDS, MemberColumns, MemberTable
from shardgen.artifacts.store import ArtifactStore
from shardgen.artifacts.zip_records import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    END_RECORDS_MAX,
    LOCAL,
    BrokenZip,
    Directory,
    ZipLimits,
    central_entry,
    read_end,
)
from shardgen.domain.receipt import ArtifactRef, BatchRecord, ImageKind
from shardgen.errors import ArtifactCorrupt

PIECE_BYTES = 2 << 20  # many artifacts, for numpy; little enough to stay in the caches until written
_RECEIPT_ENTRY_SIZE = CENTRAL.size + len(RECEIPT_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The checked bodies of some artifacts; the columns' offsets count from the start of `body`.

    `directory` is the artifacts' own entries, each artifact's offsets counting from its own start.
    """

    body: memoryview
    directory: bytes
    columns: MemberColumns

    def images(self, row: int) -> dict[ImageKind, bytes]:
        """Copy the three images of the sample in that row."""
        images = {}
        for kind, offset, size in zip(
            KINDS, self.columns.offsets[row].tolist(), self.columns.sizes[row].tolist(), strict=True
        ):
            name_size = LOCAL.unpack_from(self.body, offset)[9]
            start = offset + LOCAL.size + name_size
            images[kind] = bytes(self.body[start : start + size])
        return images


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Consecutive batches of one artifact, whose members are those of `samples` in their order."""

    ref: ArtifactRef
    records: Sequence[BatchRecord]
    samples: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One artifact, or the members of some of its batches, inside the buffer."""

    name: str
    directory: bytes
    samples: NDArray[np.int64]
    start: int
    size: int
    offset: int


class BodySink(Protocol):
    """Where bodies go."""

    def add_piece(self, piece: Piece) -> None:
        """Take the checked bodies of some artifacts; the memory is reused afterwards."""
        ...


class BodyReader:
    """Reads artifacts one at a time into one buffer, then checks and passes on what it holds at once."""

    def __init__(self, store: ArtifactStore, table: MemberTable, sink: BodySink) -> None:
        self._store = store
        self._table = table
        self._sink = sink
        self._buffer = np.empty(PIECE_BYTES, np.uint8)
        self._wanted: list[_Wanted] = []
        self._wanted_bytes = 0

    def add(self, ref: ArtifactRef, records: Sequence[BatchRecord], samples: NDArray[np.int64]) -> None:
        """Take the members of these consecutive batches, which are those of `samples` in their order."""
        if self._wanted_bytes + ref.size_bytes > PIECE_BYTES:
            self.flush()
        self._wanted.append(_Wanted(ref=ref, records=records, samples=samples))
        self._wanted_bytes += ref.size_bytes

    def flush(self) -> None:
        """Read, check and pass on everything added since the last time."""
        if not self._wanted:
            return
        if self._wanted_bytes > len(self._buffer):
            self._buffer = np.empty(self._wanted_bytes, np.uint8)
        parts = self._read()
        self._wanted, self._wanted_bytes = [], 0
        try:
            piece = self._check(parts)
        except BrokenZip:
            for part in parts:
                self._blame(part)
            raise
        self._sink.add_piece(piece)

    def _read(self) -> list[_Part]:
        """Put the wanted bodies into the buffer, one behind the other."""
        parts: list[_Part] = []
        start = 0
        for artifact in self._wanted:
            view = self._buffer.data[start : start + artifact.ref.size_bytes]
            self._store.read_into(artifact.ref, view)
            try:
                part = _part(artifact, view, start=start)
            except BrokenZip as error:
                raise ArtifactCorrupt(f"{artifact.ref.name}: {error}") from error
            parts.append(part)
            start += part.size
        return parts

    def _check(self, parts: Sequence[_Part]) -> Piece:
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
        return Piece(body=body.data, directory=directory, columns=in_piece)

    def _blame(self, part: _Part) -> None:
        try:
            self._check([part])
        except BrokenZip as error:
            raise ArtifactCorrupt(f"{part.name}: {error}") from error


def _part(artifact: _Wanted, view: memoryview, *, start: int) -> _Part:
    """Find what is wanted in an artifact, which lies at `start` of its buffer."""
    records = artifact.records
    if any(before.members_stop != after.members_start for before, after in pairwise(records)):
        raise BrokenZip("its receipts do not agree which members are whose")
    directory = read_end(bytes(view[-END_RECORDS_MAX:]), len(view))
    if (records[0].members_start, records[-1].members_stop) != (0, directory.members - 1):
        return _part_of_some_batches(artifact, view, start=start)
    stop = directory.offset + directory.size
    return _Part(
        name=artifact.ref.name,
        directory=bytes(view[directory.offset : stop - _RECEIPT_ENTRY_SIZE]),
        samples=artifact.samples,
        start=start,
        size=_receipt_offset(view, directory),
        offset=0,
    )


def _part_of_some_batches(artifact: _Wanted, view: memoryview, *, start: int) -> _Part:
    """Other batches of this artifact have their receipts from another attempt."""
    name, records = artifact.ref.name, artifact.records
    entries, _ = read_artifact(bytes(view), name=name)
    wanted = entries[records[0].members_start : records[-1].members_stop]
    first, stop = (wanted[0].offset, wanted[-1].stop) if wanted else (0, 0)
    view[: stop - first] = bytes(view[first:stop])
    return _Part(
        name=name,
        directory=b"".join(central_entry(entry, ZipLimits()) for entry in wanted),
        samples=artifact.samples,
        start=start,
        size=stop - first,
        offset=first,
    )


def _receipt_offset(view: memoryview, directory: Directory) -> int:
    """Where the local header of `receipt.json` starts: behind all images; only our own form is accepted."""
    at = directory.offset + directory.size - _RECEIPT_ENTRY_SIZE
    if at < directory.offset or view[at + CENTRAL.size : at + _RECEIPT_ENTRY_SIZE] != RECEIPT_NAME.encode():
        raise BrokenZip(f"its last member is not {RECEIPT_NAME}")
    fields = CENTRAL.unpack_from(view, at)
    size, offset = fields[10], int(fields[17])
    if fields[0] != CENTRAL_SIGNATURE or offset + LOCAL.size + len(RECEIPT_NAME) + size != directory.offset:
        raise BrokenZip(f"its {RECEIPT_NAME} does not end where the directory starts")
    return offset

"""A final zip opened for reading: its last members, and its images' entries piece by piece."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.zip_records import BrokenZip, local_header
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.dataset.output import (
    DEAD_LETTERS,
    LABELS,
    SELECTION,
    ZipTail,
    read_at,
    read_member,
    read_selection,
    read_tail,
)
from shardgen.domain.plan import Plan, PlanFile
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.selection import Selection
from shardgen.errors import ArtifactCorrupt, InputMissing
from shardgen.storage.files import DiskFiles, storage_error
from shardgen.storage.lines import LineFile

_HEADER = "sample,reason"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
_SAMPLES_AT_ONCE = 4096  # a megabyte of the directory
_PIECE_BYTES = 1 << 20


class StrayEntries(BrokenZip):
    """From sample `first` on, at byte `start` of the file, the directory is not what it should be."""

    def __init__(self, first: int, start: int) -> None:
        super().__init__(f"from sample {first} on: its directory is not that of the plan's images")
        self.first, self.start = first, start


class OpenedZip:
    """One descriptor, whose position nobody moves: threads and forked processes may share it.

    What reads raises BrokenZip for bytes that are none of ours, OSError, and ValueError once it is closed.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputMissing, StorageFailed."""
        self.path = path
        self.files = DiskFiles()
        self._tail: ZipTail | None = None
        try:
            self._descriptor = self.files.open(path)
            if path.is_dir():
                self.close()
                raise InputMissing(f"{path}: a folder, not a zip", hint=f"shardgen merge {quote(str(path))}")
        except FileNotFoundError as error:
            hint = "check the name; to make one: shardgen merge RUN_DIR -o ZIP"
            raise InputMissing(f"{path}: is not there", hint=hint) from error
        except OSError as error:
            raise storage_error(error, path) from error

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self.files.close(descriptor)

    @property
    def descriptor(self) -> int:
        """That of the open file."""
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: is closed")
        return self._descriptor

    @property
    def tail(self) -> ZipTail:
        """Its last members."""
        if self._tail is None:
            size = self.files.size(self.descriptor)
            self._tail = read_tail(self.descriptor, size, files=self.files)
        return self._tail

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, fewer only at the file's end."""
        return read_at(self.files, self.descriptor, start, stop)

    def at_once(self, start: int, stop: int) -> bytes:
        """The same in a single call, for small pieces."""
        return os.pread(self.descriptor, stop - start, start)

    def member(self, name: str) -> bytes:
        """A small one of the last members, checked."""
        return read_member(self.descriptor, self.tail.entries[name], files=self.files)

    def pieces(self, name: str) -> Iterator[bytes]:
        """One of the last members, up to a megabyte at a time; its CRC is not compared."""
        entry = self.tail.entries[name]
        for start in range(entry.data_offset, entry.stop, _PIECE_BYTES):
            yield self.read(start, min(start + _PIECE_BYTES, entry.stop))

    def beside(self, file: PlanFile) -> LineFile:
        """Open a file that the plan names. Raises ArtifactCorrupt when it is not that one."""
        entry = self.tail.entries.get(file.name)
        if entry is None or entry.stop > self.files.size(self.descriptor):
            raise self._damaged(file, "plan.json names it, but it is missing")
        header = local_header(entry)

        def read(offset: int, size: int) -> bytes:
            return os.pread(self.descriptor, size, entry.data_offset + offset)

        try:
            lines = LineFile(read, file.bytes, lines=file.lines)
        except ValueError as error:
            raise self._damaged(file, str(error)) from error
        except OSError as error:
            raise storage_error(error, self.path) from error
        if (entry.size, entry.crc) != (lines.size, lines.crc) or read(-len(header), len(header)) != header:
            raise self._damaged(file, "its bytes are not those of the directory")
        if lines.sha256 != file.sha256:
            raise self._damaged(file, "not the file that plan.json names")
        return lines

    def _damaged(self, file: PlanFile, fact: str) -> ArtifactCorrupt:
        return ArtifactCorrupt(f"{file.name}: {fact}", hint=f"shardgen verify {quote(str(self.path))}")

    def dead_letters(self, plan: Plan) -> dict[int, DeadLetterReason]:
        """The reasons by sample, ascending."""
        header, *rows = self.member(DEAD_LETTERS).decode(errors="replace").splitlines() or [""]
        dead: list[tuple[int, DeadLetterReason]] = []
        reasons = set(DeadLetterReason)
        for row in rows:
            sample, _, reason = row.partition(",")
            if not _NUMBER.fullmatch(sample) or int(sample) >= plan.samples or reason not in reasons:
                raise BrokenZip(f"{DEAD_LETTERS}: has a row {row[:100]!r}")
            dead.append((int(sample), DeadLetterReason(reason)))
        found = dict(dead)
        if header != _HEADER or [sample for sample, _ in dead] != sorted(found):
            raise BrokenZip(f"{DEAD_LETTERS}: has another header, or samples out of order")
        return found

    def selection(self, plan: Plan) -> Selection:
        """What it leaves out."""
        return read_selection(self.descriptor, self.tail, planned=plan.samples, files=self.files)

    def check_order(self) -> None:
        """Raise BrokenZip unless its last members follow each other, up to the directory."""
        stop = self.tail.entries[LABELS].offset
        for entry in self.tail.entries.values():
            if entry.offset != stop:
                raise BrokenZip(f"{entry.name}: starts at byte {entry.offset} (expected {stop})")
            stop = entry.stop
        if stop != self.tail.directory.offset:
            raise BrokenZip(
                f"its members end at byte {stop}, its directory starts at {self.tail.directory.offset}"
            )

    def image_count(self) -> int:
        """How many members it holds that are images."""
        return self.tail.directory.members - len(self.tail.entries)

    def images(
        self, table: MemberTable, dead: Collection[int], selection: Selection
    ) -> Iterator[MemberColumns]:
        """The images of the stored samples, some thousands at once, from their entries in the directory.

        Every byte of these is what it should be, members follow each other, and at the end the images are as
        many as the zip holds and stop where `labels.csv` starts. Raises StrayEntries before what is not so.
        """
        tail = self.tail
        members = table.width * (selection.kept.count - len(dead))
        zip64_from = members - self._zip64_members(table, dead, selection)
        start, offset, done = tail.directory.offset, 0, 0
        end = start + tail.directory_size
        for samples in _stored(dead, selection):
            border = max(0, zip64_from - done)
            stop = min(start + table.central_size(samples, zip64_from=border), end)
            columns = _columns(table, self.at_once(start, stop), samples, border=border, start=offset)
            if columns is None:
                raise StrayEntries(int(samples[0]), start)
            yield columns
            start = stop
            done += table.width * len(samples)
            offset = stop_of(table, columns)
        if self.image_count() == members and offset != tail.entries[LABELS].offset:
            raise BrokenZip(
                f"{LABELS}: starts at byte {tail.entries[LABELS].offset}, the images end at {offset}"
            )

    def miscount(self, table: MemberTable, dead: Collection[int], selection: Selection) -> str | None:
        """How the number of its images differs from what it should be; None when it does not."""
        members = table.width * (selection.kept.count - len(dead))
        if self.image_count() == members:
            return None
        says = f"plan, dead letters and {SELECTION} say" if selection.kinds else "plan and dead letters say"
        return f"holds {self.image_count():,} images, {says} {members:,}"

    def _zip64_members(self, table: MemberTable, dead: Collection[int], selection: Selection) -> int:
        """How many members, the last ones, have entries with a zip64 extra: each one is 12 bytes longer."""
        size = 0
        for samples in _stored(dead, selection):
            size += table.central_size(samples, zip64_from=table.width * len(samples))
            if size > self.tail.directory_size:  # the plan may claim any number of samples
                break
        return max(0, self.tail.directory_size - size) // 12


def stop_of(table: MemberTable, columns: MemberColumns) -> int:
    """Where the last of these members ends."""
    last = table.header_sizes(columns.samples[-1:])[0, -1] + columns.sizes[-1, -1]
    return int(columns.offsets[-1, -1] + last)


def _columns(
    table: MemberTable, data: bytes, samples: NDArray[np.int64], *, border: int, start: int
) -> MemberColumns | None:
    """Read and check entries whose first local header is at `start`; None when one byte differs."""
    try:
        crcs, sizes = table.read_central(data, samples, zip64_from=border)
    except BrokenZip:
        return None
    stops = table.stops(samples, sizes) + start
    starts = np.empty_like(stops)
    starts.ravel()[0] = start
    starts.ravel()[1:] = stops.ravel()[:-1]
    expected = MemberColumns(samples=samples, crcs=crcs, sizes=sizes, offsets=starts)
    first_far = starts.ravel()[border] if border < starts.size else int(stops[-1, -1])
    return expected if table.render_central(expected, zip64_offset=int(first_far)) == data else None


def _stored(dead: Collection[int], selection: Selection) -> Iterator[NDArray[np.int64]]:
    """The samples that have images, ascending, some thousands at once."""
    without = np.fromiter(dead, np.int64, len(dead))
    parts: list[NDArray[np.int64]] = []
    count = 0
    for first, end in selection.kept.pairs:
        for start in range(first, end, _SAMPLES_AT_ONCE):
            part = np.arange(start, min(start + _SAMPLES_AT_ONCE, end), dtype=np.int64)
            if len(without):
                part = part[np.isin(part, without, invert=True)]
            parts.append(part)
            count += len(part)
            if count >= _SAMPLES_AT_ONCE:
                yield np.concatenate(parts)
                parts, count = [], 0
    if count:
        yield np.concatenate(parts)

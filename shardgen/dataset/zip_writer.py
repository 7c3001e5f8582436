"""The final zip, written front to back: bodies, members, directory (docs/formats.md: "Final zip")."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

from shardgen.artifacts.zip_records import (
    Directory,
    Entry,
    ZipLimits,
    central_entry,
    end_records,
    local_header,
)
from shardgen.dataset.bodies import PIECES_HELD, Piece
from shardgen.dataset.member_table import MemberTable
from shardgen.storage.files import DiskFiles
from shardgen.storage.lines import LineFile

_COPY_BYTES = 1 << 20
_SYNC_BYTES = (
    4 << 20
)  # after so many the disk gets to work, or all of them would wait for the sync at the end


class Spool:
    """Bytes set aside in a nameless temporary file until their size, and if checked their CRC, are known."""

    def __init__(self, folder: Path, *, checked: bool = True) -> None:
        self._checked = checked
        self._file = tempfile.TemporaryFile(dir=folder, buffering=_COPY_BYTES)  # noqa: SIM115 (closed by __exit__)
        self.size = 0
        self.crc = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self._file.write(data)
        self.size += len(data)
        if self._checked:
            self.crc = zlib.crc32(data, self.crc)

    def read(self) -> Iterator[bytes]:
        """Give everything back, in pieces."""
        self._file.seek(0)
        while data := self._file.read(_COPY_BYTES):
            yield data


class FinalZip:
    """A zip on its way to an open descriptor; memory does not grow with the number of members.

    A thread writes and digests what is added, at most `PIECES_HELD` behind: its OSError is raised by a later
    call, at last by `finish`. Use it as a context manager, and nothing is written after it.
    """

    def __init__(self, files: DiskFiles, descriptor: int, *, table: MemberTable, directory: Spool) -> None:
        self._files = files
        self._descriptor = descriptor
        self._table = table
        self._directory = directory
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="zip")
        self._behind: deque[Future[None]] = deque()
        self._written = self._syncing = 0
        self.limits = ZipLimits()
        self.size = 0
        self.members = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add_piece(self, piece: Piece) -> None:
        """Copy the bodies of some artifacts and enter their members."""
        columns = replace(piece.columns, offsets=piece.columns.offsets + self.size)
        self._write(piece.bodies)
        self._directory.write(
            self._table.move_central(piece.directory, columns, zip64_offset=self.limits.offset)
        )
        self.members += columns.offsets.size

    def add(self, name: str, data: bytes) -> None:
        """Store one member."""
        self._add(name, [data], size=len(data), crc=zlib.crc32(data))

    def add_spooled(self, name: str, spool: Spool) -> None:
        """Store one member of any size."""
        self._add(name, spool.read(), size=spool.size, crc=spool.crc)

    def add_lines(self, name: str, lines: LineFile) -> None:
        """Store a file of lines, piece by piece."""
        self._add(name, lines.pieces(), size=lines.size, crc=lines.crc)

    def finish(self) -> None:
        """Write the directory and the end records; all is written when this returns."""
        offset = self.size
        for data in self._directory.read():
            self._write(data)
        directory = Directory(members=self.members, offset=offset, size=self.size - offset)
        self._write(end_records(directory, self.limits))
        while self._behind:
            self._behind.popleft().result()

    @property
    def sha256(self) -> str:
        """The digest of all that was written, as hex digits, once it is finished."""
        return self._sha256.hexdigest()

    def _add(self, name: str, content: Iterable[bytes], *, size: int, crc: int) -> None:
        entry = Entry(name=name, crc=crc, size=size, offset=self.size)
        self._directory.write(central_entry(entry, self.limits))
        self.members += 1
        self._write(local_header(entry))
        for data in content:
            self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        while len(self._behind) >= PIECES_HELD:
            self._behind.popleft().result()
        self._behind.append(self._thread.submit(self._write_now, data))
        self.size += len(data)

    def _write_now(self, data: bytes | memoryview) -> None:
        self._files.write(self._descriptor, data)
        self._sha256.update(data)
        self._written += len(data)
        if (size := self._written - self._syncing) >= _SYNC_BYTES:
            self._files.start_syncing(self._descriptor, self._syncing, size)
            self._syncing = self._written

"""A file of many lines, of which any can be read by its number without holding the others."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from shardgen.storage.bounded import open_regular

_PIECE_BYTES = 1 << 20
_LINE_END = re.compile(rb"\n")
Read = Callable[[int, int], bytes]
"""The bytes at an offset, so many of them; fewer only at the end."""


class LineFile:
    """Lines that each end with a line feed, found by their number; takes 8 bytes of memory a line.

    Everything is read once when it is made; from then on what is read again is one piece at most. Thread-safe
    where `read` is. Raises OSError, and ValueError for bytes that do not end with a line feed.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self.size = size
        self._starts = array("Q", [0])
        digest, self.crc = hashlib.sha256(), 0
        last = b"\n"
        offset = 0
        for piece in self.pieces():
            digest.update(piece)
            self.crc = zlib.crc32(piece, self.crc)
            self._starts.extend([offset + found.end() for found in _LINE_END.finditer(piece)])
            offset, last = offset + len(piece), piece[-1:]
        self.sha256 = digest.hexdigest()
        if offset != size or last != b"\n":
            raise ValueError(f"ends inside a line, after {offset:,} of {size:,} bytes")

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Lines in memory."""
        return cls(lambda offset, size: data[offset : offset + size], len(data))

    @classmethod
    def open(cls, path: Path) -> Self:
        """A file, which may be renamed or removed afterwards; errors as `open_regular`, too."""
        descriptor = _Descriptor(open_regular(path))
        return cls(descriptor.read, os.fstat(descriptor.number).st_size)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def line(self, number: int) -> bytes:
        """One line without its end; IndexError for none."""
        if not 0 <= number < len(self):
            raise IndexError(f"line {number} of {len(self)}")
        return self.lines(number, number + 1)[0]

    def lines(self, start: int, stop: int) -> list[bytes]:
        """The lines from start to stop without their ends, fewer at the end."""
        start, stop = (min(max(0, one), len(self)) for one in (start, stop))
        if start >= stop:
            return []
        offset = self._starts[start]
        return self._read(offset, self._starts[stop] - offset)[:-1].split(b"\n")

    def pieces(self) -> Iterator[bytes]:
        """All bytes, up to a megabyte at a time."""
        offset = 0
        while offset < self.size and (piece := self._read(offset, min(_PIECE_BYTES, self.size - offset))):
            yield piece
            offset += len(piece)


class _Descriptor:
    """An open file that is closed with the last who reads it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.number, size, offset)

    def __del__(self) -> None:
        os.close(self.number)

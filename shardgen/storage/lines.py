"""A file of many lines; any line can be read by its number without loading the others."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

from shardgen.domain.limits import MAX_NAME_BYTES
from shardgen.storage.bounded import open_regular

MAX_LINE_BYTES = 6 * MAX_NAME_BYTES + 200
"""A name of which each byte is escaped, a digest, and numbers; with the line feed."""
_PIECE_BYTES = 1 << 20
_LINE_END = re.compile(rb"\n")
Read = Callable[[int, int], bytes]
"""The bytes at an offset, so many of them; fewer only at the end."""


class LineFile:
    """Lines that each end with a line feed, found by their number; takes 8 bytes of memory a line.

    Everything is read once when it is made, unless it turns out to have more than so many `lines`, or one of
    more than `MAX_LINE_BYTES`. Thread-safe where `read` is. Raises OSError, and ValueError for these and
    another number of lines, and for bytes that do not end with a line feed.
    """

    def __init__(self, read: Read, size: int, *, lines: int | None = None) -> None:
        self._read = read
        self.size = size
        self._starts = array("Q", [0])
        digest, self.crc = hashlib.sha256(), 0
        last = b"\n"
        offset = 0
        for piece in self.pieces():
            digest.update(piece)
            self.crc = zlib.crc32(piece, self.crc)
            ends = [offset + found.end() for found in _LINE_END.finditer(piece)]
            offset, last = offset + len(piece), piece[-1:]
            edges = pairwise([self._starts[-1], *ends, offset])
            if any(stop - start > MAX_LINE_BYTES for start, stop in edges):
                raise ValueError(f"a line of more than {MAX_LINE_BYTES:,} bytes")
            self._starts.extend(ends)
            if lines is not None and len(self) > lines:
                raise ValueError(f"more than {lines:,} lines")
        self.sha256 = digest.hexdigest()
        if offset != size or last != b"\n":
            raise ValueError(f"ends inside a line, after {offset:,} of {size:,} bytes")
        if lines is not None and len(self) != lines:
            raise ValueError(f"{len(self):,} lines, not {lines:,}")

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Lines in memory."""
        return cls(lambda offset, size: data[offset : offset + size], len(data))

    @classmethod
    def open(cls, path: Path, *, size: int | None = None, lines: int | None = None) -> Self:
        """A file, which may be renamed or removed afterwards; errors as `open_regular`, too.

        Of another `size` it is not read, which is ValueError.
        """
        descriptor = _Descriptor(open_regular(path))
        found = os.fstat(descriptor.number).st_size
        if size not in (None, found):
            raise ValueError(f"{found:,} bytes, not {size:,}")
        return cls(descriptor.read, found, lines=lines)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def line(self, number: int) -> bytes:
        """One line without its end; IndexError for none."""
        if not 0 <= number < len(self):
            raise IndexError(f"line {number} of {len(self)}")
        return self.lines(number, number + 1)[0]

    def lines(self, start: int, stop: int) -> list[bytes]:
        """The lines from start to stop without their ends, fewer at the end.

        Raises OSError, and ValueError for bytes that are not those of before.
        """
        start, stop = (min(max(0, one), len(self)) for one in (start, stop))
        if start >= stop:
            return []
        offset = self._starts[start]
        size = self._starts[stop] - offset
        data = self._read(offset, size)
        found = data[:-1].split(b"\n")
        if len(data) != size or data[-1:] != b"\n" or len(found) != stop - start:
            raise ValueError("its bytes have changed since it was opened")
        return found

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

"""Tars as webdataset reads them: the files of a sample lie side by side and begin with its number."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import ClassVar

from shardgen.dataset.export.base import ExportSample, ShardWriter
from shardgen.recipes.base import Recipe

_LABELS = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_BUFFER_BYTES = 1 << 20
_MODE = 0o644
_END_BYTES = 2 * tarfile.BLOCKSIZE
# Where these stand in a header; its checksum counts itself as eight spaces.
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_SPACES = 8 * ord(" ")


class TarWriter(ShardWriter):
    """`0000005.fgbg.jpg`, `0000005.mask.png`, …, and labels as `0000005.json`; nothing of who wrote it."""

    suffix: ClassVar[str] = "tar"

    def __init__(self, recipe: Recipe, path: Path) -> None:
        self._digits = recipe.plan.name_digits
        self._suffixes = {one.name: f"{one.name}.{one.suffix}" for one in recipe.plan.outputs}
        self._file = path.open("xb", buffering=_BUFFER_BYTES)
        self._size = 0
        info = tarfile.TarInfo()
        info.mode = _MODE
        header = info.tobuf(tarfile.USTAR_FORMAT)
        self._parts = header[_NAME.stop : _SIZE.start], header[_SIZE.stop : _CHECKSUM.start]
        self._end = header[_CHECKSUM.stop :]
        self._sum = sum(map(sum, (*self._parts, self._end))) + _SPACES

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        """Whether it is made of whole records, of which the last one ends in empty blocks."""
        with path.open("rb") as file:
            is_begun = any(file.read(tarfile.BLOCKSIZE))
            size = file.seek(0, os.SEEK_END)
            if not is_begun or size % tarfile.RECORDSIZE:
                return False
            file.seek(-_END_BYTES, os.SEEK_END)
            return not any(file.read())

    def add(self, sample: ExportSample) -> None:
        """Write its files in the order of the outputs, then its labels."""
        number = f"{sample.number:0{self._digits}d}"
        parts: list[bytes] = []
        for name, data in sample.files.items():
            parts += self._member(f"{number}.{self._suffixes[name]}", data)
        parts += self._member(f"{number}.json", _LABELS.encode(sample.labels).encode())
        self._size += self._file.write(b"".join(parts))

    def _member(self, name: str, data: bytes) -> tuple[bytes, ...]:
        # `TarInfo.tobuf` takes longer for each header than all else; only these three fields differ.
        named, size = name.encode().ljust(_NAME.stop, b"\0"), b"%011o\0" % len(data)
        checksum = b"%06o\0 " % (self._sum + sum(named) + sum(size))
        front, middle = self._parts
        return named, front, size, middle, checksum, self._end, data, bytes(-len(data) % tarfile.BLOCKSIZE)

    def finish(self) -> None:
        """Write the two empty blocks that end a tar, filled up to a whole record as tar does."""
        self._file.write(bytes(_END_BYTES + -(self._size + _END_BYTES) % tarfile.RECORDSIZE))
        self._file.close()

    def abandon(self) -> None:
        """Close without finishing."""
        self._file.close()

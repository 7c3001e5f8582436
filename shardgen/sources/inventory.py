"""What planning found in folders of photographs: a frozen inventory, in the plan or beside it."""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nlargest

from shardgen.domain.limits import MAX_NAME_BYTES, is_confined, is_sha256
from shardgen.domain.plan import FOLLOWS
from shardgen.imaging.options import MaskMode
from shardgen.storage.bounded import parse_json
from shardgen.storage.lines import MAX_LINE_BYTES

MAX_SOURCE_PIXELS = 10**12
MAX_SOURCE_BYTES = 10**15
_LARGEST = 4  # pictures whose pixels a plan tells
_LEAST_LINE_BYTES = 70  # a letter, a digest and what is between them


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """The mask image beside a foreground; the name is relative to the source folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A background photograph; width and height in pixels after EXIF orientation."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreground:
    """A foreground photograph; `placed_*` is its size on the canvas, after halving."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int
    placed_width: int = field(metadata={FOLLOWS: True})
    placed_height: int = field(metadata={FOLLOWS: True})
    mask: MaskMode
    mask_file: MaskFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The checked inventory, each list sorted by name (as UTF-8 bytes)."""

    backgrounds: tuple[Background, ...]
    foregrounds: tuple[Foreground, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureList:
    """A file of lines beside the plan, each a `Picture`, sorted by name.

    `count` lines; `largest_pixels` are those of its four largest pictures, falling.
    """

    count: int
    largest_pixels: tuple[int, ...]
    bytes: int
    sha256: str

    @classmethod
    def of(cls, data: builtins.bytes, *, pixels: Iterable[int]) -> PictureList:
        """The plan's part of a file that holds these lines; `pixels` of its pictures, in any order."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(count=data.count(b"\n"), largest_pixels=largest_of(pixels), bytes=len(data), sha256=digest)

    @property
    def is_possible(self) -> bool:
        """Whether a list of ours may have such numbers; `count` is compared with the block's."""
        largest = list(self.largest_pixels)
        return (
            self.count * _LEAST_LINE_BYTES <= self.bytes <= self.count * MAX_LINE_BYTES
            and len(largest) == min(_LARGEST, self.count)
            and largest == sorted(largest, reverse=True)
            and all(0 <= pixels <= MAX_SOURCE_PIXELS for pixels in largest)
        )


def largest_of(pixels: Iterable[int]) -> tuple[int, ...]:
    """The four largest of these, falling: as many pictures at full size may well meet in a worker."""
    return tuple(nlargest(_LARGEST, pixels))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture as planned, in pixels after EXIF orientation; 0 of one whose headers do not read."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int

    @classmethod
    def of(cls, line: builtins.bytes) -> Picture:
        """Read it from a line. Raises ValueError for what no line of ours holds."""
        found = parse_json(line)
        if not isinstance(found, list) or [type(value) for value in found] != [str, int, str, int, int]:
            raise ValueError("not a name, bytes, a sha256, width and height")
        picture = cls(**dict(zip(cls.__slots__, found, strict=True)))
        if problem := next(_file_problems(picture), None):
            raise ValueError(problem)
        if not 0 <= min(picture.width, picture.height) <= max(picture.width, picture.height) < 1 << 31:
            raise ValueError(f"{picture.name!r}: its width or height is impossible")
        return picture

    @property
    def line(self) -> builtins.bytes:
        """The way back: JSON, without the line feed."""
        values = [getattr(self, name) for name in self.__slots__]
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def inventory_problems(sources: Sources) -> Iterator[str]:
    """What no inventory of ours holds, a line each."""
    for background in sources.backgrounds:
        yield from _photograph_problems(background)
    for foreground in sources.foregrounds:
        yield from _photograph_problems(foreground)
        if foreground.mask_file is not None:
            yield from _file_problems(foreground.mask_file)


def _photograph_problems(source: Background | Foreground) -> Iterator[str]:
    yield from _file_problems(source)
    if not 1 <= min(source.width, source.height) <= max(source.width, source.height) <= MAX_SOURCE_PIXELS:
        yield f"{source.name!r}: its width or height is impossible"


def _file_problems(source: Background | Foreground | MaskFile | Picture) -> Iterator[str]:
    if len(source.name.encode()) > MAX_NAME_BYTES:
        yield f"{source.name[:20]!r}…: a name of more than {MAX_NAME_BYTES:,} bytes"
    if not is_confined(source.name):
        yield f"{source.name!r}: a name that leaves its folder"
    if not 0 <= source.bytes <= MAX_SOURCE_BYTES:
        yield f"{source.name!r}: its size is impossible"
    if not is_sha256(source.sha256):
        yield f"{source.name!r}: its sha256 is not a sha256"

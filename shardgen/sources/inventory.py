"""What planning found in the folders of photographs: a frozen inventory that stands in the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardgen.domain.limits import MAX_NAME_BYTES, is_confined, is_sha256
from shardgen.imaging.options import MaskMode

MAX_SOURCE_PIXELS = 10**12
MAX_SOURCE_BYTES = 10**15


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
    placed_width: int
    placed_height: int
    mask: MaskMode
    mask_file: MaskFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The checked inventory, each list sorted by name (as UTF-8 bytes)."""

    backgrounds: tuple[Background, ...]
    foregrounds: tuple[Foreground, ...]


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


def _file_problems(source: Background | Foreground | MaskFile) -> Iterator[str]:
    if len(source.name.encode()) > MAX_NAME_BYTES:
        yield f"{source.name[:20]!r}…: a name of more than {MAX_NAME_BYTES:,} bytes"
    if not is_confined(source.name):
        yield f"{source.name!r}: a name that leaves its folder"
    if not 0 <= source.bytes <= MAX_SOURCE_BYTES:
        yield f"{source.name!r}: its size is impossible"
    if not is_sha256(source.sha256):
        yield f"{source.name!r}: its sha256 is none"

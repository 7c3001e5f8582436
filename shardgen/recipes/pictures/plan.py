"""The plan of pictures and their depth: its document, and from a sample's number to its picture."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.limits import MAX_SIDE, is_sha256, outside, shown_number
from shardgen.domain.plan import NOTHING, Output, Plan, PlanFile, plan_file_name
from shardgen.errors import ManifestCorrupt
from shardgen.imaging.options import ImageFormat
from shardgen.recipes.base import Beside
from shardgen.recipes.depth import Depth
from shardgen.sources.inventory import Picture, PictureList, largest_of
from shardgen.storage.bounded import parse_json
from shardgen.storage.files import storage_error
from shardgen.storage.lines import LineFile

KIND: Literal["depth"] = "depth"
IMAGE = "image"
"""The name of the output; the other one is `depth`."""
FOLDER = "pictures"
_AT_ONCE = 4096  # lines that are read together
_PARSED_BYTES = 1 << 22  # of lines that are parsed as one: parsed, the worst take twenty times as much
MAX_BLOCKS = 256  # each has a file of its own, also in the zip


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """How a picture is stored: `size` (width, height) in pixels, None for its own; quality is 1-100."""

    size: tuple[int, int] | None = field(metadata={NOTHING: "source"})
    image: ImageFormat
    image_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`recipe` in a plan of pictures."""

    depth: Depth
    output: Formats
    kind: Literal["depth"] = KIND

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The picture, and its depth."""
        suffix, size = self.output.image.suffix, self.output.size
        image = Output(name=IMAGE, suffix=suffix, channels=3, size=size, full_scale=255)
        return image, self.depth.output


def plan_file(sources: PictureList) -> PlanFile:
    """The file of lines that a block's sources mean."""
    name = plan_file_name(FOLDER, sources.sha256)
    return PlanFile(name=name, lines=sources.count, bytes=sources.bytes, sha256=sources.sha256)


class PicturesPlan:
    """A plan of pictures, a sample each; their lines are opened when one is asked for. Thread-safe.

    Raises TypeError for a plan of another kind.
    """

    def __init__(self, plan: Plan, beside: Beside) -> None:
        document = plan.recipe
        self.lists = [block.sources for block in plan.blocks if isinstance(block.sources, PictureList)]
        if not isinstance(document, Document) or len(self.lists) != len(plan.blocks):
            raise TypeError(f"a plan of {plan.recipe.kind}, not of {KIND}")
        self.plan = plan
        self.depth, self.output = document.depth, document.output
        self.files = tuple(map(plan_file, self.lists))
        self._beside = beside
        self._opened: dict[int, LineFile] = {}
        self._guard = threading.Lock()

    @property
    def largest_pixels(self) -> tuple[int, ...]:
        """Those of the four largest pictures, falling."""
        return largest_of(pixels for one in self.lists for pixels in one.largest_pixels)

    def picture(self, sample: SampleIndex) -> Picture:
        """A sample's picture; errors as `pictures`."""
        return next(self.pictures(range(sample, sample + 1)))

    def all(self) -> Iterator[Picture]:
        """All of them; errors as `pictures`."""
        return self.pictures(range(self.plan.samples))

    def pictures(self, samples: range) -> Iterator[Picture]:
        """The pictures of samples that follow each other.

        Raises what `beside` does, StorageFailed where the lines cannot be read just now, and ManifestCorrupt
        for others than planning wrote.
        """
        for block, start, lines in self._pages(samples):
            yield from self._parsed(block, start, lines)

    def names(self, samples: range) -> Iterator[str]:
        """The names of such pictures, in a tenth of the time: the rest of a line is not looked at."""
        for block, start, lines in self._pages(samples):
            yield from _names_of(lines) or (one.name for one in self._parsed(block, start, lines))

    def _parsed(self, block: int, start: int, lines: list[bytes]) -> Iterator[Picture]:
        for number, line in enumerate(lines, start):
            try:
                yield Picture.of(line)
            except ValueError as error:
                raise ManifestCorrupt(
                    f"{self.files[block].name}: its line of sample {number}: {error}",
                    hint="plan again in a new directory",
                ) from error

    def _pages(self, samples: range) -> Iterator[tuple[int, int, list[bytes]]]:
        """Their lines, many at once: the block, the first sample, and a line of each."""
        starts = self.plan.layout.starts
        start = samples.start
        while start < samples.stop:
            block = bisect_right(starts, start, key=lambda one: one.sample) - 1
            first = starts[block].sample
            stop = min(samples.stop, first + starts[block].samples, start + _AT_ONCE)
            yield block, start, self._lines(block, start - first, stop - first)
            start = stop

    def open_lists(self) -> None:
        """Open the lines of every block, so that one that is lost is heard of now; errors as `pictures`."""
        for block in range(len(self.lists)):
            self._open(block)

    def _lines(self, block: int, start: int, stop: int) -> list[bytes]:
        opened = self._open(block)
        try:
            return opened.lines(start, stop)
        except (OSError, ValueError) as error:
            with self._guard:  # opened anew by whoever asks again
                if self._opened.get(block) is opened:
                    del self._opened[block]
            if isinstance(error, OSError):
                raise storage_error(error, self.files[block].name) from error
            name = self.files[block].name
            raise ManifestCorrupt(
                f"{name}: {error}", hint="run the command again: it compares the whole file"
            ) from error

    def _open(self, block: int) -> LineFile:
        with self._guard:
            if block not in self._opened:
                self._opened[block] = self._beside(self.files[block])
            return self._opened[block]

    def problem(self) -> str | None:
        """The first thing that no plan of ours holds, as one line; None when there is none."""
        return next(self._problems(), None)

    def _problems(self) -> Iterator[str]:
        yield from filter(None, (outside("output.size", side, MAX_SIDE) for side in self.output.size or ()))
        yield from filter(None, [outside("output.image_quality", self.output.image_quality, 100)])
        yield from self.depth.problems()
        if len(self.lists) > MAX_BLOCKS:
            yield f"{len(self.lists):,} blocks (at most {MAX_BLOCKS})"
        for number, (block, sources) in enumerate(zip(self.plan.blocks, self.lists, strict=True)):
            if block.samples != sources.count:
                found, made = shown_number(block.samples), shown_number(sources.count)
                yield f"block {number}: samples is {found}, but it has {made} pictures"
            if not is_sha256(sources.sha256):
                yield f"block {number}: its sha256 is not a sha256"
            if not sources.is_possible:
                yield f"block {number}: its numbers are impossible"
        if len({file.name for file in self.files}) != len(self.files):
            yield "two blocks have the same pictures"


def _names_of(lines: list[bytes]) -> list[str]:
    """The first field of each line, parsed as one; none for what is long or anything else."""
    data = b",".join(lines)
    try:
        found = parse_json(b"[%b]" % data) if len(data) <= _PARSED_BYTES else None
    except ValueError:
        return []
    rows = found if isinstance(found, list) and len(found) == len(lines) else []
    names = [row[0] for row in rows if isinstance(row, list) and row]
    return names if len(names) == len(lines) and set(map(type, names)) <= {str} else []

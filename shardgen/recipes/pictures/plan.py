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
from shardgen.sources.inventory import MAX_SOURCE_PIXELS, Picture, PictureList
from shardgen.storage.lines import LineFile

KIND: Literal["depth"] = "depth"
IMAGE = "image"
"""The name of the output; the other one is `depth`."""
FOLDER = "pictures"
_AT_ONCE = 4096  # lines that are read together
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
    return PlanFile(name=name, bytes=sources.bytes, sha256=sources.sha256)


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
    def largest(self) -> int:
        """The most pixels that a picture has."""
        return max(one.largest for one in self.lists)

    def picture(self, sample: SampleIndex) -> Picture:
        """A sample's picture; errors as `lines`."""
        return next(self.pictures(range(sample, sample + 1)))

    def pictures(self, samples: range) -> Iterator[Picture]:
        """The pictures of samples that follow each other; errors as `lines`."""
        starts = self.plan.layout.starts
        start = samples.start
        while start < samples.stop:
            block = bisect_right(starts, start, key=lambda one: one.sample) - 1
            first = starts[block].sample
            stop = min(samples.stop, first + starts[block].samples)
            for number, line in enumerate(self.lines(block).lines(start - first, stop - first), start):
                try:
                    yield Picture.of(line)
                except ValueError as error:
                    raise ManifestCorrupt(
                        f"{self.files[block].name}: its line of sample {number}: {error}",
                        hint="plan anew in a new directory",
                    ) from error
            start = stop

    def all(self) -> Iterator[Picture]:
        """All of them; errors as `lines`."""
        for start in range(0, self.plan.samples, _AT_ONCE):
            yield from self.pictures(range(start, min(start + _AT_ONCE, self.plan.samples)))

    def lines(self, block: int) -> LineFile:
        """The lines of a block. Raises what `beside` does, ManifestCorrupt for another number of them."""
        with self._guard:
            if block not in self._opened:
                file, count = self.files[block], self.lists[block].count
                found = self._beside(file)
                if len(found) != count:
                    raise ManifestCorrupt(f"{file.name}: {len(found):,} lines, the plan says {count:,}")
                self._opened[block] = found
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
                yield f"block {number}: its sha256 is none"
            if not 0 <= sources.largest <= MAX_SOURCE_PIXELS or not 0 <= sources.bytes < 1 << 62:
                yield f"block {number}: its numbers are impossible"
        if len({file.name for file in self.files}) != len(self.files):
            yield "two blocks have the same pictures"

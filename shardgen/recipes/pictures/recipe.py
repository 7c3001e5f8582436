"""Pictures and their depth behind the recipe port; what decodes or computes is imported when it is needed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shardgen.domain import plan as domain
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan, PlanFile
from shardgen.domain.receipt import Facts, OutputSums
from shardgen.domain.sample import spread_samples
from shardgen.domain.wording import counted
from shardgen.errors import ShardgenError
from shardgen.imaging.options import DepthEncoding
from shardgen.machine.cores import usable_cores
from shardgen.recipes.base import (
    Beside,
    Card,
    Demand,
    Files,
    Folders,
    OnFile,
    Recipe,
    Station,
    csv_field,
)
from shardgen.recipes.depth import DEPTH
from shardgen.recipes.pictures.plan import FOLDER, IMAGE, PicturesPlan

if TYPE_CHECKING:
    from shardgen.imaging.sheet import SheetSample
    from shardgen.recipes.pictures.maker import PicturesMaker

_LOOKED_AT = 64  # pictures whose sizes in bytes are compared when a worker starts
_PIXEL_BYTES = 32  # of memory for each pixel of a picture that is decoded, encoded and added up


class PicturesRecipe(Recipe):
    """What is known of a plan's pictures without making them."""

    label_columns = ("sample", "picture", "width", "height")
    text_columns = frozenset({"picture"})
    name_column = "picture"

    def __init__(self, plan: Plan, beside: Beside | None = None) -> None:
        super().__init__(plan, beside)
        self.pictures = PicturesPlan(plan, self.beside)

    @property
    def files(self) -> tuple[PlanFile, ...]:
        """The lines of each block."""
        return self.pictures.files

    @property
    def remark(self) -> str:
        """That depth is noise, when it is."""
        return self.pictures.depth.remark

    def load(self) -> None:
        """OpenCV; TensorFlow takes seconds, and only a maker needs it."""
        from shardgen.imaging import opencv  # noqa: F401 - only whether it can be imported

    def problem(self) -> str | None:
        """What no plan of pictures holds."""
        return self.pictures.problem()

    def differences(self, new: Recipe) -> list[str]:
        """By the pictures' names, where both lists can be read."""
        lines = domain.differences(replace(self.plan, blocks=()), replace(new.plan, blocks=()))
        try:
            lines += [f"pictures: {name!r} {what}" for what, name in self._changes(new)]
        except ShardgenError:
            lines.clear()
        return lines or super().differences(new)

    def is_part_of(self, new: Recipe) -> bool:
        """Whether nothing but new pictures is in the new plan."""
        if (self.plan.recipe, self.plan.shards) != (new.plan.recipe, new.plan.shards):
            return False
        try:
            found = {what for what, _name in self._changes(new)}
        except ShardgenError:
            return False
        return found == {"is new"}

    def _changes(self, new: Recipe) -> Iterator[tuple[str, str]]:
        if not isinstance(new, PicturesRecipe) or self.pictures.files == new.pictures.files:
            return
        known = {one.name: one for one in self.pictures.all()}
        for one in new.pictures.all():
            before = known.pop(one.name, None)
            if before != one:
                yield "is new" if before is None else "has changed", one.name
        yield from (("is gone", name) for name in known)

    def sources_of(self, sample: SampleIndex) -> frozenset[str]:
        """Its picture."""
        return frozenset({f"{FOLDER}/{self.pictures.picture(sample).name}"})

    def groups(self, start: int, stop: int) -> Iterator[tuple[int, int, frozenset[str]]]:
        """One a picture; they are read together."""
        for sample, name in enumerate(self.pictures.names(range(start, stop)), start):
            yield sample, sample + 1, frozenset({f"{FOLDER}/{name}"})

    def digests(self) -> Iterator[tuple[int, str, str]]:
        """Of each picture."""
        layout = self.plan.layout
        for block, start in enumerate(layout.starts):
            for one in self.pictures.pictures(range(start.sample, start.sample + start.samples)):
                yield block, f"{FOLDER}/{one.name}", one.sha256

    @property
    def photographs(self) -> int:
        """A sample is a picture."""
        return self.plan.samples

    def all_sources(self) -> frozenset[str]:
        """All pictures."""
        return frozenset(f"{FOLDER}/{name}" for name in self.pictures.names(range(self.plan.samples)))

    def describe(self, sample: SampleIndex) -> Mapping[str, str]:
        """The picture's name."""
        return {"picture": self.pictures.picture(sample).name}

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """One row a sample; they follow from the plan."""
        del facts
        return "".join(
            f"{sample},{csv_field(one.name)},{one.width},{one.height}{tail}"
            for sample, one in zip(samples, self.pictures.pictures(samples), strict=True)
            if sample not in without
        )

    def card(self) -> Card:
        """What the README says."""
        depth, output = self.pictures.depth, self.pictures.output
        real = "pictures as they are, and the estimated depth of each"
        introduction = f"{real.capitalize()}.\n{depth.caution}"
        if depth.is_noise:
            introduction = (
                "> **THE DEPTH IMAGES ARE NOISE, NOT DEPTH.** They were made with random weights "
                f"(`{depth.weights.name}`) to try things out.\n> Do not train on them.\n"
            )
        sizes = (_in_words(size, "its own size") for size in (output.size, depth.size))
        return Card(
            title="Pictures and depth",
            introduction=introduction,
            made_of=counted(self.plan.samples, "picture"),
            how_made=(
                "1. The picture is turned as its EXIF says, converted to sRGB and stored without "
                f"transparency, at {next(sizes)}.\n"
                f"2. Resized to {depth.input[0]} x {depth.input[1]} pixels, whatever its shape, it goes "
                f"through the depth network; depth is stored at {next(sizes)}.\n\n"
                "The number of a sample is that of its picture, with pictures sorted by name "
                "and counted from 0"
                + (
                    ", in each of the blocks in which pictures were added.\n"
                    if self.plan.blocks[1:]
                    else ".\n"
                )
            ),
            outputs={IMAGE: "the picture, RGB", DEPTH: depth.in_words()},
            labels="one row per stored sample: its picture, whose own width and height are in pixels",
            files="a line for each picture: its name, bytes, sha256, width and height",
            tasks=("depth-estimation",),
            provenance=depth.provenance(),
        )

    def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes | None:
        """Each picture beside its depth in colours; near is bright."""
        from shardgen.imaging.sheet import contact_sheet

        depth = self.pictures.depth
        return contact_sheet(
            (self._to_draw(SampleIndex(number), files) for number, files in samples),
            title=f"{counted(self.plan.samples, 'picture')}; {len(samples)} shown",
            near_is_dark=depth.encoding is DepthEncoding.RELATIVE,
            depth_is_random=depth.is_noise,
        )

    def pictures_of(self, sample: SampleIndex, files: Files) -> Mapping[str, bytes]:
        """`picture`, and `depth` or `not depth`, as on a contact sheet."""
        from shardgen.imaging.sheet import small_pictures

        depth = self.pictures.depth
        return small_pictures(
            self._to_draw(sample, files),
            near_is_dark=depth.encoding is DepthEncoding.RELATIVE,
            depth_is_random=depth.is_noise,
        )

    def _to_draw(self, sample: SampleIndex, files: Files) -> SheetSample:
        from shardgen.imaging.codec import decode_encoded
        from shardgen.imaging.sheet import SheetSample

        return SheetSample(
            caption=f"{sample}: {self.pictures.picture(sample).name}",
            picture=decode_encoded(files[IMAGE], channels=3),  # type: ignore[arg-type]
            depth=decode_encoded(files[DEPTH], channels=1),
        )

    def recount(self, output: Output, data: bytes) -> OutputSums:
        """Decode the image and add up its pixels."""
        from shardgen.imaging.outputs import stored_sums

        return stored_sums(data, channels=output.channels, size=output.size)

    def demand(self, local: object) -> Demand:
        """What the network needs, and the largest pictures on their way to it, one a core."""
        from shardgen.recipes.network import network_choice, network_demand

        network = network_demand(network_choice(local), self.pictures.depth)
        beside = sum(self.pictures.largest_pixels[: usable_cores()]) * _PIXEL_BYTES
        return replace(network, bytes_for=lambda micro_batch: network.bytes_for(micro_batch) + beside)

    def check_sources(self, folders: Folders, *, on_file: OnFile) -> None:
        """Compare the sizes of a few: each picture's bytes are compared when it is read."""
        from shardgen.sources.checking import refuse_problems

        refuse_problems(self.source_problems(folders))
        on_file(FOLDER, 1)

    def source_problems(self, folders: Folders) -> list[str]:
        """Compare the sizes of a few, spread over the plan."""
        from shardgen.sources.checking import picture_problems

        self.pictures.open_lists()
        looked_at = spread_samples(self.plan.samples, _LOOKED_AT)
        return picture_problems(folders[FOLDER], map(self.pictures.picture, looked_at))

    def unknown_sources(self, folders: Folders) -> list[str]:
        """Pictures that no line names."""
        from shardgen.sources.checking import unknown_pictures

        return unknown_pictures(folders[FOLDER], set(self.pictures.names(range(self.plan.samples))))

    def open_maker(self, station: Station) -> PicturesMaker:
        """Load the network; no picture is read yet."""
        from shardgen.recipes.network import open_depth_stage
        from shardgen.recipes.pictures.maker import PicturesMaker

        self.pictures.open_lists()  # what is lost is told in a second
        depth = open_depth_stage(self.pictures.depth, station)
        return PicturesMaker(self.pictures, station.folders[FOLDER], depth)


def _in_words(size: tuple[int, int] | None, none: str) -> str:
    return none if size is None else f"{size[0]} x {size[1]} pixels"

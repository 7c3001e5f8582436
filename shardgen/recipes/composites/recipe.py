"""Composites behind the recipe port; what decodes, draws or computes is imported when it is needed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from shardgen.depth.device import describe_cpu
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.receipt import Facts, OutputSums
from shardgen.domain.wording import counted
from shardgen.imaging.options import DepthEncoding
from shardgen.machine.cores import usable_cores
from shardgen.recipes.base import (
    Beside,
    Card,
    Demand,
    Files,
    Folders,
    Instance,
    OnFile,
    Recipe,
    Station,
)
from shardgen.recipes.composites.card import composites_card
from shardgen.recipes.composites.labels import COLUMNS, FACTS, OF_SAMPLE, TEXTS, LabelRows
from shardgen.recipes.composites.placement import Placement
from shardgen.recipes.composites.plan import FGBG, INSTANCES, MASK, CompositesPlan, Flips
from shardgen.recipes.depth import DEPTH

if TYPE_CHECKING:
    from shardgen.imaging.sheet import SheetSample
    from shardgen.recipes.composites.maker import CompositesMaker

_AT_ONCE = 8  # samples that are prepared side by side, at most
_BOX = ("output_x", "output_y", "output_width", "output_height")
_KEPT_PIXEL_BYTES = 6  # of a canvas: a background, and as much again for the files and the network
_PIXEL_BYTES = 16  # of a cut-out that is resized: colours times alpha in float32


class CompositesRecipe(Recipe):
    """What is known of a plan's composites without making them."""

    label_columns: ClassVar[tuple[str, ...]] = COLUMNS
    fact_columns: ClassVar[tuple[str, ...]] = FACTS
    text_columns: ClassVar[frozenset[str]] = TEXTS
    sample_columns: ClassVar[tuple[str, ...]] = OF_SAMPLE

    def __init__(self, plan: Plan, beside: Beside | None = None) -> None:
        super().__init__(plan, beside)
        self.composites = CompositesPlan(plan)

    @property
    def has_several_rows(self) -> bool:
        """Where there may be several people."""
        return self.composites.most_people > 1

    @property
    def remark(self) -> str:
        """That depth is noise, when it is."""
        depth = self.composites.depth
        return "" if depth is None else depth.remark

    def load(self) -> None:
        """OpenCV; TensorFlow takes seconds, and only a maker needs it."""
        from shardgen.imaging import opencv  # noqa: F401 - only whether it can be imported

    def problem(self) -> str | None:
        """What no plan of composites holds."""
        return self.composites.problem()

    def sources_of(self, sample: SampleIndex) -> frozenset[str]:
        """Its background, and everyone who was drawn for it, visible or not."""
        plan, sources = self.composites, self.composites.sources
        people = (sources.foregrounds[index].name for index in plan.foregrounds_of(sample))
        background = sources.backgrounds[plan.combination(sample).background].name
        return frozenset([f"backgrounds/{background}", *(f"foregrounds/{name}" for name in people)])

    def digests(self) -> Iterator[tuple[int, str, str]]:
        """Of each photograph; masks of their own do not count."""
        for number, block in enumerate(self.composites.blocks):
            yield from ((number, f"backgrounds/{one.name}", one.sha256) for one in block.backgrounds)
            yield from ((number, f"foregrounds/{one.name}", one.sha256) for one in block.foregrounds)

    def all_sources(self) -> frozenset[str]:
        """All photographs."""
        sources = self.composites.sources
        return frozenset(f"backgrounds/{one.name}" for one in sources.backgrounds) | frozenset(
            f"foregrounds/{one.name}" for one in sources.foregrounds
        )

    @property
    def alike(self) -> int:
        """All flips and places of a pair, unless others than its foreground may be in the picture."""
        return self.composites.variants if self.composites.most_people == 1 else 1

    def describe(self, sample: SampleIndex) -> Mapping[str, str]:
        """Their names; of several people the first one is painted first."""
        background, foregrounds = self._names(sample)
        return {"background": background, "foreground": ", ".join(foregrounds)}

    def _names(self, sample: SampleIndex) -> tuple[str, list[str]]:
        plan, sources = self.composites, self.composites.sources
        made_of = plan.combination(sample)
        people = [made_of.foreground]
        if plan.most_people > 1:
            people = [person.foreground for person in plan.people(sample)]
        return sources.backgrounds[made_of.background].name, [
            sources.foregrounds[person].name for person in people
        ]

    @cached_property
    def _rows(self) -> LabelRows:
        return LabelRows(self.composites)

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """One row a person, in the order of painting."""
        return self._rows.rows(samples, tail=tail, without=without, facts=facts)

    def card(self) -> Card:
        """What the README says."""
        return composites_card(self.composites)

    def to_look_at(self, wanted: int, *, every: str = "") -> list[SampleIndex]:
        """Samples that cover backgrounds, foregrounds, flips and places."""
        if every not in {"", "foregrounds", "backgrounds"}:
            return super().to_look_at(wanted, every=every)
        sources = self.composites.sources
        count = len(sources.foregrounds if every == "foregrounds" else sources.backgrounds)
        return self.composites.covering(count if every else wanted)

    def contact_sheet(self, samples: Sequence[tuple[int, Files]]) -> bytes | None:
        """Composite with outlines, mask or people, and depth in colours, of each sample; near is bright."""
        from shardgen.imaging.sheet import contact_sheet

        return contact_sheet(
            (self._to_draw(SampleIndex(number), files) for number, files in samples),
            title=self._title(len(samples)),
            near_is_dark=self._near_is_dark,
            depth_is_random=bool(self.remark),
        )

    def pictures_of(self, sample: SampleIndex, files: Files) -> Mapping[str, bytes]:
        """`composite`, `mask` or `people`, and `depth` or `not depth`, as on a contact sheet."""
        from shardgen.imaging.sheet import small_pictures

        drawn = small_pictures(
            self._to_draw(sample, files), near_is_dark=self._near_is_dark, depth_is_random=bool(self.remark)
        )
        return {"composite" if what == "picture" else what: data for what, data in drawn.items()}

    @property
    def _near_is_dark(self) -> bool:
        depth = self.composites.depth
        return depth is not None and depth.encoding is DepthEncoding.RELATIVE

    def _to_draw(self, sample: SampleIndex, files: Files) -> SheetSample:
        from shardgen.imaging.codec import decode_encoded
        from shardgen.imaging.sheet import SheetSample

        outputs = {output.name: output for output in self.plan.outputs}

        def decoded(name: str) -> Any:
            output = outputs.get(name)
            return output and decode_encoded(files[name], channels=output.channels, size=output.size)

        return SheetSample(
            caption=self._caption(sample),
            picture=decoded(FGBG),
            mask=decoded(MASK),
            instances=decoded(INSTANCES),
            depth=decoded(DEPTH),
        )

    def _title(self, shown: int) -> str:
        plan = self.composites
        parts = [
            counted(len(plan.sources.backgrounds), "background"),
            counted(len(plan.sources.foregrounds), "foreground"),
            counted(plan.flip_count, "flip"),
            counted(plan.place_count, "place"),
        ]
        return f"{' x '.join(parts)} = {counted(plan.samples, 'sample')}; {shown} shown"

    def _caption(self, sample: SampleIndex) -> str:
        """As in `17: anna on park, mirrored, place 3,2`; columns and rows count from 0, as in labels.csv."""
        plan = self.composites
        made_of = plan.combination(sample)
        background, foregrounds = self._names(sample)
        people = ", ".join(PurePosixPath(name).stem for name in foregrounds)
        mirrored = ""
        if made_of.flip and plan.most_people == 1:
            is_background = plan.compose.flips is Flips.BACKGROUNDS
            mirrored = ", background mirrored" if is_background else ", mirrored"
        place = ""
        if plan.compose.placement is Placement.GRID:
            place = f", place {made_of.column},{made_of.row}"
        return f"{sample}: {people} on {PurePosixPath(background).stem}{mirrored}{place}"

    def recount(self, output: Output, data: bytes) -> OutputSums:
        """Decode the image and add up its pixels."""
        from shardgen.imaging.outputs import stored_sums

        return stored_sums(data, channels=output.channels, size=output.size)

    def categories(self) -> tuple[str, ...]:
        """The folders that the foregrounds lie in; those in none are of the category `foreground`."""
        return tuple(sorted({_category(one.name) for one in self.composites.sources.foregrounds}))

    def instances(self, labels: Mapping[str, Any], files: Files) -> list[Instance]:
        """Everyone of whom a pixel is visible; boxes and areas are those of the facts."""
        from shardgen.imaging.masks import FOREGROUND_LEVEL

        outputs = {output.name: output for output in self.plan.outputs}
        if self.has_several_rows:
            people = self.decoded(outputs[INSTANCES], files[INSTANCES])
            columns = {name: labels[name] for name in (*_BOX, "output_area", "foreground")}
            masks = [people == person for person in labels["person"]]
        else:
            masks = [self.decoded(outputs[MASK], files[MASK]) >= FOREGROUND_LEVEL]
            columns = {name: [labels[name]] for name in (*_BOX, "output_area", "foreground")}
        x, y, width, height = (columns[name] for name in _BOX)
        return [
            Instance(
                category=_category(columns["foreground"][row]),
                mask=mask,
                box=(x[row], y[row], width[row], height[row]),
                area=columns["output_area"][row],
                row=row,
            )
            for row, mask in enumerate(masks)
            if columns["output_area"][row] and mask.any()
        ]

    def demand(self, local: object) -> Demand:
        """What the plan's network needs; the weights must be at hand."""
        from shardgen.recipes.network import demand_without_network, network_choice, network_demand

        depth, beside = self.composites.depth, self._kept_bytes() + self._resizing_bytes()
        if depth is None:
            return demand_without_network(beside)
        network = network_demand(network_choice(local), depth)
        return replace(network, bytes_for=lambda micro_batch: network.bytes_for(micro_batch) + beside)

    def _kept_bytes(self) -> int:
        """Memory of prepared photographs: at most what is kept of them, and little if there are few."""
        from shardgen.recipes.composites.composer import CACHE_BYTES

        plan = self.composites
        width, height = plan.compose.canvas
        photographs = len(plan.sources.backgrounds) + len(plan.sources.foregrounds)
        return min(CACHE_BYTES, photographs * width * height * _KEPT_PIXEL_BYTES)

    def _resizing_bytes(self) -> int:
        """Memory to resize whole cut-outs in, as many at once as there are cores."""
        if not isinstance(self.composites.compose.foreground_height, tuple):
            return 0
        largest = max(one.width * one.height for one in self.composites.sources.foregrounds)
        return min(_AT_ONCE, usable_cores()) * largest * _PIXEL_BYTES

    def check_sources(self, folders: Folders, *, on_file: OnFile) -> None:
        """Hash every photograph."""
        from shardgen.sources.checking import check_against_plan

        check_against_plan(
            folders["foregrounds"], folders["backgrounds"], self.composites.sources, on_file=on_file
        )

    def source_problems(self, folders: Folders) -> list[str]:
        """Compare sizes."""
        from shardgen.sources.checking import size_problems

        return size_problems(folders["foregrounds"], folders["backgrounds"], self.composites.sources)

    def unknown_sources(self, folders: Folders) -> list[str]:
        """Photographs, not mask files."""
        from shardgen.sources.checking import unknown_photographs

        return unknown_photographs(folders["foregrounds"], folders["backgrounds"], self.composites.sources)

    def open_maker(self, station: Station) -> CompositesMaker:
        """Load the network, if depth is made; nothing is composed yet."""
        from shardgen.recipes.composites.composer import Composer
        from shardgen.recipes.composites.maker import CompositesMaker
        from shardgen.recipes.network import open_depth_stage

        plan, folders = self.composites, station.folders
        depth = None if plan.depth is None else open_depth_stage(plan.depth, station)
        composer = Composer(plan, folders["foregrounds"], folders["backgrounds"])
        return CompositesMaker(plan, composer, depth, cpu=describe_cpu(station.device.threads))


def _category(foreground: str) -> str:
    folder = str(PurePosixPath(foreground).parent)
    return "foreground" if folder == "." else folder

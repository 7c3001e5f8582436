"""Composites behind the recipe port; what decodes, draws or computes is imported when it is needed."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from shardgen.depth.base import NetworkChoice, Quality
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.receipt import Facts, OutputSums
from shardgen.domain.wording import counted
from shardgen.imaging.options import DepthEncoding
from shardgen.recipes.base import (
    Card,
    Demand,
    Files,
    Folders,
    OnFile,
    Recipe,
    Station,
)
from shardgen.recipes.composites.card import composites_card
from shardgen.recipes.composites.labels import COLUMNS, LabelRows
from shardgen.recipes.composites.plan import DEPTH, FGBG, MASK, CompositesPlan, Flips

if TYPE_CHECKING:
    from shardgen.recipes.composites.maker import CompositesMaker


class CompositesRecipe(Recipe):
    """What is known of a plan's composites without making them."""

    label_columns: ClassVar[tuple[str, ...]] = COLUMNS

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.composites = CompositesPlan(plan)

    @property
    def remark(self) -> str:
        """That depth is noise, when it is."""
        weights = self.composites.depth.weights
        return (
            f"NOT DEPTH: the weights are {weights.name}, so depth images are noise"
            if weights.quality is Quality.NOISE
            else ""
        )

    def load(self) -> None:
        """OpenCV; TensorFlow takes seconds, and only a maker needs it."""
        from shardgen.imaging import opencv  # noqa: F401 - only whether it can be imported

    def problem(self) -> str | None:
        """What no plan of composites holds."""
        return self.composites.problem()

    def sources_of(self, sample: SampleIndex) -> frozenset[str]:
        """Its two photographs."""
        return frozenset(f"{folder}s/{name}" for folder, name in self.describe(sample).items())

    def all_sources(self) -> frozenset[str]:
        """All photographs."""
        sources = self.composites.sources
        return frozenset(f"backgrounds/{one.name}" for one in sources.backgrounds) | frozenset(
            f"foregrounds/{one.name}" for one in sources.foregrounds
        )

    @property
    def alike(self) -> int:
        """All flips and places of a pair."""
        return self.composites.variants

    def describe(self, sample: SampleIndex) -> Mapping[str, str]:
        """Their names."""
        made_of, sources = self.composites.combination(sample), self.composites.sources
        return {
            "background": sources.backgrounds[made_of.background].name,
            "foreground": sources.foregrounds[made_of.foreground].name,
        }

    @cached_property
    def _rows(self) -> LabelRows:
        return LabelRows(self.composites)

    def label_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """One row a sample; they follow from the plan."""
        del facts
        return self._rows.rows(samples, tail=tail, without=without)

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
        """Composite with its mask's outline, mask, and depth in colours, of each sample; near is bright."""
        from shardgen.imaging.codec import decode_encoded
        from shardgen.imaging.sheet import SheetSample, contact_sheet

        plan = self.composites
        size = plan.output.size
        counts = (
            f"{counted(len(plan.sources.backgrounds), 'background')} x "
            f"{counted(len(plan.sources.foregrounds), 'foreground')} x {counted(plan.flip_count, 'flip')} x "
            f"{counted(plan.place_count, 'place')} = {counted(plan.samples, 'sample')}; {len(samples)} shown"
        )
        return contact_sheet(
            [
                SheetSample(
                    caption=self._caption(SampleIndex(number)),
                    fgbg=decode_encoded(files[FGBG], channels=3, size=size),  # type: ignore[arg-type]
                    mask=decode_encoded(files[MASK], channels=1, size=size),  # type: ignore[arg-type]
                    depth=decode_encoded(files[DEPTH], channels=1, size=size),
                )
                for number, files in samples
            ],
            title=counts,
            near_is_dark=plan.depth.encoding is DepthEncoding.RELATIVE,
            depth_is_random=plan.depth.weights.quality is Quality.NOISE,
        )

    def _caption(self, sample: SampleIndex) -> str:
        """As in `17: anna on park, mirrored, place 3,2`; columns and rows count from 0, as in labels.csv."""
        made_of, names = self.composites.combination(sample), self.describe(sample)
        foreground, background = (PurePosixPath(names[kind]).stem for kind in ("foreground", "background"))
        is_background = self.composites.compose.flips is Flips.BACKGROUNDS
        mirrored = (", background mirrored" if is_background else ", mirrored") if made_of.flip else ""
        return f"{sample}: {foreground} on {background}{mirrored}, place {made_of.column},{made_of.row}"

    def recount(self, output: Output, data: bytes) -> OutputSums:
        """Decode the image and add up its pixels."""
        from shardgen.imaging.outputs import stored_sums

        return stored_sums(data, channels=output.channels, size=output.size)

    def demand(self, local: object) -> Demand:
        """What the plan's network needs; the weights must be at hand."""
        from shardgen.recipes.composites.network import network_demand

        return network_demand(network_choice(local), self.composites)

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
        """Load the network; nothing is composed yet."""
        from shardgen.recipes.composites.composer import Composer
        from shardgen.recipes.composites.maker import CompositesMaker
        from shardgen.recipes.composites.network import load_for_plan

        plan, folders = self.composites, station.folders
        network = load_for_plan(
            network_choice(station.local), plan, station.agreed, choice=station.device, say=station.say
        )
        composer = Composer(plan, folders["foregrounds"], folders["backgrounds"])
        return CompositesMaker(plan, composer, network, agreed=station.agreed, say=station.say)


def network_choice(local: object) -> NetworkChoice:
    """What `Tables.local` has made. Raises TypeError for anything else."""
    if not isinstance(local, NetworkChoice):
        raise TypeError(f"{local!r} is not what the settings of composites say of a machine")
    return local

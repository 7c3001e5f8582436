"""The tables of `shardgen.toml` that say what composites are made of and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardgen.depth.base import NetworkChoice
from shardgen.domain import plan as domain
from shardgen.imaging.options import Blend, ImageFormat, MaskMode
from shardgen.recipes.base import RecipeTables, Table, WrongSetting
from shardgen.recipes.composites.placement import MAX_PEOPLE, MAX_SEED, Placement
from shardgen.recipes.composites.plan import MAX_PLACES, Compose, Document, Flips, Formats
from shardgen.recipes.depth import AS_SIZE, DepthSize, DepthTable, Percent, Side

HALVED: Literal["halved"] = "halved"
Places = Annotated[int, Field(ge=1, le=MAX_PLACES)]
People = Annotated[int, Field(ge=1, le=MAX_PEOPLE)]
PerMille = Annotated[int, Field(ge=1, le=1000)]
# Of [compose], those that belong to one placement.
_OF_GRID, _OF_RANDOM = ("grid",), ("places", "seed", "foregrounds_per_sample", "overhang")


class SourcesTable(Table):
    """Where the photographs lie on this machine, and how a foreground's mask is found."""

    foregrounds: str = ""
    backgrounds: str = ""
    mask: MaskMode = MaskMode.AUTO


class ComposeTable(Table):
    """Canvas (width, height) in pixels, grid (columns, rows); heights in pixels, or a range in per mille."""

    canvas: tuple[Side, Side] = (600, 600)
    placement: Placement = Placement.GRID
    grid: tuple[Places, Places] = (5, 4)
    places: Places = 20
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    foregrounds_per_sample: tuple[People, People] = (1, 1)
    foreground_height: Annotated[
        Literal["halved"] | Side | tuple[PerMille, PerMille],
        Field(
            description='"halved", a number of pixels, as in 340, or a list of two whole numbers from 1 to '
            "1000, per mille of the canvas's height, as in [300, 600]"
        ),
    ] = HALVED
    overhang: Annotated[int, Field(ge=0, le=1000)] = 0
    flips: Flips = Flips.FOREGROUNDS
    blend: Blend = Blend.MASK

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_random = self.placement is Placement.RANDOM
        other = Placement.GRID if is_random else Placement.RANDOM
        for key in _OF_GRID if is_random else _OF_RANDOM:
            if key in self.model_fields_set:
                raise WrongSetting(
                    f'{key}: belongs to placement = "{other}" (found "{self.placement}")',
                    hint=f'under [compose] remove {key}, or write placement = "{other}"',
                )
        if isinstance(self.foreground_height, tuple):
            if not is_random:
                raise WrongSetting(
                    'foreground_height: two numbers belong to placement = "random" (found "grid")',
                    hint="under [compose] write, for example: foreground_height = 340",
                )
            if self.foreground_height[0] > self.foreground_height[1]:
                raise WrongSetting(
                    "foreground_height: the smaller number comes first",
                    hint="under [compose] write, for example: foreground_height = [300, 600]",
                )
        if self.foregrounds_per_sample[0] > self.foregrounds_per_sample[1]:
            raise WrongSetting(
                "foregrounds_per_sample: the smaller number comes first",
                hint="under [compose] write, for example: foregrounds_per_sample = [1, 3]",
            )
        return self

    def plan(self, mask: MaskMode) -> Compose:
        """The plan's part."""
        is_random = self.placement is Placement.RANDOM
        return Compose(
            canvas=self.canvas,
            placement=self.placement,
            grid=None if is_random else self.grid,
            places=self.places if is_random else None,
            seed=self.seed if is_random else None,
            foreground_height=None if self.foreground_height == HALVED else self.foreground_height,
            overhang=self.overhang,
            foregrounds_per_sample=self.foregrounds_per_sample,
            flips=self.flips,
            blend=self.blend,
            mask=mask,
        )


class OutputTable(Table):
    """Sizes (width, height) in pixels, formats and qualities of the images.

    Depth is as large as the others unless `depth_size` says otherwise.
    """

    size: tuple[Side, Side] = (200, 200)
    image: ImageFormat = ImageFormat.JPEG
    image_quality: Percent = 25
    mask: ImageFormat = ImageFormat.PNG
    depth: ImageFormat = ImageFormat.JPEG
    depth_quality: Percent = 60
    depth_size: DepthSize = AS_SIZE


class Tables(RecipeTables):
    """All of them."""

    sources: SourcesTable = Field(default_factory=SourcesTable)
    compose: ComposeTable = Field(default_factory=ComposeTable)
    depth: DepthTable = Field(default_factory=DepthTable)
    output: OutputTable = Field(default_factory=OutputTable)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.depth.refuse_narrow(self.output)
        return self

    def document(self, planned: domain.Document | None) -> Document:
        """The recipe's part of the plan; digest and structure of the weights are the plan's."""
        output, depth = self.output, None
        if self.depth.is_wanted:
            known = planned.depth if isinstance(planned, Document) else None
            depth = self.depth.plan(output, output.size, known)
        return Document(
            compose=self.compose.plan(self.sources.mask),
            depth=depth,
            output=Formats(
                size=output.size,
                image=output.image,
                image_quality=output.image_quality,
                mask=output.mask,
            ),
        )

    def source_folders(self) -> Mapping[str, str]:
        """`[sources]` as written."""
        return {"foregrounds": self.sources.foregrounds, "backgrounds": self.sources.backgrounds}

    def local(self, resolve: Callable[[str, str], Path]) -> NetworkChoice | None:
        """Which weights file this machine has, and its micro-batch; None without depth."""
        return self.depth.local(resolve) if self.depth.is_wanted else None

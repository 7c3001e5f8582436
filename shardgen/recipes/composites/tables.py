"""The tables of `shardgen.toml` that say what composites are made of and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from shardgen.depth.base import FILE, NetworkChoice, Precision, Quality, Upsampling, Weights
from shardgen.depth.families import DEFAULT, find_family, unknown_family
from shardgen.domain import plan as domain
from shardgen.domain.limits import MAX_SIDE
from shardgen.imaging.options import Blend, DepthEncoding, ImageFormat, MaskMode
from shardgen.recipes.base import RecipeTables, Table
from shardgen.recipes.composites.plan import (
    MAX_PLACES,
    Compose,
    Depth,
    Document,
    Flips,
    Formats,
)

Places = Annotated[int, Field(ge=1, le=MAX_PLACES)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Percent = Annotated[int, Field(ge=1, le=100)]


class SourcesTable(Table):
    """Where the photographs lie on this machine, and how a foreground's mask is found."""

    foregrounds: str = ""
    backgrounds: str = ""
    mask: MaskMode = MaskMode.AUTO


class ComposeTable(Table):
    """Canvas (width, height) in pixels, grid (columns, rows)."""

    canvas: tuple[Side, Side] = (600, 600)
    grid: tuple[Places, Places] = (5, 4)
    flips: Flips = Flips.FOREGROUNDS
    blend: Blend = Blend.MASK


def _known_family(name: str) -> str:
    if problem := unknown_family(name):
        raise ValueError(problem)
    return name


class DepthTable(Table):
    """The depth network; `input` is (width, height) in pixels."""

    model: Annotated[str, AfterValidator(_known_family)] = DEFAULT.name
    weights: Annotated[str, Field(min_length=1)] = DEFAULT.default_weights
    input: tuple[Side, Side] = (640, 480)
    upsampling: Upsampling = Upsampling.ALIGNED
    precision: Precision = Precision.FLOAT32
    micro_batch: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024)],
        Field(description='"auto" or a number from 1 to 1024'),
    ] = "auto"
    encoding: DepthEncoding = DepthEncoding.INVERSE_MINMAX

    @model_validator(mode="after")
    def _check(self) -> Self:
        sides = find_family(self.model).sides
        if not sides.allow(self.input):
            raise ValueError(f"input must be {sides} (found {list(self.input)})")
        try:
            self.planned_weights()
        except ValueError as error:
            raise ValueError(f"weights: {error}") from error
        return self

    def planned_weights(self) -> str:
        """The plan's name of `weights`."""
        return find_family(self.model).plan_name(self.weights)


class OutputTable(Table):
    """Size (width, height) in pixels, formats and qualities of the three images."""

    size: tuple[Side, Side] = (200, 200)
    image: ImageFormat = ImageFormat.JPEG
    image_quality: Percent = 25
    mask: ImageFormat = ImageFormat.PNG
    depth: ImageFormat = ImageFormat.JPEG
    depth_quality: Percent = 60


class Tables(RecipeTables):
    """All of them."""

    sources: SourcesTable = SourcesTable()
    compose: ComposeTable = ComposeTable()
    depth: DepthTable = DepthTable()
    output: OutputTable = OutputTable()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.depth.encoding is DepthEncoding.RELATIVE and self.output.depth is not ImageFormat.PNG:
            raise ValueError(
                'depth.encoding = "relative" is 16 bit and needs output.depth = "png" '
                f'(found "{self.output.depth}")'
            )
        return self

    def document(self, planned: domain.Document | None) -> Document:
        """The recipe's part of the plan; digest and structure of the weights are the plan's."""
        depth = self.depth
        name = depth.planned_weights()
        weights = Weights(name=name, bytes=0, sha256="", structure="", quality=Quality.DEPTH)
        if isinstance(planned, Document):
            weights = replace(planned.depth.weights, name=name)
        return Document(
            compose=Compose(**self.compose.model_dump(), mask=self.sources.mask),
            depth=Depth(
                model=depth.model,
                weights=weights,
                input=depth.input,
                upsampling=depth.upsampling,
                precision=depth.precision,
                encoding=depth.encoding,
            ),
            output=Formats(**self.output.model_dump()),
        )

    def source_folders(self) -> Mapping[str, str]:
        """`[sources]` as written."""
        return {"foregrounds": self.sources.foregrounds, "backgrounds": self.sources.backgrounds}

    def local(self, resolve: Callable[[str, str], Path]) -> NetworkChoice:
        """Which weights file this machine has, and its micro-batch."""
        name, written = self.depth.planned_weights(), self.depth.weights
        return NetworkChoice(
            name=name,
            written=written,
            file=resolve(written, "depth.weights") if name == FILE else None,
            micro_batch=self.depth.micro_batch,
        )

"""The tables of `shardgen.toml` that say what composites are made of and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shardgen.depth.base import NetworkChoice, Precision, Upsampling, Weights
from shardgen.domain import plan as domain
from shardgen.domain.limits import MAX_SIDE
from shardgen.imaging.options import Blend, DepthEncoding, ImageFormat, MaskMode
from shardgen.recipes.base import RecipeTables, Table
from shardgen.recipes.composites.plan import (
    INPUT_STEP,
    MAX_PLACES,
    Compose,
    Depth,
    Document,
    Flips,
    Formats,
)

Places = Annotated[int, Field(ge=1, le=MAX_PLACES)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Quality = Annotated[int, Field(ge=1, le=100)]


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


class DepthTable(Table):
    """The depth network; `input` is (width, height) in pixels, each a multiple of 32."""

    model: Literal["densedepth"] = "densedepth"
    weights: Annotated[str, Field(min_length=1)] = "nyu"
    input: tuple[Side, Side] = (640, 480)
    upsampling: Upsampling = Upsampling.ALIGNED
    precision: Precision = Precision.FLOAT32
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    encoding: DepthEncoding = DepthEncoding.INVERSE_MINMAX

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(side % INPUT_STEP for side in self.input):
            raise ValueError(f"input must be multiples of {INPUT_STEP} (found {list(self.input)})")
        if self.weights.startswith("random:") and not re.fullmatch(r"random:[1-9]\d{0,3}", self.weights):
            raise ValueError(
                f'weights: random ones are written "random:WIDTH", as in "random:64" (found {self.weights!r})'
            )
        return self


class OutputTable(Table):
    """Size (width, height) in pixels, formats and qualities of the three images."""

    size: tuple[Side, Side] = (200, 200)
    image: ImageFormat = ImageFormat.JPEG
    image_quality: Quality = 25
    mask: ImageFormat = ImageFormat.PNG
    depth: ImageFormat = ImageFormat.JPEG
    depth_quality: Quality = 60


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
        weights = Weights(name=self.weights_name, bytes=0, sha256="", activations=0, decoder_width=0)
        if isinstance(planned, Document):
            weights = replace(planned.depth.weights, name=self.weights_name)
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
        written = self.depth.weights
        return NetworkChoice(
            name=self.weights_name,
            written=written,
            file=resolve(written, "depth.weights") if self.weights_name == "file" else None,
            micro_batch=self.depth.micro_batch,
        )

    @property
    def weights_name(self) -> str:
        """The plan's name of `[depth] weights`: a path is called `file`, since a plan holds no paths."""
        known = self.depth.weights in {"nyu", "kitti", "small"} or self.depth.weights.startswith("random:")
        return self.depth.weights if known else "file"

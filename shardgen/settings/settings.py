"""`shardgen.toml`: the only reader of user settings, and the text that `init` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shardgen.domain.claims import FolderPolicy
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.limits import (
    INPUT_STEP,
    MAX_BATCH,
    MAX_PLACES,
    MAX_SAMPLES,
    MAX_SIDE,
    MAX_SLICE_BATCHES,
)
from shardgen.domain.plan import (
    Blend,
    Compose,
    DepthEncoding,
    Flips,
    ImageFormat,
    MaskMode,
    Output,
    Plan,
    Precision,
    Shards,
    Upsampling,
    differences,
)
from shardgen.errors import InputMissing, InvalidSettings
from shardgen.settings.problems import problems_in
from shardgen.settings.secrets import expanded
from shardgen.storage.bounded import how_to_read, parse_toml, read_regular

FILE_NAME = "shardgen.toml"
MAX_BYTES = 1 << 16
_MAX_PROBLEMS = 20  # named in one message

Places = Annotated[int, Field(ge=1, le=MAX_PLACES)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Quality = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _no_nul(self) -> Self:
        for name, value in self:
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name}: no path and no URL holds a NUL character")
        return self


class SourcesTable(_Table):
    """Where the photographs lie on this machine, and how a foreground's mask is found."""

    foregrounds: str = ""
    backgrounds: str = ""
    mask: MaskMode = MaskMode.AUTO


class ComposeTable(_Table):
    """Canvas (width, height) in pixels, grid (columns, rows)."""

    canvas: tuple[Side, Side] = (600, 600)
    grid: tuple[Places, Places] = (5, 4)
    flips: Flips = Flips.FOREGROUNDS
    blend: Blend = Blend.MASK


class DepthTable(_Table):
    """The depth model; `input` is (width, height) in pixels, each a multiple of 32."""

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


class OutputTable(_Table):
    """Size (width, height) in pixels, formats and qualities of the three images."""

    size: tuple[Side, Side] = (200, 200)
    image: ImageFormat = ImageFormat.JPEG
    image_quality: Quality = 25
    mask: ImageFormat = ImageFormat.PNG
    depth: ImageFormat = ImageFormat.JPEG
    depth_quality: Quality = 60


class ShardsTable(_Table):
    """Samples per shard, batches per slice, samples per batch."""

    size: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 100_000
    slice_batches: Annotated[int, Field(ge=1, le=MAX_SLICE_BATCHES)] = 16
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 32


class ManifestTable(_Table):
    """Where the manifest lives; `${NAME}` is taken from the environment."""

    url: Annotated[str, Field(min_length=1)] = "sqlite:///manifest.sqlite"


class ArtifactsTable(_Table):
    """A folder, relative to the run directory, that every worker and merge can reach."""

    url: Annotated[str, Field(min_length=1)] = "artifacts"


class LeaseTable(_Table):
    """Lease times in seconds, and how many deaths without progress block a slice."""

    seconds: Seconds = 120
    heartbeat_seconds: Seconds = 30
    stall_seconds: Seconds = 600
    max_attempts: Annotated[int, Field(ge=1, le=1_000_000)] = 6

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                f"seconds must be at least 3 heartbeats (found seconds = {self.seconds:g}, "
                f"heartbeat_seconds = {self.heartbeat_seconds:g}): one late beat would lose the slice"
            )
        return self


class FolderTable(_Table):
    """A shared folder (`[manifest] url = "folder:"`): times in seconds; see docs/colab.md."""

    segment_seconds: Seconds = 300
    segment_batches: Annotated[int, Field(ge=1, le=1024)] = 32
    settle_seconds: Annotated[float, Field(ge=0, le=86_400)] = 180
    silent_seconds: Seconds = 3600
    scan_seconds: Seconds = 60

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.silent_seconds < 3 * self.segment_seconds:
            raise ValueError(
                f"silent_seconds must be at least 3 times segment_seconds (found {self.silent_seconds:g} and "
                f"{self.segment_seconds:g}): a worker shows nothing before its segment is full"
            )
        return self


class Settings(_Table):
    """Everything in `shardgen.toml`."""

    sources: SourcesTable = SourcesTable()
    compose: ComposeTable = ComposeTable()
    depth: DepthTable = DepthTable()
    output: OutputTable = OutputTable()
    shards: ShardsTable = ShardsTable()
    manifest: ManifestTable = ManifestTable()
    artifacts: ArtifactsTable = ArtifactsTable()
    lease: LeaseTable = LeaseTable()
    folder: FolderTable = FolderTable()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.depth.encoding is DepthEncoding.RELATIVE and self.output.depth is not ImageFormat.PNG:
            raise ValueError(
                'depth.encoding = "relative" is 16 bit and needs output.depth = "png" '
                f'(found "{self.output.depth}")'
            )
        return self

    @property
    def compose_plan(self) -> Compose:
        """The plan's part of `[compose]`."""
        table = self.compose
        return Compose(canvas=table.canvas, grid=table.grid, flips=table.flips, blend=table.blend)

    @property
    def output_plan(self) -> Output:
        """The plan's part of `[output]`."""
        return Output(**self.output.model_dump())

    @property
    def shards_plan(self) -> Shards:
        """The plan's part of `[shards]`."""
        return Shards(**self.shards.model_dump())

    @property
    def lease_policy(self) -> LeasePolicy:
        """`[lease]` as times."""
        return LeasePolicy(
            duration=timedelta(seconds=self.lease.seconds),
            heartbeat=timedelta(seconds=self.lease.heartbeat_seconds),
            stall=timedelta(seconds=self.lease.stall_seconds),
            max_attempts=self.lease.max_attempts,
        )

    @property
    def folder_policy(self) -> FolderPolicy:
        """`[folder]` as times."""
        return FolderPolicy(
            segment=timedelta(seconds=self.folder.segment_seconds),
            segment_batches=self.folder.segment_batches,
            settle=timedelta(seconds=self.folder.settle_seconds),
            silent=timedelta(seconds=self.folder.silent_seconds),
            scan=timedelta(seconds=self.folder.scan_seconds),
        )

    @property
    def weights_name(self) -> str:
        """The plan's name of `[depth] weights`: a path is called `file`, since a plan holds no paths."""
        known = self.depth.weights in {"nyu", "kitti", "small"} or self.depth.weights.startswith("random:")
        return self.depth.weights if known else "file"

    def manifest_url(self) -> str:
        """`[manifest] url` with its `${NAME}` parts taken from the environment.

        Raises InvalidSettings when a named variable is not set, or when a password is written out.
        """
        return expanded(self.manifest.url, where=f"{FILE_NAME}: [manifest] url")


def settings_differences(plan: Plan, settings: Settings) -> list[str]:
    """Where the settings would give another plan (`compose.grid: 5x4 -> 4x4`); sources are not read."""
    depth = settings.depth
    lines = differences(plan.compose, settings.compose_plan, prefix="compose")
    lines += differences(plan.output, settings.output_plan, prefix="output")
    lines += differences(plan.shards, settings.shards_plan, prefix="shards")
    pairs: list[tuple[str, object, object]] = [
        ("sources.mask", plan.sources.mask, settings.sources.mask),
        ("depth.model", plan.depth.model, depth.model),
        ("depth.weights", plan.depth.weights.name, settings.weights_name),
        ("depth.input", plan.depth.input, depth.input),
        ("depth.upsampling", plan.depth.upsampling, depth.upsampling),
        ("depth.precision", plan.depth.precision, depth.precision),
        ("depth.encoding", plan.depth.encoding, depth.encoding),
    ]
    for name, before, after in pairs:
        lines += differences(before, after, prefix=name)
    return lines


def _other_run(run_dir: Path) -> str:
    """Who leaves out the run directory, or names the folder above it, is told the run directories there."""
    with suppress(OSError):
        if found := sorted(str(path.parent) for path in run_dir.glob(f"*/{FILE_NAME}")):
            more = f" (or {len(found) - 1} others)" if found[1:] else ""
            return f"name the run directory: {found[0]}{more}"
    if run_dir.is_dir() and run_dir != Path():
        return "check the name; a new one: shardgen init NEW_DIR --foregrounds DIR --backgrounds DIR"
    return "shardgen init RUN_DIR --foregrounds DIR --backgrounds DIR"


def read_settings(run_dir: Path) -> Settings:
    """Read `RUN_DIR/shardgen.toml`. Raises InputMissing, or InvalidSettings for all wrong keys at once."""
    path = run_dir / FILE_NAME
    try:
        # Some editors put a mark before the first line.
        text = read_regular(path, limit=MAX_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise InputMissing(
            f"{path}: there is no such file, so this is not a run directory", hint=_other_run(run_dir)
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{path}: not UTF-8 text ({error.reason})", hint="save it as UTF-8") from error
    except IsADirectoryError:
        raise InputMissing(
            f"{path}: a folder, not a file",
            hint="move it away, then: shardgen init RUN_DIR --foregrounds DIR --backgrounds DIR",
        ) from None
    except OSError as error:
        other = "put a text file there, as `shardgen init` writes it"
        raise InputMissing(
            f"{path}: cannot be read ({error.strerror})", hint=how_to_read(error, path, otherwise=other)
        ) from error
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise InvalidSettings(
            f"{path}: not valid TOML: {error}",
            hint=f"correct that line; `shardgen init` in an empty folder writes a commented {FILE_NAME}",
        ) from error
    return parse_settings(document, where=str(path))


def parse_settings(document: Mapping[str, object], *, where: str) -> Settings:
    """Check a parsed TOML document; `where` names it in errors."""
    try:
        # JSON mode is strict about types ("5" is no number) yet knows lists as tuples and strings as enums.
        return Settings.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        problems = list(problems_in(error, Settings().model_dump(mode="json")))
        more = f"; and {len(problems) - _MAX_PROBLEMS:,} more" if len(problems) > _MAX_PROBLEMS else ""
        raise InvalidSettings(
            f"{where}: " + "; ".join(text for text, _ in problems[:_MAX_PROBLEMS]) + more,
            hint=next((hint for _, hint in problems if hint), f"correct {FILE_NAME}, then run it again"),
        ) from error

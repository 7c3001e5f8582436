"""What a plan may hold: checked when one is made, and when one is read that came from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from shardgen.domain.plan import Background, Foreground, MaskFile, Plan

MAX_SIDE = 16_384  # pixels; beyond this one canvas of three float32 planes is over 3 GB
MAX_PLACES = 10_000  # of a grid; the rows of labels.csv are made for all places of a foreground at once
MAX_BATCH = 1024  # samples; a batch lies in memory
MAX_SLICE_BATCHES = 100_000  # a slice's batches are listed
MAX_SHARDS = 1_000_000  # each has a row in the manifest
MAX_SAMPLES = 10**12
MAX_NAME_BYTES = 4096  # Linux opens no longer path
MAX_SOURCE_PIXELS = 10**12
MAX_SOURCE_BYTES = 10**15
INPUT_STEP = 32  # pixels

_SHA256 = re.compile(r"[0-9a-f]{64}")


def plan_problem(plan: Plan) -> str | None:
    """The first thing that no plan of ours holds, as one line; None when there is none."""
    return next(chain(_numbers(plan), _sources(plan)), None)


def is_confined(name: str) -> bool:
    """Whether a relative name with '/' stays below the folder that it is put behind."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _numbers(plan: Plan) -> Iterator[str]:
    compose, depth, output, shards = plan.compose, plan.depth, plan.output, plan.shards
    sides = {"canvas": compose.canvas, "output.size": output.size, "depth.input": depth.input}
    ranges = [(name, side, MAX_SIDE) for name, pair in sides.items() for side in pair]
    ranges += [("grid", count, MAX_PLACES) for count in compose.grid]
    ranges += [
        ("output.image_quality", output.image_quality, 100),
        ("output.depth_quality", output.depth_quality, 100),
        ("shards.batch", shards.batch, MAX_BATCH),
        ("shards.slice_batches", shards.slice_batches, MAX_SLICE_BATCHES),
        ("shards.size", shards.size, MAX_SAMPLES),
        ("depth.weights.bytes", depth.weights.bytes, MAX_SOURCE_BYTES),
        ("depth.weights.decoder_width", depth.weights.decoder_width, MAX_SOURCE_BYTES),
    ]
    yield from (_outside(*one) for one in ranges if not 1 <= one[1] <= one[2])
    if not 0 <= depth.weights.activations <= 2:
        yield _outside("depth.weights.activations", depth.weights.activations, 2)
    if any(side % INPUT_STEP for side in depth.input):
        yield f"depth.input: not multiples of {INPUT_STEP}"
    if plan.place_count > MAX_PLACES:
        yield f"grid: {_short(plan.place_count)} places (at most {MAX_PLACES:,})"
    if not 1 <= plan.samples <= MAX_SAMPLES:
        yield f"{_short(plan.samples)} samples (1 to {MAX_SAMPLES:,})"
    elif shards.size >= 1 and plan.layout.shard_count > MAX_SHARDS:
        yield f"{_short(plan.layout.shard_count)} shards (at most {MAX_SHARDS:,})"
    if not _SHA256.fullmatch(depth.weights.sha256):
        yield "depth.weights.sha256: not a sha256"


def _sources(plan: Plan) -> Iterator[str]:
    for background in plan.sources.backgrounds:
        yield from _photograph(background)
    for foreground in plan.sources.foregrounds:
        yield from _photograph(foreground)
        placed = (foreground.placed_width, foreground.placed_height)
        if any(not 1 <= side <= limit for side, limit in zip(placed, plan.compose.canvas, strict=True)):
            yield f"{foreground.name!r}: does not fit on the canvas"
        if foreground.mask_file is not None:
            yield from _file(foreground.mask_file)


def _photograph(source: Background | Foreground) -> Iterator[str]:
    yield from _file(source)
    if not 1 <= min(source.width, source.height) <= max(source.width, source.height) <= MAX_SOURCE_PIXELS:
        yield f"{source.name!r}: its width or height is impossible"


def _file(source: Background | Foreground | MaskFile) -> Iterator[str]:
    if len(source.name.encode()) > MAX_NAME_BYTES:
        yield f"{source.name[:20]!r}…: a name of more than {MAX_NAME_BYTES:,} bytes"
    if not is_confined(source.name):
        yield f"{source.name!r}: a name that leaves its folder"
    if not 0 <= source.bytes <= MAX_SOURCE_BYTES:
        yield f"{source.name!r}: its size is impossible"
    if not _SHA256.fullmatch(source.sha256):
        yield f"{source.name!r}: its sha256 is none"


def _outside(name: str, value: int, largest: int) -> str:
    return f"{name} is {_short(value)} (1 to {largest:,})"


def _short(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**18 else "an absurd number"

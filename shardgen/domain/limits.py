"""What a plan's envelope may hold: checked when one is made, and when one from elsewhere is read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shardgen.domain.plan import Output, Plan

MAX_SIDE = 16_384  # pixels; beyond this one canvas of three float32 planes is over 3 GB
MAX_BATCH = 1024  # samples; a batch lies in memory
MAX_SLICE_BATCHES = 100_000  # a slice's batches are listed
MAX_SHARDS = 1_000_000  # each has a row in the manifest
MAX_SAMPLES = 10**12
MAX_OUTPUTS = 16
MAX_NAME_BYTES = 4096  # Linux opens no longer path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[a-z][a-z0-9-]{0,31}")
_FULL_SCALES = (255, 65_535, None)


def plan_problem(plan: Plan) -> str | None:
    """The first thing that no plan's envelope of ours holds, as one line; None when there is none."""
    return next(_problems(plan), None)


def is_confined(name: str) -> bool:
    """Whether a relative name with '/' stays below the folder that it is put behind."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def is_sha256(text: str) -> bool:
    """Whether it is 64 hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def outside(name: str, value: int, largest: int) -> str | None:
    """What is wrong with a number that should lie between 1 and `largest`; None when it does."""
    return None if 1 <= value <= largest else f"{name} is {shown_number(value)} (1 to {largest:,})"


def shown_number(value: int) -> str:
    """A number as text of a bounded length."""
    return f"{value:,}" if abs(value) < 10**18 else "an absurd number"


def _problems(plan: Plan) -> Iterator[str]:
    shards = plan.shards
    ranges = [
        ("shards.batch", shards.batch, MAX_BATCH),
        ("shards.slice_batches", shards.slice_batches, MAX_SLICE_BATCHES),
        ("shards.size", shards.size, MAX_SAMPLES),
    ]
    wrong = [problem for one in ranges if (problem := outside(*one))]
    yield from wrong
    samples = sum(block.samples for block in plan.blocks)
    if not 1 <= samples <= MAX_SAMPLES or min(block.samples for block in plan.blocks) < 1:
        yield f"{shown_number(samples)} samples (1 to {MAX_SAMPLES:,})"
    elif not wrong and plan.layout.shard_count > MAX_SHARDS:
        yield f"{shown_number(plan.layout.shard_count)} shards (at most {MAX_SHARDS:,})"
    names = [output.name for output in plan.outputs]
    if len(set(names)) != len(names) or not 1 <= len(names) <= MAX_OUTPUTS:
        yield f"{len(names)} outputs, {len(set(names))} different names (1 to {MAX_OUTPUTS})"
    yield from filter(None, map(_output_problem, plan.outputs))


def _output_problem(output: Output) -> str | None:
    if not _WORD.fullmatch(output.name) or not _WORD.fullmatch(output.suffix):
        return f"output {output.name!r}.{output.suffix!r}: not small letters and digits"
    if (output.size, output.channels, output.full_scale) == (None, 0, None):
        return None  # no image
    if output.channels not in (1, 3, 4) or output.full_scale not in _FULL_SCALES:
        return f"{output.name}: no such image is made"
    sides = output.size or ()  # of an image that has a size of its own in every sample
    return next(filter(None, (outside(f"{output.name}.size", side, MAX_SIDE) for side in sides)), None)

"""What is known of a finished batch: its members, exact sums, dead letters and provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.plan import Output


class DeadLetterReason(StrEnum):
    """Why a sample was given up: a closed list."""

    UNREADABLE = "unreadable"
    COMPOSE = "compose"
    NON_FINITE = "non-finite"
    ENCODE = "encode"
    KILLED_PROCESS = "killed-process"
    HUNG = "hung"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A sample given up. `detail` (text, traceback) stays in the manifest and is never in an artifact."""

    sample: SampleIndex
    reason: DeadLetterReason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSums:
    """Exact integer sums over the pixels of the *encoded* files of one output, decoded again.

    `pixels` counts pixels (not channel values), `sum` and `squares` have one entry per channel in RGB
    order; of what is no image only `images` counts, the files. Python integers: squares of 16-bit values
    overflow 64 bits in a large run.
    """

    images: int
    pixels: int
    sum: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, channels: int) -> OutputSums:
        """The neutral element of `+`."""
        return cls(images=0, pixels=0, sum=(0,) * channels, squares=(0,) * channels)

    def __add__(self, other: OutputSums) -> OutputSums:
        return OutputSums(
            images=self.images + other.images,
            pixels=self.pixels + other.pixels,
            sum=tuple(a + b for a, b in zip(self.sum, other.sum, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )


Sums = dict[str, OutputSums]
"""By the name of the output; every declared output has an entry."""


def total_sums(outputs: Sequence[Output], parts: Iterable[Sums]) -> Sums:
    """The sums of all parts together; the same for any order."""
    totals = {output.name: OutputSums.zero(output.channels) for output in outputs}
    for part in parts:
        totals = {name: total + part[name] for name, total in totals.items()}
    return totals


Provenance = Mapping[str, str | int]
"""What made a batch, in the recipe's words; with the plan it decides the bytes."""
Facts = Mapping[SampleIndex, tuple[int, ...]]
"""What only a sample's pixels tell, such as boxes, in an order that the recipe knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch inside an artifact's `receipt.json`.

    `members_start` and `members_stop` count the artifact's members (half-open); `members_sha256` runs from
    the first local header of the batch to the end of its last member's data (of nothing, if all are dead).
    """

    batch: BatchIndex
    members_start: int
    members_stop: int
    members_sha256: str
    sums: Sums
    dead_letters: tuple[DeadLetter, ...]
    provenance: Provenance
    facts: Facts = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactReceipt:
    """The content of an artifact's `receipt.json`."""

    fingerprint: str
    shard: ShardIndex
    slice: SliceIndex
    fence: Fence
    worker: WorkerId
    batches: tuple[BatchRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRef:
    """A published artifact: its name relative to the artifact folder, its size and sha256."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The manifest's row "this batch is complete". Only a receipt means done."""

    shard: ShardIndex
    slice: SliceIndex
    fence: Fence
    worker: WorkerId
    artifact: ArtifactRef
    record: BatchRecord

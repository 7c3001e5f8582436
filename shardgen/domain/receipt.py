"""What is known of a finished batch: its members, exact sums, dead letters and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Attempt
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

    def __sub__(self, other: OutputSums) -> OutputSums:
        return OutputSums(
            images=self.images - other.images,
            pixels=self.pixels - other.pixels,
            sum=tuple(a - b for a, b in zip(self.sum, other.sum, strict=True)),
            squares=tuple(a - b for a, b in zip(self.squares, other.squares, strict=True)),
        )


Sums = dict[str, OutputSums]
"""By the name of the output; every declared output has an entry."""


def total_sums(outputs: Sequence[Output], parts: Sequence[Sums]) -> Sums:
    """The sums of all parts together; the same for any order."""
    totals = {}
    for output in outputs:
        # Not one after the other with `+`: a merge adds up a million parts.
        sums = [OutputSums.zero(output.channels), *(part[output.name] for part in parts)]
        totals[output.name] = OutputSums(
            images=sum(part.images for part in sums),
            pixels=sum(part.pixels for part in sums),
            sum=tuple(map(sum, zip(*(part.sum for part in sums), strict=True))),
            squares=tuple(map(sum, zip(*(part.squares for part in sums), strict=True))),
        )
    return totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made a batch, in the recipe's words; with the plan it decides the bytes.

    `text` is a JSON object of texts and whole numbers in canonical form: sorted keys, no white space. The
    engine reads `device_model` and `micro_batch` in it, where they are.
    """

    text: str

    @classmethod
    def of(cls, facts: Mapping[str, str | int]) -> Provenance:
        """Write facts down."""
        return cls(text=json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False))

    @property
    def facts(self) -> dict[str, str | int]:
        """What is written down; ValueError for a text that is not canonical."""
        found = json.loads(self.text)
        is_flat = isinstance(found, dict) and all(type(value) in (str, int) for value in found.values())
        if not is_flat or Provenance.of(found) != self:
            raise ValueError("a provenance that is no flat JSON object in canonical form")
        return dict(found)

    @property
    def device_model(self) -> str:
        """The device that computed it; "" where that decides nothing."""
        return str(self.facts.get("device_model", ""))

    @property
    def micro_batch(self) -> int | None:
        """How many samples were computed at once; None where that decides nothing."""
        found = self.facts.get("micro_batch")
        return found if isinstance(found, int) else None


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
class ArtifactReceipt(Attempt):
    """The content of an artifact's `receipt.json`."""

    fingerprint: str
    batches: tuple[BatchRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRef:
    """A published artifact: its name relative to the artifact folder, its size and sha256."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Attempt):
    """The manifest's row "this batch is complete". Only a receipt means done."""

    artifact: ArtifactRef
    record: BatchRecord

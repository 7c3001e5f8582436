"""What is known of a finished batch: its members, exact sums, dead letters and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Attempt


class ImageKind(StrEnum):
    """The three images of a sample, in the order in which they are stored."""

    FGBG = "fgbg"
    MASK = "mask"
    DEPTH = "depth"

    @property
    def channels(self) -> int:
        """3 (RGB) for the composite, 1 (grey) for mask and depth."""
        return 3 if self is ImageKind.FGBG else 1


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
class KindSums:
    """Exact integer sums over the pixels of the *encoded* images of one kind, decoded again.

    `pixels` counts pixels (not channel values), `sum` and `squares` have one entry per channel in RGB
    order. Python integers: squares of 16-bit values overflow 64 bits in a large run.
    """

    images: int
    pixels: int
    sum: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, kind: ImageKind) -> KindSums:
        """The neutral element of `+`."""
        return cls(images=0, pixels=0, sum=(0,) * kind.channels, squares=(0,) * kind.channels)

    def __add__(self, other: KindSums) -> KindSums:
        return KindSums(
            images=self.images + other.images,
            pixels=self.pixels + other.pixels,
            sum=tuple(a + b for a, b in zip(self.sum, other.sum, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )


Sums = dict[ImageKind, KindSums]


def total_sums(parts: Sequence[Sums]) -> Sums:
    """The sums of all parts together; the same for any order."""
    totals = {}
    for kind in ImageKind:
        # Not one after the other with `+`: a merge adds up a million parts.
        sums = [KindSums.zero(kind), *(part[kind] for part in parts)]
        totals[kind] = KindSums(
            images=sum(part.images for part in sums),
            pixels=sum(part.pixels for part in sums),
            sum=tuple(map(sum, zip(*(part.sum for part in sums), strict=True))),
            squares=tuple(map(sum, zip(*(part.squares for part in sums), strict=True))),
        )
    return totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made a batch; with the plan it decides the depth bytes."""

    device_model: str
    tensorflow: str
    opencv: str
    precision: str
    micro_batch: int


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

"""Suspect mode: which sample is to blame when processes die or hang, and in what order to find out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import DeadLetterReason

LONE_DEATHS = 3
"""A sample that died alone so many times in a row is skipped from then on."""


class SuspectState(StrEnum):
    """What is known of a sample that was made alone."""

    SUSPECT = "suspect"
    PASSED = "passed"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectSample:
    """`deaths` counts those in a row while it was made alone; `reason` and `detail` are theirs."""

    sample: SampleIndex
    deaths: int
    state: SuspectState
    reason: DeadLetterReason | None
    detail: str

    @property
    def is_condemned(self) -> bool:
        """Whether it is skipped, and a dead letter once another sample has shown that the machine works."""
        return self.state is SuspectState.SUSPECT and self.deaths >= LONE_DEATHS


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What a slice's earlier attempts left: deaths since the last progress, and the batch they fell on."""

    deaths: int = 0
    batch: BatchIndex | None = None
    samples: Mapping[SampleIndex, SuspectSample] = field(default_factory=dict)

    @property
    def is_suspect(self) -> bool:
        """Whether the slice's batches must be made one at a time, each after a note."""
        return self.deaths > 0 or self.batch is not None

    def condemned_in(self, samples: Collection[int]) -> list[SampleIndex]:
        """The samples that await proof, ascending."""
        return [one for one in sorted(self.samples) if one in samples and self.samples[one].is_condemned]

    def passed_in(self, samples: Collection[int]) -> list[SampleIndex]:
        """The samples that were once made alone and survived it, ascending."""
        return [
            one
            for one in sorted(self.samples)
            if one in samples and self.samples[one].state is SuspectState.PASSED
        ]

    def lone_order(self, samples: range) -> list[SampleIndex]:
        """The samples to make alone, in this order; those given up are left out.

        While a sample awaits proof, those that are likeliest to pass go first: the ones that did before,
        then the farthest, because neighbours share their photographs.
        """
        condemned = self.condemned_in(samples)
        given_up = {*condemned, *(one for one, of in self.samples.items() if of.state is SuspectState.DEAD)}
        left = [SampleIndex(sample) for sample in samples if sample not in given_up]
        if not condemned:
            return left
        passed = set(self.passed_in(samples))
        return sorted(left, key=lambda sample: (sample not in passed, -abs(sample - condemned[0]), sample))


def control_sample(
    suspect: range, *, recorded: Collection[range], pending: Collection[range]
) -> SampleIndex | None:
    """A sample of the slice, outside the suspect batch, to show that the machine works.

    Of the recorded batches if there are any, else of the pending ones; the farthest, because neighbours
    share their photographs. None when the slice has no other batch.
    """
    candidates = [SampleIndex(end) for batch in recorded or pending for end in (batch[0], batch[-1])]
    middle = (suspect[0] + suspect[-1]) / 2
    return max(candidates, key=lambda sample: abs(sample - middle), default=None)

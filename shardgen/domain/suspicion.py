"""Suspect mode: which sample is to blame when processes die or hang, and in what order to find out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.receipt import DeadLetterReason

LONE_DEATHS = 3
"""A sample that died alone so many times in a row is skipped from then on."""


class SuspectState(StrEnum):
    """What is known of a sample that was made alone. PASSED: once; it may have died since."""

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
        return self.state is not SuspectState.DEAD and self.deaths >= LONE_DEATHS


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What a slice's earlier attempts left: deaths since the last progress, and the batch they fell on.

    `dead_letters` are the samples that the slice's receipts have given up.
    """

    deaths: int = 0
    batch: BatchIndex | None = None
    samples: Mapping[SampleIndex, SuspectSample] = field(default_factory=dict)
    dead_letters: frozenset[SampleIndex] = frozenset()

    @property
    def is_suspect(self) -> bool:
        """Whether the slice's batches must be made one at a time, each after a note."""
        return self.deaths > 0 or self.batch is not None

    def condemned_in(self, samples: Collection[int]) -> list[SampleIndex]:
        """The samples that await proof, ascending."""
        return [one for one in sorted(self.samples) if one in samples and self.samples[one].is_condemned]

    def dead_in(self, samples: Collection[int]) -> list[SampleIndex]:
        """The samples that are given up, ascending."""
        return [
            one
            for one in sorted(self.samples)
            if one in samples and self.samples[one].state is SuspectState.DEAD
        ]

    def has_passed(self, sample: SampleIndex) -> bool:
        """Whether it passed, and has not died since."""
        one = self.samples.get(sample)
        return one is not None and one.state is SuspectState.PASSED and not one.deaths

    def has_died(self, sample: SampleIndex) -> bool:
        """Whether its last lone attempts were deaths."""
        one = self.samples.get(sample)
        return one is not None and one.deaths > 0

    def lone_order(self, samples: Collection[SampleIndex]) -> list[SampleIndex]:
        """In which order to make samples alone when none awaits proof.

        First those that died last time: an innocent one passes, and the next blow from outside falls
        elsewhere. Then those that have never passed, as each of them is progress.
        """
        return sorted(samples, key=lambda one: (not self.has_died(one), self.has_passed(one), one))

    def proof_order(
        self,
        samples: Collection[SampleIndex],
        condemned: SampleIndex,
        *,
        kinship: Callable[[SampleIndex], int],
    ) -> list[SampleIndex]:
        """In which order to make samples while one awaits proof: the likeliest to pass first.

        Those that have passed, then those that share the fewest sources with it (`kinship` counts
        them), then the farthest; last those that have died themselves.
        """

        def key(one: SampleIndex) -> tuple[bool, bool, int, int]:
            return self.has_died(one), not self.has_passed(one), kinship(one), -abs(one - condemned)

        return sorted(samples, key=key)

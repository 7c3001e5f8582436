"""Which samples a finished data set lacks or holds twice, and which were begun more than once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of samples."""

    lost: int
    duplicates: int
    redone: int

    @classmethod
    def of(cls, *, planned: Iterable[int], stored: Iterable[int], begun: Iterable[int]) -> Tally:
        """Count; `begun` names a sample once for each time that its making was begun."""
        kept, starts = list(stored), list(begun)
        return cls(
            lost=len(set(planned) - set(kept)),
            duplicates=len(kept) - len(set(kept)),
            redone=len(starts) - len(set(starts)),
        )

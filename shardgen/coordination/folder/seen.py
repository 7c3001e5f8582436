"""What is known of others in a shared folder: workers, and what they have claimed."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardgen.coordination.folder.notices import Beat
from shardgen.domain.claims import Claim
from shardgen.domain.worker import ENDED_STATES


@dataclass(slots=True, kw_only=True)
class SeenWorker:
    """A worker as its own folder shows it; `news` is when something new of it was last seen (monotonic).

    `is_gone`: it was a process of this host, and has ended.
    """

    folder: str
    news: float
    beat: Beat | None = None
    beat_number: int = -1
    names: set[str] = field(default_factory=set)
    is_gone: bool = False
    written_at: float = 0.0  # the latest instant that one of its files tells, by its own clock

    @property
    def has_stopped(self) -> bool:
        """Whether it said that it ended."""
        return self.beat is not None and self.beat.state in ENDED_STATES

    def has_given_up(self, seen: SeenClaim) -> bool:
        """Whether a beat after a claim does not name it: its end was lost, or the claim failed half-way."""
        if self.beat is None or self.beat.claims is None or self.beat_number < seen.number:
            return False
        claim = seen.claim
        return (claim.shard, claim.slice, claim.fence) not in self.beat.claims


@dataclass(slots=True, kw_only=True)
class SeenClaim:
    """A claim and what became of it; `done_at` is when its `done` was first seen (monotonic).

    `number` is its notice's, among those of its worker; -1 while that was not seen.
    """

    claim: Claim
    number: int = -1
    is_ended: bool = False
    has_segments: bool = False
    done_at: float | None = None

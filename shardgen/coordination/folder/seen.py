"""What is known of others in a shared folder: workers, and what they have claimed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from shardgen.coordination.folder.notices import Beat
from shardgen.domain.claims import Claim
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.worker import ENDED_STATES, WorkerIdentity, WorkerRow, WorkerState


def instant(seconds: float) -> datetime:
    """A time that a file tells, in UTC seconds since 1970, whatever nonsense it may be."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), 4e9), UTC)


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

    def row(self) -> WorkerRow | None:
        """What it says of itself, without the slice that it holds; None before its first beat was seen."""
        beat = self.beat
        if beat is None:
            return None
        known = {state.value for state in WorkerState}
        return WorkerRow(
            identity=WorkerIdentity(
                id=WorkerId(beat.worker), host=beat.host, pid=beat.pid, process_started=beat.process_started
            ),
            state=WorkerState(beat.state) if beat.state in known else WorkerState.STARTING,
            shard=None,
            slice=None,
            lease_expires_at=None,
            started_at=instant(beat.started_at),
            last_beat_at=instant(self.written_at),
            last_progress_at=instant(self.written_at),
            samples_done=beat.samples_done,
            samples_per_second=beat.samples_per_second,
            note=beat.note,
        )

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

"""What happens when, drawn from a seed: the same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """Something that goes wrong, or that an operator does in the middle of it."""

    KILL = "kill"
    STALL = "stall"
    FAULT = "fault"
    FULL_DISK = "full-disk"
    CORRUPT = "corrupt"
    REQUEUE = "requeue"
    REBUILD = "rebuild"
    LEAVE = "leave"
    JOIN = "join"
    CUT = "cut"
    RESTART = "restart"


MEAN_GAP_SECONDS = {
    EventKind.KILL: 5.0,
    EventKind.STALL: 10.0,
    EventKind.FAULT: 9.0,
    EventKind.FULL_DISK: 110.0,
    EventKind.CORRUPT: 20.0,
    EventKind.REQUEUE: 20.0,
    EventKind.REBUILD: 55.0,
    EventKind.LEAVE: 25.0,
    EventKind.JOIN: 25.0,
    EventKind.CUT: 4.0,
    EventKind.RESTART: 25.0,
}
ON_A_FILE = tuple(kind for kind in EventKind if kind not in (EventKind.CUT, EventKind.RESTART))
WITH_SESSIONS = (*ON_A_FILE, EventKind.CUT)
IN_A_BUCKET = (
    EventKind.KILL, EventKind.STALL, EventKind.CORRUPT, EventKind.REQUEUE, EventKind.LEAVE, EventKind.JOIN,
    EventKind.CUT, EventKind.RESTART,
)  # fmt: skip
"""No worker's disk matters, and the record cannot be lost without the artifacts."""
WITH_A_SERVER = (*WITH_SESSIONS, EventKind.RESTART)
_MICRO_BATCHES = (1, 2, 4, 8, 32)
_START_UP_SECONDS = 5.0  # before that nobody has a lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`at` seconds after the start; `seed` decides the rest: which victim, how long, which bytes."""

    at: float
    kind: EventKind
    seed: int

    @property
    def random(self) -> random.Random:
        """The event's own source of randomness: the same however the run went before."""
        return random.Random(self.seed)  # noqa: S311


def micro_batch_of(seed: int) -> int:
    """How many images the network takes at once in a run of this seed."""
    return random.Random(f"micro-batch {seed}").choice(_MICRO_BATCHES)  # noqa: S311


def make_schedule(seed: int, seconds: float, kinds: Collection[EventKind] = tuple(EventKind)) -> list[Event]:
    """Every kind at least once, spread over the whole time, in order."""
    source = random.Random(seed)  # noqa: S311
    window = max(1.0, seconds - _START_UP_SECONDS)
    events = []
    for kind, gap in MEAN_GAP_SECONDS.items():
        if kind not in kinds:
            continue
        count = max(1, round(window / gap))
        for place in range(count):
            at = _START_UP_SECONDS + window * (place + source.random()) / count
            events.append(Event(at=at, kind=kind, seed=source.getrandbits(32)))
    return sorted(events, key=lambda event: event.at)

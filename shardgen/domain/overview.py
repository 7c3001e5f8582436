"""The state of a run at one instant, as `status` and `run` show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shardgen.domain.identifiers import ShardIndex, SliceIndex
from shardgen.domain.receipt import DeadLetter, DeadLetterReason, Provenance, Receipt
from shardgen.domain.slice_state import SliceState
from shardgen.domain.worker import WorkerRow

SLICE_WORDS: Mapping[str, str] = {
    "never_leased": "untouched",
    SliceState.LEASED: "in progress",
    SliceState.OPEN: "returned",
    "expired": "abandoned",
    SliceState.DONE: "done",
    SliceState.BLOCKED: "blocked",
}
"""What people are shown of a slice's state, by the names of `SliceCounts`."""


LETTERS_SHOWN = 5
"""How many of the dead letters of each reason are shown with their details."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceCounts:
    """Slices of one shard by state; `expired` are leased ones that another worker may take over."""

    never_leased: int
    open: int
    leased: int
    expired: int
    done: int
    blocked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """One shard's counters."""

    shard: ShardIndex
    stored: int
    dead: int
    slices: SliceCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedSlice:
    """A slice that no worker will lease again until it is requeued."""

    shard: ShardIndex
    slice: SliceIndex
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything `status` needs; reading it costs O(shards + workers)."""

    fingerprint: str
    taken_at: datetime
    shards: tuple[ShardState, ...]
    blocked: tuple[BlockedSlice, ...]
    workers: tuple[WorkerRow, ...]
    mixture: tuple[tuple[Provenance, int], ...]

    @property
    def stored(self) -> int:
        """Samples with a receipt that stores them."""
        return sum(shard.stored for shard in self.shards)

    @property
    def dead(self) -> int:
        """Samples given up."""
        return sum(shard.dead for shard in self.shards)

    @property
    def blocked_total(self) -> int:
        """All blocked slices; `blocked` lists the first few."""
        return sum(shard.slices.blocked for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSlice:
    """One slice as people are shown it: `state` is a key of SLICE_WORDS, `worker` who holds it, else ""."""

    shard: ShardIndex
    slice: SliceIndex
    state: str
    batches: int
    batches_done: int
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterGroup:
    """The dead letters of one reason: how many, and the first of them, with their details."""

    reason: DeadLetterReason
    count: int
    first: tuple[DeadLetter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a person sees who looks closer than at an Overview; reading it costs O(slices + batches).

    `pace` has, for each minute (its start, UTC) in which something was stored, how many samples were, oldest
    first; receipts of which nobody knows when they came are in none. `newest` are the newest receipts, newest
    first.
    """

    slices: tuple[ShownSlice, ...]
    pace: tuple[tuple[datetime, int], ...]
    last_stored_at: datetime | None
    newest: tuple[Receipt, ...]
    dead_letters: tuple[DeadLetterGroup, ...]


NO_DETAILS = Details(slices=(), pace=(), last_stored_at=None, newest=(), dead_letters=())
"""Where nothing is kept that could tell more."""


def count_slices(slices: Iterable[ShownSlice]) -> dict[ShardIndex, SliceCounts]:
    """How many there are of each shard in which state."""
    counts: dict[ShardIndex, Counter[str]] = {}
    for one in slices:
        counts.setdefault(one.shard, Counter())[one.state] += 1
    return {
        shard: SliceCounts(**{name: of_shard[name] for name in SLICE_WORDS})
        for shard, of_shard in counts.items()
    }


def count_by_minute(stored: Iterable[tuple[datetime, int]]) -> tuple[tuple[datetime, int], ...]:
    """The pace, of samples that were stored at these instants."""
    minutes = Counter[int]()
    for at, samples in stored:
        minutes[int(at.timestamp() // 60)] += samples
    return tuple(
        (datetime.fromtimestamp(60 * minute, UTC), minutes[minute])
        for minute in sorted(minutes)
        if minutes[minute]
    )


def group_letters(letters: Iterable[DeadLetter]) -> tuple[DeadLetterGroup, ...]:
    """The dead letters by reason, the most frequent first."""
    groups: dict[DeadLetterReason, list[DeadLetter]] = {}
    for one in letters:
        groups.setdefault(one.reason, []).append(one)
    return in_order(
        DeadLetterGroup(
            reason=reason,
            count=len(found),
            first=tuple(sorted(found, key=lambda one: one.sample)[:LETTERS_SHOWN]),
        )
        for reason, found in groups.items()
    )


def in_order(groups: Iterable[DeadLetterGroup]) -> tuple[DeadLetterGroup, ...]:
    """The most frequent reason first."""
    return tuple(sorted(groups, key=lambda one: (-one.count, one.reason)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderNews:
    """What is special about a shared folder; lags in seconds, as the workers measured them on each other.

    `waiting` batches are made on this machine and not published, `arriving` files are not whole yet;
    `scan_seconds` is from one look to the next.
    """

    lag_seconds: float | None
    slowest_lag_seconds: float | None
    waiting: int
    arriving: int
    duplicated: int
    troubles: tuple[str, ...]
    scan_seconds: float

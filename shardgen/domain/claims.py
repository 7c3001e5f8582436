"""The rules of places that many share without locks: fences, who goes first, which attempt wins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Generic, TypeVar

from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex

GENERATION = 1_000_000
"""Fences of one generation: a requeue starts the next, above every fence granted before it."""

SliceId = tuple[ShardIndex, SliceIndex]
Attempt = TypeVar("Attempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPolicy:
    """How a worker behaves on a shared folder; see `[folder]` in shardgen.toml."""

    segment: timedelta
    segment_batches: int
    settle: timedelta
    silent: timedelta
    scan: timedelta


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's word that it makes a slice; advisory, since others may not see it for a while.

    `worker` is the name of the worker's own folder. `written_at` is its host's clock (UTC seconds since
    1970), which settles ties only; 0.0 where the claim's content did not arrive.
    """

    shard: ShardIndex
    slice: SliceIndex
    fence: Fence
    worker: str
    written_at: float = 0.0

    @property
    def slice_id(self) -> SliceId:
        """The slice that is claimed."""
        return self.shard, self.slice

    @cached_property
    def key(self) -> tuple[str, int, int, int]:
        """What tells a claim from all others: a worker claims a slice once under each fence."""
        return self.worker, self.shard, self.slice, self.fence

    def goes_before(self, other: Claim) -> bool:
        """Whether this one stays when both are seen on a slice; the other one yields."""
        mine = (self.fence, self.written_at, self.worker)
        return mine < (other.fence, other.written_at, other.worker)


def next_fence(seen: Iterable[int], generation: int) -> Fence:
    """The fence of a new claim: above all that are seen of the slice and above its last requeue."""
    return Fence(max((*seen, generation * GENERATION)) + 1)


def undone_up_to(generation: int) -> Fence:
    """The highest fence that a requeue of this generation undoes."""
    return Fence(generation * GENERATION)


def next_generation(seen: Iterable[int], generation: int) -> int:
    """The generation of a new requeue: above that of the last one and of every fence that is seen.

    A fence may be seen before the mark of the requeue that it comes from.
    """
    return max((*(fence // GENERATION for fence in seen), generation)) + 1


def winning_order(fence: int, worker: str, random: str) -> tuple[int, str, str]:
    """Sorts the attempts at a batch: the smallest wins."""
    return -fence, worker, random


class Winners(Generic[Attempt]):
    """Of each batch the attempt that counts, of all that were offered: the same for whoever sees the same.

    `best` chooses among attempts at one batch, given up to which fence none counts, if any has been undone.
    """

    def __init__(
        self,
        *,
        batch: Callable[[Attempt], BatchIndex],
        best: Callable[[Sequence[Attempt], Fence | None], Attempt | None],
    ) -> None:
        self.of: dict[BatchIndex, Attempt] = {}
        self.undone: dict[BatchIndex, Fence] = {}
        self._batch = batch
        self._best = best

    def undo(self, batch: BatchIndex, up_to: Fence) -> None:
        """Let attempts up to this fence not count; what was offered must be offered `again`."""
        self.undone[batch] = max(up_to, self.undone.get(batch, up_to))

    def offer(self, attempt: Attempt) -> bool:
        """Let an attempt compete; returns whether it is its batch's winner from now on."""
        return self._compete(attempt, self.of)

    def again(self, attempts: Iterable[Attempt]) -> None:
        """Forget all winners, and let these compete; another thread may be reading meanwhile."""
        winners: dict[BatchIndex, Attempt] = {}
        for attempt in attempts:
            self._compete(attempt, winners)
        self.of = winners

    def _compete(self, attempt: Attempt, winners: dict[BatchIndex, Attempt]) -> bool:
        batch = self._batch(attempt)
        holder = winners.get(batch)
        both = [attempt] if holder is None else [holder, attempt]
        best = self._best(both, self.undone.get(batch))
        if best is None or best is holder:
            return False
        winners[batch] = best
        return True


def counts(fence: int, undone: int | None) -> bool:
    """Whether an attempt counts, when a requeue has undone those up to the fence `undone`; None: none has."""
    return undone is None or fence > undone


def picking_order(worker: str, slice_id: SliceId) -> bytes:
    """Sorts slices for one worker: each has an order of its own, so that few meet on one slice."""
    return hashlib.sha256(f"{worker}/{slice_id[0]}/{slice_id[1]}".encode()).digest()

"""A lease: one worker's right to work on one slice, until it is taken over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from shardgen.domain.identifiers import Fence, ShardIndex, SliceIndex, WorkerId

WAIT_LIMIT = timedelta(minutes=15)  # a look at something slow, or the writing of one file in a shared folder
JUDGED_AFTER = 640
"""Finished samples before their dead letters are judged: a bad start says little of the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Whose work something is: a lease says so, and later the receipts of what was made under it."""

    shard: ShardIndex
    slice: SliceIndex
    worker: WorkerId
    fence: Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(Attempt):
    """Every later write names slice, worker and fence in the statement that makes the change."""

    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """How long leases last, how often they are renewed, and when a worker counts as stalled.

    Nothing is leased while more than `max_dead_share` per cent of the finished samples are dead letters.
    """

    duration: timedelta
    heartbeat: timedelta
    stall: timedelta
    max_attempts: int
    max_dead_share: float = 100.0

    @property
    def wait(self) -> timedelta:
        """How long a worker that waits may take from one look to the next; it looks at every heartbeat."""
        return max(WAIT_LIMIT, self.stall, 2 * self.heartbeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLease:
    """Nothing to lease now: slices that others hold (wait for them), and blocked ones (nobody may)."""

    leased: int
    blocked: int

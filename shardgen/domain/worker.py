"""A worker process: who it is, what it says of itself, and what others conclude from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from shardgen.domain.identifiers import ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import LeasePolicy


class WorkerState(StrEnum):
    """What a worker's row says. HUNG is noted by its own watchdog, DEAD by another process of its host."""

    STARTING = "starting"
    WORKING = "working"
    WAITING = "waiting"
    SUSPECT = "suspect"
    HUNG = "hung"
    DEAD = "dead"
    STOPPED = "stopped"


class ShownState(StrEnum):
    """What `status` shows."""

    STARTING = "starting"
    WORKING = "working"
    WAITING = "waiting"
    SUSPECT = "suspect"
    STALLED = "stalled"
    EXPIRED = "expired"
    DEAD = "dead"
    STOPPED = "stopped"


WORKER_WORDS: Mapping[ShownState, str] = {
    ShownState.STARTING: "starting",
    ShownState.WORKING: "working",
    ShownState.WAITING: "waiting",
    ShownState.SUSPECT: "careful",
    ShownState.STALLED: "stalled",
    ShownState.EXPIRED: "silent",
    ShownState.DEAD: "dead",
    ShownState.STOPPED: "stopped",
}
"""What people are shown of a worker's state."""
ENDED_STATES = frozenset({WorkerState.HUNG, WorkerState.DEAD, WorkerState.STOPPED})
LISTED_AFTER_END = timedelta(hours=1)
START_LIMIT = timedelta(minutes=15)  # importing, reading sources and the first trace, without a lease


def file_name(worker: str) -> str:
    """A worker's id as a name of files and keys: without what file systems, stores and shells trip over."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", worker)[-100:]


def log_path(folder: Path, worker: str) -> Path:
    """Where the worker of that id keeps its log in a folder of logs."""
    return folder / f"{file_name(worker)}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """One process. `host` is boot id, pid namespace and host name: containers share names and pids."""

    id: WorkerId
    host: str
    pid: int
    process_started: float
    device: str = ""

    @property
    def node(self) -> str:
        """Its machine's host name, which another machine may have, too; only `host` tells them apart."""
        return self.host.split("/", 2)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker says of itself at each beat; the rate is samples per second over a recent window."""

    state: WorkerState
    samples_done: int = 0
    samples_per_second: float = 0.0
    progressed: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker as the manifest knows it; shard and slice are those of the lease that it holds."""

    identity: WorkerIdentity
    state: WorkerState
    shard: ShardIndex | None
    slice: SliceIndex | None
    lease_expires_at: datetime | None
    started_at: datetime
    last_beat_at: datetime
    last_progress_at: datetime
    samples_done: int
    samples_per_second: float
    note: str

    def holds_expired_lease(self, now: datetime) -> bool:
        """Whether another worker may take its slice over."""
        return self.lease_expires_at is not None and now >= self.lease_expires_at

    def shown_state(self, now: datetime, policy: LeasePolicy, *, gone: bool) -> ShownState:
        """What a person should be told; `gone` says that its process is known to have ended."""
        if self.state is WorkerState.STOPPED:
            return ShownState.STOPPED
        if gone or self.state in ENDED_STATES:
            return ShownState.DEAD
        if self.holds_expired_lease(now) or now - self.last_beat_at >= policy.duration:
            return ShownState.EXPIRED
        limit = policy.stall
        if self.state is WorkerState.STARTING:
            limit = START_LIMIT
        elif self.state is WorkerState.WAITING:
            limit = policy.wait
        if now - self.last_progress_at >= limit:
            return ShownState.STALLED
        return ShownState(self.state.value)

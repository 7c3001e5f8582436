"""Silence: worker processes that hang so badly that not even their own watchdog runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from shardgen.domain.lease import LeasePolicy
from shardgen.domain.worker import ENDED_STATES, START_LIMIT, WorkerRow, WorkerState
from shardgen.launch.launcher import ProcessId

_ENDING_SECONDS = 60.0  # from the word "stopped" to the process's end
_FROZEN_SECONDS = 10.0  # between two looks: longer, and nobody on this machine can be blamed for silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A process that should be ended; `row` is what it last said, if it ever did."""

    process: ProcessId
    seconds: float
    row: WorkerRow | None


@dataclass(slots=True)
class _Watched:
    sign: tuple[WorkerState, datetime] | None
    since: float


class SilenceWatch:
    """Watches worker processes. Its clock stands still while this machine sleeps."""

    def __init__(self, policy: LeasePolicy, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._monotonic = monotonic
        self._looked = monotonic()
        self._watched: dict[ProcessId, _Watched] = {}

    def stay_awake(self) -> None:
        """Say that `run` is not standing still, but waits for the manifest."""
        self._looked = self._monotonic()

    def silent(self, processes: Iterable[ProcessId], rows: Iterable[WorkerRow]) -> list[Silence]:
        """Those of these processes that have given no sign for too long; to be asked every few seconds."""
        now = self._monotonic()
        if now - self._looked > _FROZEN_SECONDS:
            for watched in self._watched.values():
                watched.since = now
        self._looked = now
        by_process = {ProcessId(row.identity.host, row.identity.pid): row for row in rows}
        self._watched = {one: self._watched.get(one) or _Watched(None, now) for one in processes}
        found = []
        for process, watched in self._watched.items():
            row = by_process.get(process)
            sign = None if row is None else (row.state, row.last_beat_at)
            if sign != watched.sign:
                watched.sign, watched.since = sign, now
            elif now - watched.since > self._limit_seconds(row):
                found.append(Silence(process=process, seconds=now - watched.since, row=row))
        return found

    def _limit_seconds(self, row: WorkerRow | None) -> float:
        if row is None or row.state is WorkerState.STARTING:
            return START_LIMIT.total_seconds()
        if row.state in ENDED_STATES:
            return _ENDING_SECONDS
        return (self._policy.stall + self._policy.heartbeat).total_seconds()

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.worker import START_LIMIT, WorkerIdentity, WorkerRow, WorkerState
from shardgen.launch.local import Vigil

POLICY = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=6,
)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.vigil = Vigil("here", POLICY, monotonic=lambda: self.now)

    def look(self, *rows: WorkerRow, pids: tuple[int, ...] = (7,)) -> list[int]:
        return [silence.pid for silence in self.vigil.silent(pids, rows)]

    def silence(self, seconds: float, *rows: WorkerRow) -> list[int]:
        """Look every second, as `run` does, while nothing changes."""
        found: list[int] = []
        for _ in range(int(seconds)):
            self.now += 1
            found = self.look(*rows)
        return found


def row(
    *, state: WorkerState = WorkerState.WORKING, beat: float = 0.0, host: str = "here", pid: int = 7
) -> WorkerRow:
    return WorkerRow(
        identity=WorkerIdentity(id=WorkerId("w"), host=host, pid=pid, process_started=1.0),
        state=state,
        shard=None,
        slice=None,
        lease_expires_at=None,
        started_at=EPOCH,
        last_beat_at=EPOCH + timedelta(seconds=beat),
        last_progress_at=EPOCH,
        samples_done=0,
        samples_per_second=0.0,
        note="",
    )


@pytest.mark.parametrize(
    ("shown", "limit"),
    [
        ([row()], 630),
        ([row(state=WorkerState.STARTING)], START_LIMIT.total_seconds()),
        ([row(state=WorkerState.STOPPED)], 60),
        ([], START_LIMIT.total_seconds()),
        ([row(host="elsewhere")], START_LIMIT.total_seconds()),
    ],
    ids=["working", "starting", "said that it stopped", "never registered", "another host's row"],
)
def test_a_silent_process_is_found_at_its_limit(shown: list[WorkerRow], limit: float) -> None:
    world = World()
    assert world.look(*shown) == []
    assert world.silence(limit, *shown) == []
    assert world.silence(1, *shown) == [7]


def test_every_beat_starts_the_silence_anew() -> None:
    world = World()
    for beat in range(5):
        assert world.silence(600, row(beat=beat)) == []
    assert world.silence(32, row(beat=4)) == [7]


def test_nobody_is_blamed_for_a_machine_that_stood_still() -> None:
    world = World()
    assert world.silence(600, row()) == []
    world.now += 5000
    assert world.look(row()) == []
    assert world.silence(630, row()) == []
    assert world.silence(1, row()) == [7]


def test_a_new_process_begins_afresh() -> None:
    world = World()
    assert world.silence(600, row()) == []
    assert world.look(pids=()) == []
    assert world.silence(600, row()) == []

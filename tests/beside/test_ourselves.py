"""Our own lines of the two tables in docs/benchmarks.md, measured as the benchmarks do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.beside.data_sets import SAMPLES, ShardgenSmallBatches
from benchmarks.beside.peers import SHARDGEN, find
from benchmarks.beside.watching import Ending
from benchmarks.kill_resume import measure
from benchmarks.queues import QUEUES, Bench, Takeover

pytestmark = pytest.mark.slow
PATIENCE_SECONDS = 300.0


def bench(folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> Bench:
    found = find(SHARDGEN, None)
    assert found is not None
    return Bench(QUEUES[0], found, folder, patience_seconds)


def test_a_killed_worker_costs_no_sample_and_at_most_three_batches(tmp_path: Path) -> None:
    data_set = ShardgenSmallBatches(tmp_path / "run", Path(sys.executable))
    outcome = measure(data_set, PATIENCE_SECONDS)
    assert outcome.first == outcome.again == Ending(exit_code=0)
    assert (outcome.after_first.lost, outcome.in_the_end.lost) == (0, 0)
    assert (outcome.half_written, outcome.in_the_end.duplicates) == (0, 0)
    assert 0 < outcome.in_the_end.redone <= 3 * data_set.batch
    assert len(set(data_set.begun())) == SAMPLES


def test_the_piece_of_a_killed_consumer_is_done_again(tmp_path: Path) -> None:
    assert bench(tmp_path).killed() == "done again"


@pytest.mark.parametrize("first_finishes_last", [True, False])
def test_a_resumed_consumers_late_completion_is_refused(tmp_path: Path, *, first_finishes_last: bool) -> None:
    takeover = bench(tmp_path).paused(first_finishes_last=first_finishes_last)
    assert takeover == Takeover(how="another takes it by itself", first_told="refused", other_told="accepted")


def test_nothing_is_taken_from_a_consumer_that_works(tmp_path: Path) -> None:
    assert not bench(tmp_path, patience_seconds=0.5).taken_from_the_living()


def test_nothing_is_handed_out_twice_among_processes(tmp_path: Path) -> None:
    race = bench(tmp_path).race(pieces=60, processes=3)
    assert (race.twice, race.finished, len(race.begun)) == (0, 60, 60)
    assert str(race).startswith("0 of 60")

from __future__ import annotations

import math

import pytest

from benchmarks.makespan import GOAL, Scene, Setting, ideal_makespan, policy_of, simulate
from tests.plans import make_plan

# 1,200 samples in 5 shards: 300 batches of a minute or so, in 75 slices of 4.
PLAN = make_plan(backgrounds=6, foregrounds=10, shard_size=240, batch=4, slice_batches=4)


# With these seeds the dying worker dies after four fifths of the run: a slice that came free late would show.
@pytest.mark.parametrize(
    ("scene", "seed"),
    [
        (Scene(crew=1, one_joins=True), 1),
        (Scene(crew=4, dying=1), 5),
        (Scene(crew=4, dying=1, one_joins=True), 6),
    ],
    ids=str,
)
def test_workers_that_come_and_go_take_hardly_longer_than_they_must(scene: Scene, seed: int) -> None:
    setting = Setting(plan=PLAN, policy=policy_of(120, 30), batch_seconds=60, seed=seed)
    outcome = simulate(scene, setting)
    assert 1 <= outcome.ratio <= GOAL, outcome
    assert (outcome.lost > 0) == (scene.dying > 0)


def test_the_same_seed_gives_the_same_run() -> None:
    plan = make_plan(backgrounds=2, foregrounds=2, shard_size=40, batch=4, slice_batches=2)
    setting = Setting(plan=plan, policy=policy_of(120, 30), batch_seconds=5, seed=1)
    scene = Scene(crew=3, dying=1)
    assert simulate(scene, setting) == simulate(scene, setting)


@pytest.mark.parametrize(
    ("presence", "expected"),
    [
        ([(0, math.inf), (0, math.inf)], 6),
        ([(0, math.inf), (0, 2)], 10),
        ([(0, math.inf), (0, 1), (9, math.inf)], 10),
        ([(0, math.inf), (20, math.inf)], 12),
        ([(0, 4), (6, math.inf)], 14),
    ],
)
def test_the_ideal_counts_the_seconds_of_those_who_are_there(
    presence: list[tuple[float, float]], expected: float
) -> None:
    assert ideal_makespan(presence, 12) == expected

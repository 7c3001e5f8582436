from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardgen.domain.claims import GENERATION
from tests.shared_folder.double import Faults
from tests.shared_folder.playing import MEMORY, Event, World

HISTORIES = 120
NO_FAULTS = Faults()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@cache
def undisturbed() -> str:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        world = World(seed=0, faults=NO_FAULTS, folder=Path(name))
        world.start_worker(world.add_machine())
        world.play()
        assert world.duplicated == 0
        return world.merged()[0]


def share(most: float) -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, most / 4, most])


FAULTS = st.builds(
    Faults,
    median_lag=st.sampled_from([2.0, 60.0, 300.0]),
    stuck=share(0.1),
    lost=share(0.2),
    late_content=share(0.5),
    cut=share(0.2),
    doubled=share(0.5),
    failing_calls=share(0.05),
    stale_listings=share(0.3),
)
EVENTS = st.lists(
    st.builds(
        Event,
        after=st.sampled_from([30.0, 130.0, 250.0, 400.0, 620.0, 900.0, 1500.0, 4000.0]),
        kind=st.sampled_from(["join", "kill", "lose", "restart", "requeue"]),
        which=st.integers(0, 7),
    ),
    max_size=8,
)


@given(
    seed=st.integers(0, 2**32),
    faults=FAULTS,
    events=EVENTS,
    workers=st.integers(1, 3),
    is_salted=st.booleans(),
)
@settings(
    max_examples=HISTORIES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_history_ends_in_the_same_whole_result(
    *, seed: int, faults: Faults, events: list[Event], workers: int, is_salted: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        world = World(seed=seed, faults=faults, folder=Path(name), is_salted=is_salted)
        for _ in range(workers):
            world.start_worker(world.add_machine())
        world.plan_events(events)
        world.play()
        world.finish()
        (first, view), (second, _) = world.merged(), world.merged()
        assert first == second
        if not is_salted:
            assert first == undisturbed()
        for batch, generation in world.requeued.items():
            assert view.winners[batch].fence > generation * GENERATION, "an undone attempt counts"

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import Chaos, ChaosOptions
from tests.chaos.schedule import EventKind, make_schedule
from tests.chaos.worker import UNPUBLISHED


def test_the_same_seed_gives_the_same_schedule_with_every_kind_of_misfortune() -> None:
    assert make_schedule(5, 120) == make_schedule(5, 120)
    assert make_schedule(5, 120) != make_schedule(6, 120)
    assert {event.kind for event in make_schedule(5, 60)} == set(EventKind)


@pytest.mark.slow
def test_two_minutes_of_chaos_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ChaosOptions(seconds=120, seed=1, samples=3200)
    figures = Chaos(tmp_path, options, say=lambda _line: None).run()
    with capsys.disabled():
        print(f"\n{figures.table()}")
    assert figures.violations == []
    assert figures.sha256_equal
    assert figures.lost == 0


@pytest.mark.slow
def test_the_chaos_run_notices_receipts_without_their_artifact(tmp_path: Path) -> None:
    options = ChaosOptions(seconds=5, seed=1, samples=800, broken=UNPUBLISHED)
    figures = Chaos(tmp_path, options, say=lambda _line: None).run(schedule=[])
    assert any("nobody damaged that" in one for one in figures.violations)

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.bucket_backdoor import bucket_on
from tests.chaos.figures import Figures
from tests.chaos.harness import Chaos, ChaosOptions
from tests.chaos.schedule import (
    IN_A_BUCKET,
    ON_A_FILE,
    WITH_A_SERVER,
    Event,
    EventKind,
    make_schedule,
    micro_batch_of,
)
from tests.chaos.worker import UNPUBLISHED, VARIABLE
from tests.postgres import Server, new_schema


def test_the_same_seed_gives_the_same_schedule_with_every_kind_of_misfortune() -> None:
    assert make_schedule(5, 120) == make_schedule(5, 120)
    assert make_schedule(5, 120) != make_schedule(6, 120)
    assert {event.kind for event in make_schedule(5, 60)} == set(EventKind)
    assert {event.kind for event in make_schedule(5, 60, ON_A_FILE)} == set(ON_A_FILE)
    assert micro_batch_of(5) == micro_batch_of(5)
    assert {micro_batch_of(seed) for seed in range(40)} == {1, 2, 4, 8, 32}


def check(figures: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{figures.table()}")
    assert figures.violations == []
    assert figures.sha256_equal
    assert figures.lost == 0
    assert figures.counts["kills"] > 2


def hurried(options: ChaosOptions, kinds: Collection[EventKind], *, seconds: float) -> list[Event]:
    """All that would go wrong in so many seconds, in the shorter time of the options."""
    schedule = make_schedule(options.seed, seconds, kinds)
    return [replace(event, at=event.at * options.seconds / seconds) for event in schedule]


@pytest.mark.slow
def test_a_minute_of_chaos_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ChaosOptions(seconds=35, seed=13, samples=960)
    schedule = hurried(options, ON_A_FILE, seconds=60)
    figures = Chaos(tmp_path, options, say=lambda _line: None).run(schedule)
    check(figures, capsys)


@pytest.mark.slow
def test_a_server_that_cuts_sessions_and_restarts_loses_nothing(
    tmp_path: Path,
    postgres_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with new_schema(postgres_server.url) as url:
        monkeypatch.setenv(VARIABLE, url)  # the run sets it, too; this takes it back at the end
        options = ChaosOptions(seconds=30, seed=6, samples=960, manifest=url, server=postgres_server)
        schedule = hurried(options, WITH_A_SERVER, seconds=45)
        figures = Chaos(tmp_path, options, say=lambda _line: None).run(schedule)
    check(figures, capsys)
    assert figures.counts["sessions ended"] > 0
    assert figures.counts["restarts fast"] + figures.counts["restarts immediate"] > 0


@pytest.mark.slow
def test_a_bucket_behind_a_wire_that_is_cut_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with bucket_on("ministack") as bucket:
        for name, value in {**bucket.environment, VARIABLE: bucket.url}.items():
            monkeypatch.setenv(name, value)  # the run sets them, too; this takes them back at the end
        options = ChaosOptions(seconds=20, seed=15, samples=640, manifest=bucket.url, bucket=bucket)
        schedule = hurried(options, IN_A_BUCKET, seconds=30)
        figures = Chaos(tmp_path, options, say=lambda _line: None).run(schedule)
    check(figures, capsys)
    assert figures.counts["PUTs cut"] > 0


@pytest.mark.slow
def test_the_chaos_run_notices_receipts_without_their_artifact(tmp_path: Path) -> None:
    options = ChaosOptions(seconds=5, seed=1, samples=320, broken=UNPUBLISHED)
    figures = Chaos(tmp_path, options, say=lambda _line: None).run(schedule=[])
    assert any("nobody damaged that" in one for one in figures.violations)

from __future__ import annotations

import pytest

from shardgen.domain.progress import BYTES, Progress, clock


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (
            Progress(done=512, total=2000, rate=14.4, workers=3),
            "25 %  512/2,000 samples · 14.4/s · 1:43 left · 3 workers",
        ),
        (
            Progress(done=512, total=2000, rate=14.4, dead=1, workers=1, own=64),
            "25 %  512/2,000 samples · 14.4/s · 1:43 left · 1 dead letter · 1 worker · 64 by this one",
        ),
        (Progress(done=0, total=1), "0 %  0/1 sample"),
        (Progress(done=7, total=None, thing="file", rate=0.25), "7 files · 0.25/s"),
        (Progress(done=199, total=200, workers=0), "99 %  199/200 samples · no workers"),
        (Progress(done=1999, total=2000, rate=1234.5), "99 %  1,999/2,000 samples · 1,234/s · 0:00 left"),
        (Progress(done=2000, total=2000, rate=14.4, workers=3), "100 %  2,000/2,000 samples · 14.4/s"),
        (Progress(done=0, total=0), "100 %  0/0 samples"),
        (
            Progress(done=45_000_000, total=173_000_000, thing=BYTES, rate=4.2e6),
            "26 %  45.0/173.0 MB · 4.2 MB/s · 0:30 left",
        ),
        (Progress(done=1500, total=None, thing=BYTES), "1.5 kB"),
    ],
)
def test_the_line_says_what_is_known_and_nothing_else(progress: Progress, line: str) -> None:
    assert progress.line() == line


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0:00"),
        (103, "1:43"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (7510, "2:05:10"),
        (86399, "23:59:59"),
        (86400, "1 d 0 h"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_time_is_shown_as_a_clock_does_and_by_days_from_a_day_on(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_line_is_never_wider_than_the_terminal_and_loses_its_right_end_first() -> None:
    progress = Progress(done=512, total=2000, rate=14.4, dead=2, workers=3, own=64)
    whole = progress.line().split(" · ")
    seen = set()
    for width in range(100):
        line = progress.line(width=width)
        assert len(line) <= width
        seen.add(line)
        if width >= len(whole[0]):
            assert line.split(" · ") == whole[: len(line.split(" · "))]
    assert {progress.line(), "25 %", whole[0]} <= seen


@pytest.mark.parametrize("thing", ["sample", BYTES])
def test_aligned_numbers_keep_their_places_whatever_they_are(thing: str) -> None:
    total = 816_080
    ends = set[tuple[int, ...]]()
    for done, rate in ((0, None), (7, 0.25), (81_000, 99.94), (816_079, 1234.0), (816_080, 3.0)):
        line = Progress(done=done, total=total, thing=thing, rate=rate, workers=3).line(is_aligned=True)
        ends.add(tuple(line.find(mark) for mark in (" %", "/", "/s", " left", "3 workers")))
    for places in zip(*ends, strict=True):
        assert len(set(places) - {-1}) == 1, ends
    assert len(ends) > 1

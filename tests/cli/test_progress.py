from __future__ import annotations

import io
import os
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from shardgen.cli import progress, render
from shardgen.cli.progress import Line, Way, counting, downloading, way
from shardgen.domain.progress import Progress
from shardgen.machine.notebooks import is_notebook

NOTEBOOKS = ("COLAB_RELEASE_TAG", "JPY_PARENT_PID")


class Screen:
    """A terminal whose other end is read here; of so many columns."""

    def __init__(self, columns: int = 80) -> None:
        self._master, slave = os.openpty()
        self.stream = io.TextIOWrapper(io.FileIO(slave, "w"), encoding="utf-8", write_through=True)
        os.set_blocking(self._master, False)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        termios.tcsetwinsize(self.stream.fileno(), (24, columns))

    def read(self) -> str:
        self.stream.flush()
        found = b""
        try:
            while piece := os.read(self._master, 65536):
                found += piece
        except BlockingIOError:
            pass
        return found.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def on_screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Screen]]:
    """Lets stderr be a terminal, in a notebook or not, on which nothing moves by itself."""
    screens: list[Screen] = []

    def put(columns: int = 80, *, notebook: bool = False) -> Screen:
        for name in NOTEBOOKS:
            monkeypatch.delenv(name, raising=False)
        if notebook:
            monkeypatch.setenv("JPY_PARENT_PID", "1")
        monkeypatch.setenv("TERM", "xterm")
        screens.append(Screen(columns))
        monkeypatch.setattr(sys, "stderr", screens[-1].stream)
        monkeypatch.setattr(Line, "_move", lambda _line: None)
        return screens[-1]

    yield put
    for screen in screens:
        screen.close()


def frames(written: str) -> list[str]:
    """What was drawn over itself, each time as it stood there."""
    return [frame for frame in re.split(r"\r|\x1b\[K", written) if frame.strip()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_known_by_its_kernel_or_by_colab(name: str) -> None:
    assert is_notebook({name: "1"})
    assert not is_notebook({name: "", "OTHER": "1"})


def test_how_progress_is_shown_depends_on_where_stderr_leads(
    monkeypatch: pytest.MonkeyPatch, on_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    on_screen()
    assert way() is Way.DRAWN
    monkeypatch.setenv("TERM", "dumb")
    assert way() is Way.RETURNED
    on_screen(notebook=True)
    assert way() is Way.RETURNED
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        monkeypatch.setattr(sys, "stderr", log)
        assert way() is Way.PRINTED


@pytest.mark.parametrize("columns", [50, 80, 120])
@pytest.mark.parametrize("label", ["", "verifying"])
def test_nothing_on_a_terminal_changes_its_place_while_the_numbers_grow(
    on_screen: Callable[..., Screen], columns: int, label: str
) -> None:
    screen = on_screen(columns)
    with Line() as line:
        for done, rate in ((0, None), (9, 0.25), (512, 14.4), (1999, 99.94), (2000, 120.0)):
            line.show(Progress(done=done, total=2000, rate=rate, workers=None if label else 3), label=label)
            line.draw()
        shown = frames(screen.read())
    assert len(shown) == 5
    assert max(map(len, shown)) < columns
    for mark in (" %", "/2,000 samples"):
        places = {frame.find(mark) for frame in shown}
        assert len(places) == 1, (mark, shown)
        assert places != {-1}, (mark, shown)
    bars = [re.search("[━─]+", frame) for frame in shown]
    assert len({bar and bar.span() for bar in bars}) == 1, shown
    assert (bars[0] is not None) == (columns > 60)
    assert ("verifying" in shown[0]) == bool(label)


def test_at_the_end_a_terminal_shows_nothing_or_the_last_state_as_plain_text(
    on_screen: Callable[..., Screen],
) -> None:
    for keeps_last, last in ((False, ""), (True, "25 %  512/2,000 samples\n")):
        screen = on_screen()
        with Line(keeps_last=keeps_last) as line:
            line.show(Progress(done=512, total=2000))
            line.draw()
        written = screen.read().replace("\r\n", "\n")
        assert written.rpartition("\x1b[K")[2] == last


def test_what_cannot_be_counted_is_said_with_a_sign_that_turns(on_screen: Callable[..., Screen]) -> None:
    screen = on_screen()
    with Line() as line:
        line.doing("loading the network, up to a minute")
        for frame in range(3):
            line._frame = frame
            line.draw()
        shown = frames(screen.read())
    assert len({frame[0] for frame in shown}) == 3
    assert {frame[2:] for frame in shown} == {"loading the network, up to a minute  0:00"}


def test_a_message_is_put_above_the_line(on_screen: Callable[..., Screen]) -> None:
    screen = on_screen()
    with Line() as line:
        line.show(Progress(done=1, total=2))
        line.draw()
        render.say("[worker-0] ready \x1b[2J")
        written = screen.read()
    assert "\x1b[K\r\x1b[K[worker-0] ready \\x1b[2J\r\n" in written
    assert "1/2 samples" in written.rpartition("\n")[2]
    render.say("after it")
    assert screen.read().endswith("after it\r\n")


def test_a_notebook_gets_carriage_returns_and_nothing_else(on_screen: Callable[..., Screen]) -> None:
    screen = on_screen(notebook=True)
    with Line(keeps_last=True) as line:
        line.doing("loading the network, up to a minute")
        line.draw()
        line.show(Progress(done=9, total=2000, rate=1.0, workers=3))
        line.draw()
        line.draw()
        render.say("[worker-0] said something")
        line.show(Progress(done=2000, total=2000))
        line.draw()
    written = screen.read().replace("\r\n", "\n")
    assert "\x1b" not in written
    assert [frame.strip() for frame in frames(written)] == [
        "loading the network, up to a minute  0:00",
        "0 %  9/2,000 samples · 1.0/s · 33:11 left · 3 workers",
        "[worker-0] said something",
        "100 %  2,000/2,000 samples",
        "100 %  2,000/2,000 samples",
    ]
    assert written.endswith("\r100 %  2,000/2,000 samples\n")


def test_a_terminal_without_these_letters_gets_others(on_screen: Callable[..., Screen]) -> None:
    screen = on_screen()
    screen.stream.reconfigure(encoding="ascii")
    with Line() as line:
        line.show(Progress(done=1000, total=2000, rate=10.0))
        line.draw()
        shown = frames(screen.read())[0]
    assert shown.isascii()
    assert "####" in shown
    assert re.search(r", +10\.0/s, +1:40 left", shown), shown


def log(monkeypatch: pytest.MonkeyPatch, path: Path) -> TextIO:
    stream = path.open("w", encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_where_there_is_no_terminal_a_line_is_printed_now_and_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with log(monkeypatch, tmp_path / "log"), Line(keeps_last=True) as line:
        line.doing("checking the sources")
        line.doing("checking the sources")
        show = line.counter("exporting", "sample")
        show(5000, 6000)
        now += 29.9
        show(5470, 6000)
        now += 0.1
        show(5480, 6000)
        now += 10
        show(6000, 6000)
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == [
        "checking the sources",
        "exporting: 91 %  5,480/6,000 samples · 16.0/s · 0:32 left",
        "exporting: 100 %  6,000/6,000 samples · 25.0/s",
    ]


def test_a_download_without_a_terminal_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with log(monkeypatch, tmp_path / "log"), progress.doing("looking", is_printed=False) as line:
        on_download = downloading(line, "the nyu weights")
        on_download(10, 173_000_000)
        on_download(20, 173_000_000)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "fetching the nyu weights, 173.0 MB\n"


def test_the_rate_counts_what_came_since_the_first_call(
    monkeypatch: pytest.MonkeyPatch, on_screen: Callable[..., Screen]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    screen = on_screen(120)
    with counting("verifying", "sample") as show:
        show(1000, 2000)
        now = 10.0
        show(1100, 2000)
        now = 20.0
        render.say("look")
        shown = frames(screen.read())[-1]
    assert re.search(r" 55 %  1,100/2,000 samples · +10\.0/s · +1:30 left$", shown), shown


def test_it_moves_by_itself_within_a_second(
    monkeypatch: pytest.MonkeyPatch, on_screen: Callable[..., Screen]
) -> None:
    move = Line._move
    screen = on_screen()
    monkeypatch.setattr(Line, "_move", move)
    with progress.doing("reading the sources"):
        time.sleep(0.5)
    assert len({frame[0] for frame in frames(screen.read())}) > 2

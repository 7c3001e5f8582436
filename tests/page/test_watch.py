"""`shardgen.notebook.watch` in the cell of a real kernel, and what its output looks like in a browser."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Browser, Page

from shardgen.errors import MachineUnfit
from shardgen.notebook import _Said, watch
from shardgen.operations.init import initialise
from shardgen.settings.run_directory import RunDirectory
from tests.photographs import write_photographs
from tests.runs import plan_run, shardgen, start

# What a notebook puts around an output, with the names that a careless style sheet would also style.
HOST = """<!doctype html><meta charset="utf-8"><title>a notebook</title>
<style>body {{ margin: 8px; background: {paper}; color: {ink}; font: 14px sans-serif }}</style>
<main><h1>Title</h1><section class="card"><h2>Part</h2><p class="muted">text</p><ul><li>one</li></ul>
<details open><summary>more</summary><pre>code</pre></details>
<table><tr><th>head</th><td>cell</td></tr></table>
<figure><svg width="9" height="9"></svg><figcaption>caption</figcaption></figure></section>
<footer class="top">end</footer></main>{output}"""
STYLES = """() => {
  const keys = ['margin', 'padding', 'color', 'backgroundColor', 'fontSize', 'fontFamily', 'display',
    'border', 'listStyleType', 'minHeight', 'colorScheme'];
  const ours = document.querySelectorAll('body > main, body > main *');
  return [document.documentElement, document.body, ...ours].map(
    one => one.tagName + keys.map(key => getComputedStyle(one)[key]).join());
}"""
# Of a text to the nearest background that is not transparent.
CONTRAST = """element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [red, green, blue] = numbers(colour).map(value => linear(value / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  let under = element;
  while (numbers(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
  const pair = [getComputedStyle(element).color, getComputedStyle(under).backgroundColor].map(light);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""


class Watching(NotebookClient):
    """Keeps, of each message that shows something, its type and its HTML."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shown: list[tuple[str, str]] = []

    @property
    def kernel(self) -> Any:
        return self.km

    @property
    def process(self) -> Any:
        return self.kernel.provisioner

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.shown.append(
                (msg["content"]["transient"]["display_id"], msg["content"]["data"]["text/html"])
            )
        return super().process_message(msg, cell, cell_index)


class Cell:
    """A cell in a kernel; its outputs are those that a saved notebook would have now."""

    def __init__(self, client: Watching, code: str) -> None:
        self.client = client
        self.node = nbformat.v4.new_code_cell(
            f"from shardgen.notebook import watch\nended = {code}\nprint('ended', ended)"
        )  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        self.client.nb.cells = [self.node]
        self._running = asyncio.create_task(self.client.async_execute_cell(self.node, 0))
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._running.done():
            self._running.cancel()

    @property
    def html(self) -> str:
        return "".join(
            one.data["text/html"] for one in self.node.outputs if "text/html" in one.get("data", {})
        )

    @property
    def text(self) -> str:
        """For readers without HTML, and what was printed."""
        return "\n".join(
            one.data["text/plain"] if "data" in one else one.text
            for one in self.node.outputs
            if one.output_type != "error"
        )

    async def until(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait for a text in its output."""
        deadline = time.monotonic() + seconds
        while text not in self.text + self.html:
            assert time.monotonic() < deadline, f"{text!r} never appeared in {self.text}"
            if self._running.done():
                self._running.result()
            await asyncio.sleep(0.05)

    async def interrupt(self) -> None:
        """The stop button."""
        await self.client.kernel.interrupt_kernel()

    async def end(self, *, seconds: float = 60.0) -> None:
        """Wait for its end, which must be no error."""
        await asyncio.wait_for(self._running, seconds)


async def in_a_kernel(folder: Path, story: Callable[[Watching], Awaitable[None]]) -> None:
    client = Watching(nbformat.v4.new_notebook(), timeout=120, kernel_name="python3")  # type: ignore[no-untyped-call]
    own = {
        name: str(folder / name.lower())
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "XDG_CACHE_HOME", "JUPYTER_CONFIG_DIR")
    }
    async with client.async_setup_kernel(env=os.environ | own, cwd=str(folder)):
        await story(client)


def planned(folder: Path, *, grid: str) -> RunDirectory:
    """A run without depth, whose workers start in two seconds and make about 200 samples in one."""
    foregrounds, backgrounds = write_photographs(folder / "sources", foregrounds=2, backgrounds=2)
    changes = {
        "compose.grid": grid,
        "output.size": "[96, 72]",
        "shards.size": "1000",
        "shards.slice_batches": "2",
        "shards.batch": "8",
        "lease.seconds": "30",
        "lease.heartbeat_seconds": "0.5",
    }
    path = initialise(
        folder / "run",
        {"foregrounds": foregrounds, "backgrounds": backgrounds},
        preset="masks-only",
        changes=changes,
    ).parent
    return plan_run(RunDirectory.open(path))


def status(run: RunDirectory) -> dict[str, Any]:
    done = shardgen("status", run.path, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def started_by(client: Watching) -> list[psutil.Process]:
    """All that the kernel has started, and what that has started."""
    return psutil.Process(client.process.pid).children(recursive=True)


def worker_of(client: Watching) -> int:
    """The process of the one worker that the kernel's `run` has started."""
    (one,) = [
        child.pid
        for child in started_by(client)
        if "worker" in child.cmdline() and "shardgen" in child.cmdline()
    ]
    return one


# Without a kernel


def test_outside_of_a_notebook_watch_says_what_to_type_instead(run: RunDirectory) -> None:
    with pytest.raises(MachineUnfit, match="not a notebook") as caught:
        watch(run.path)
    assert "status RUN_DIR --watch" in caught.value.hint


def test_ipython_is_imported_by_nobody_who_does_not_watch() -> None:
    script = "import sys, shardgen.notebook; assert 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_line_that_a_carriage_return_replaces_is_gone_and_lines_are_bounded() -> None:
    said = _Said()
    for text in ("one\ntw", "o\r\n1 %\r2", " %\r3 %", "\r"):
        said.take(text)
    assert said.lines == ("one", "two", "3 %")
    said.take("\n" + "x" * 10_000_000 + "\n" + "line\n" * 1000)
    assert len(said.lines) == 40
    said.take("y" * 10_000_000)
    assert sum(map(len, said.lines)) < 40 * 2_001


# In a kernel


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, RunDirectory]:
    """A cell that has worked through a run of 800 samples, and what it showed on the way."""
    folder = tmp_path_factory.mktemp("worked")
    run = planned(folder, grid="[10, 10]")
    cells = []

    async def story(client: Watching) -> None:
        cell = Cell(client, f"watch({str(run.path)!r}, command=['worker', '--id', 'anna <b>'])")
        cells.append(cell)
        async with cell:
            await cell.until(" s left")
            await cell.end()

    asyncio.run(in_a_kernel(folder, story))
    return cells[0], run


@pytest.mark.slow
def test_a_cell_works_and_shows_the_whole_run_with_the_commands_lines_below(
    worked: tuple[Cell, RunDirectory],
) -> None:
    cell, run = worked
    assert status(run)["samples"]["stored"] == 800
    assert "800 of 800 samples" in cell.text
    assert "[anna <b>] made 800 samples; 0 of 800 are pending" in cell.text
    assert cell.text.endswith("ended 0\n")
    assert "[anna &lt;b&gt;]" in cell.html
    assert "<b>" not in cell.html
    assert "<script" not in cell.html
    assert not re.search(r"(src|href)=[\"'](?!data:image/)", cell.html)


@pytest.mark.slow
def test_a_cell_sends_pictures_only_when_they_change_and_stays_small(
    worked: tuple[Cell, RunDirectory],
) -> None:
    cell, _ = worked
    by_output: dict[str, list[str]] = {}
    for display_id, markup in cell.client.shown:
        by_output.setdefault(display_id, []).append(markup)
    assert len(cell.node.outputs) == len(by_output) + 1  # and what the cell prints
    for shown in by_output.values():
        assert all(one != other for one, other in itertools.pairwise(shown))
    pictures = [shown for shown in by_output.values() if any("data:image" in one for one in shown)]
    assert len(pictures) == 1
    assert len(cell.html) < 400_000


@dataclass(kw_only=True)
class Stops:
    """What cells that watched one run, one after the other, said and left; the last one lost its kernel."""

    watched: Cell
    once: Cell
    twice: Cell
    after_once: dict[str, Any]
    twice_seconds: float
    hung: int
    left_over: list[psutil.Process]
    after_all: dict[str, Any]


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Stops:
    folder = tmp_path_factory.mktemp("stops")
    run = planned(folder, grid="[30, 30]")  # half a minute of work for one worker
    found: dict[str, Any] = {}

    async def story(client: Watching) -> None:
        worker = start(["worker", run.path])
        async with Cell(client, f"watch({str(run.path)!r})") as cell:
            await cell.until(" s left")
            worker.kill()
            worker.wait()
            if worker.stderr is not None:
                worker.stderr.close()
            await cell.until("1 dead")
            await cell.interrupt()
            await cell.end()
        found["watched"] = cell
        async with Cell(client, f"watch({str(run.path)!r}, command=['worker'])") as cell:
            await cell.until(" s left")
            await cell.interrupt()
            await cell.until("stopping: finishing")
            await cell.end()
        found.update(once=cell, after_once=status(run))
        async with Cell(client, f"watch({str(run.path)!r}, command=['run'])") as cell:
            await cell.until(" s left")
            found["hung"] = worker_of(client)
            os.kill(found["hung"], signal.SIGSTOP)
            await cell.interrupt()
            await cell.interrupt()  # the echo of one that was pressed too fast
            await cell.until("stopping: finishing")
            await asyncio.sleep(1.2)
            pressed = time.monotonic()
            await cell.interrupt()
            await cell.end()
        found.update(twice=cell, twice_seconds=time.monotonic() - pressed)
        async with Cell(client, f"watch({str(run.path)!r}, command=['run'])") as cell:
            await cell.until(" s left")
            found["left_over"] = started_by(client)
            await client.process.kill()

    asyncio.run(in_a_kernel(folder, story))
    _, found["left_over"] = psutil.wait_procs(found["left_over"], timeout=20)
    return Stops(**found, after_all=status(run))


def leased(found: dict[str, Any]) -> int:
    return sum(shard["slices"]["leased"] for shard in found["shards"])


@pytest.mark.slow
def test_a_killed_worker_is_shown_and_the_stop_button_leaves_the_last_picture(stops: Stops) -> None:
    assert "stopped watching; the run goes on" in stops.watched.text
    assert stops.watched.text.endswith("ended None\n")
    assert "data:image" in stops.watched.html
    assert "1 dead" in stops.watched.html


@pytest.mark.slow
def test_the_stop_button_lets_the_worker_finish_and_give_its_slice_back(stops: Stops) -> None:
    assert "exit code 130" in stops.once.text
    assert stops.once.text.endswith("ended 130\n")
    assert 0 < stops.after_once["samples"]["stored"] < 7200
    assert [one["state"] for one in stops.after_once["workers"]].count("stopped") == 1
    assert leased(stops.after_once) == 0


@pytest.mark.slow
def test_the_stop_button_pressed_twice_stops_a_run_whose_worker_hangs(stops: Stops) -> None:
    assert stops.twice.text.endswith("ended 130\n")
    assert stops.twice_seconds < 30  # in 40 s its grace is over
    assert not psutil.pid_exists(stops.hung)


@pytest.mark.slow
def test_what_a_cell_has_started_ends_with_its_kernel_and_holds_nothing(stops: Stops) -> None:
    assert stops.left_over == []
    assert leased(stops.after_all) == 0


# In a browser


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an output as a notebook of 600 px shows it; whatever the console says, or is asked for, fails."""
    said: list[str] = []
    contexts = []

    def open_page(output: str, *, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": 600, "height": 800}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda asked: said.append(asked.url) if not asked.url.startswith("data:") else None
        )
        paper, ink = ("#111", "#eee") if dark else ("#fff", "#111")
        page.set_content(HOST.format(output=output, paper=paper, ink=ink))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_cell_is_readable_in_a_narrow_notebook(
    worked: tuple[Cell, RunDirectory], opened: Callable[..., Page], *, dark: bool
) -> None:
    page = opened(worked[0].html, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == 600
    assert page.locator(".shardgen").first.is_visible()
    pictures = page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth)")
    assert len(pictures) >= 6
    assert min(pictures) > 30
    for element in page.locator(".shardgen h2, .shardgen p, .shardgen dd, body > div > pre").all():
        assert element.evaluate(CONTRAST) >= 4.5, element.inner_text()


@pytest.mark.slow
def test_the_style_of_a_cell_changes_nothing_around_it(
    worked: tuple[Cell, RunDirectory], opened: Callable[..., Page]
) -> None:
    alone = opened("").evaluate(STYLES)
    assert len(alone) > 10
    assert opened(worked[0].html).evaluate(STYLES) == alone

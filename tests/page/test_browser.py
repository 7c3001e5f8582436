"""The page in a real browser, over a real run: what a person sees, and what the browser has to say of it."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import WorkerId
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from shardgen.operations.page.look import look_once
from shardgen.operations.page.render import self_contained
from shardgen.operations.page.server import PageServer
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.halted_worker import THERE
from tests.page.conftest import serving
from tests.page.looks import EVIL, large, troubled
from tests.runs import shardgen

pytestmark = pytest.mark.slow
PATIENCE = 30_000.0  # milliseconds
WIDE, NARROW = 1200, 360
_PLACE = "document.querySelector('details.node[open] > summary').getBoundingClientRect().top"


@dataclass
class Visit:
    """A page, and what went wrong on it."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open_all(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")

    def check_width(self) -> None:
        """Nothing makes the page wider than the window."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def check_access(self) -> None:
        found = Axe().run(self.page).response["violations"]
        grave = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert grave == []


Visiting = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visiting]:
    """Opens a page; in the end nothing may stand in its console."""
    opened: list[Visit] = []

    def visit(url: str, *, width: int = WIDE, dark: bool = False, scripts: bool = True) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            permissions=["clipboard-read", "clipboard-write"],
        )
        found = Visit(context.new_page())
        opened.append(found)
        found.page.goto(url)
        return found

    yield visit
    for one in opened:
        one.page.context.close()
    assert [one.said for one in opened if one.said] == []


@pytest.fixture(scope="module")
def finished(planned_template: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that is all made, and not merged."""
    path = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(planned_template / "run", path)
    assert shardgen("worker", path).returncode == 0
    return RunDirectory.open(path)


@pytest.fixture(scope="module")
def served(finished: RunDirectory) -> Iterator[PageServer]:
    with serving(finished) as page:
        yield page


@contextmanager
def halted_worker(run: RunDirectory, folder: Path) -> Iterator[warm.Command]:
    """A real worker that stores some batches, and then waits in the middle of a slice."""
    folder.mkdir()
    worker = warm.start("tests.halted_worker", [run.path, folder, "BatchStep.PUBLISHED", "4"])
    try:
        yield worker
    finally:
        worker.kill()
        with worker:
            pass


def test_a_person_sees_a_run_from_its_beginning_to_its_end(
    run: RunDirectory, visit: Visiting, tmp_path: Path
) -> None:
    with serving(run) as served:
        see_a_run(run, served, visit(served.url), tmp_path)


def see_a_run(run: RunDirectory, served: PageServer, shown: Visit, tmp_path: Path) -> None:
    page = shown.page
    part = {
        name: page.locator(f'[data-part="{name}"]') for name in ("progress", "next", "samples", "workers")
    }
    expect(page).to_have_title("0 % · people · shardgen")
    expect(part["progress"]).to_contain_text("No worker is running.")
    expect(page.locator("code")).to_have_text("shardgen run people")
    page.get_by_role("button", name="Copy the command shardgen run people").click()
    expect(page.get_by_role("button", name="Copy the command")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "shardgen run people"
    page.locator('[data-key="shard-0"] > summary').first.click()
    page.evaluate("window.isTheSamePage = true")

    with halted_worker(run, tmp_path / "halted") as worker:
        expect(part["workers"]).to_contain_text("1 worker", timeout=PATIENCE)
        expect(page.locator(".percent")).not_to_have_text("0 % percent done", timeout=PATIENCE)
        expect(part["samples"].locator("img").first).to_be_visible(timeout=PATIENCE)
        assert page.evaluate(
            "Promise.all([...document.images].map((one) => one.decode())).then(() => document.images.length)"
        )
        assert all(part["samples"].locator("img").nth(number).get_attribute("alt") for number in range(3))
        while not (tmp_path / "halted" / THERE).exists():
            time.sleep(0.05)
        expect(page.locator('[data-key="shard-0"] .c-leased')).to_be_visible(timeout=PATIENCE)
        worker.kill()
    expect(page.locator(".s-dead").first).to_have_text("dead", timeout=PATIENCE)
    expect(part["progress"]).to_contain_text("No worker is running.")
    expect(page.locator("code")).to_have_text(["shardgen run people"])

    assert shardgen("worker", run.path).returncode == 0
    expect(page).to_have_title("100 % · people · shardgen", timeout=PATIENCE)
    expect(part["progress"]).to_contain_text("finished")
    expect(page.locator("code")).to_have_text("shardgen merge people")
    assert page.evaluate("window.isTheSamePage")
    assert page.locator("details[data-key=shard-0]").first.evaluate("(one) => one.open")
    assert {url.split("/")[2] for url in shown.asked} == {f"127.0.0.1:{served.address.port}"}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_can_be_read_in_any_light_at_any_width(
    served: PageServer,
    visit: Visiting,
    width: int,
    dark: bool,  # noqa: FBT001
) -> None:
    shown = visit(served.url, width=width, dark=dark)
    shown.open_all()
    shown.check_width()
    shown.check_access()
    paper = shown.page.locator(".shardgen").evaluate("(one) => getComputedStyle(one).backgroundColor")
    brightness = sum(int(level) for level in paper.removeprefix("rgb(").rstrip(")").split(","))
    assert brightness < 150 if dark else brightness > 700


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_all_troubles_at_once_can_be_read(visit: Visiting, tmp_path: Path, width: int) -> None:
    path, largest = tmp_path / "troubled.html", tmp_path / "large.html"
    path.write_bytes(self_contained(troubled()))
    largest.write_bytes(self_contained(large()))
    shown = visit(path.as_uri(), width=width)
    shown.open_all()
    shown.check_width()
    shown.check_access()
    shown = visit(largest.as_uri(), width=width)
    shown.open_all()
    shown.check_width()


def join_many(manifest: Path, *, like: WorkerId) -> None:
    """Let 999 more workers start at once, eight on a node."""
    with sqlite3.connect(manifest) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM worker WHERE id = ?", (like,)).fetchone())
        marks = ", ".join("?" * len(row))
        connection.executemany(
            f"INSERT INTO worker ({', '.join(row)}) VALUES ({marks})",  # noqa: S608 - the table's own columns
            [
                [
                    *(
                        row
                        | {
                            "id": f"worker-{number:04}",
                            "host": f"boot-{number // 8:03}/ns/gpu-{number // 8:03}",
                            "state": "starting",
                            "note": "",
                        }
                    ).values()
                ]
                for number in range(1, 1000)
            ],
        )
    connection.close()


def test_a_thousand_workers_stay_usable_and_none_of_them_can_run_a_script(
    planned_template: Path, visit: Visiting, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(planned_template / "run", path)
    settings = path / "shardgen.toml"
    settings.write_text(settings.read_text().replace("\nseconds = 30", "\nseconds = 3600"))
    run = RunDirectory.open(path)
    with run.manifest(run.plan()) as manifest:
        first = WorkerId(f"worker-0000{EVIL}")
        identity = WorkerIdentity(
            id=first, host="boot-000/ns/gpu-000", pid=1, process_started=1.0, device="A100"
        )
        manifest.workers.register(identity)
        manifest.workers.beat(first, WorkerReport(state=WorkerState.WORKING, note=EVIL))
        join_many(path / "manifest.sqlite", like=first)
        with serving(run) as served:
            shown = visit(served.url, width=NARROW)
            page = shown.page
            expect(page.locator('[data-part="workers"]')).to_contain_text("1,000 workers on 125 nodes")
            assert page.locator("details.node").count() == 125
            assert page.locator("details.node[open]").count() == 0
            page.locator("summary", has_text="gpu-000").click()
            row = page.locator("tr", has_text="worker-0007")
            expect(row).to_contain_text("starting")
            expect(page.locator("tr", has_text="worker-0000").locator(".note")).to_have_text(EVIL)
            row.scroll_into_view_if_needed()
            before = page.evaluate(_PLACE)
            changed = WorkerReport(state=WorkerState.WORKING, samples_per_second=7.0, note=EVIL)
            manifest.workers.beat(WorkerId("worker-0007"), changed)
            expect(row).to_contain_text("7.00", timeout=PATIENCE)
            assert page.locator("details.node[open]").count() == 1
            assert abs(page.evaluate(_PLACE) - before) < 2
            assert page.evaluate("window.pwned") is None
            shown.check_width()


def test_the_file_needs_neither_scripts_nor_a_network(
    finished: RunDirectory, visit: Visiting, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(self_contained(look_once(open_run(finished), named="people")))
    for scripts in (False, True):
        shown = visit(path.as_uri(), width=NARROW, scripts=scripts)
        page = shown.page
        expect(page.locator(".percent")).to_contain_text("100")
        expect(page.locator("code")).to_have_text("shardgen merge people")
        page.locator("details.shard summary").first.click()
        expect(page.locator(".c-done:visible").first).to_be_visible()
        assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
        assert page.locator("img").count() == 18
        shown.check_width()
        assert [url for url in shown.asked if not url.startswith(("data:", "file:"))] == []


def test_the_end_of_the_command_is_told_and_leaves_the_page(planned_template: Path, visit: Visiting) -> None:
    with serving(RunDirectory.open(planned_template / "run")) as served:
        shown = visit(served.url)
        expect(shown.page.locator('[data-part="progress"]')).to_contain_text("48")
    expect(shown.page.get_by_role("status").first).to_contain_text("has ended", timeout=PATIENCE)
    expect(shown.page.locator('[data-part="progress"]')).to_contain_text("48")

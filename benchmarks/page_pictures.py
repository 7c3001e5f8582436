"""The pictures of the page in `docs/`, from a real run of the demo's photographs, in a real browser.

python -m benchmarks.page_pictures [--into docs]
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.open import open_run
from shardgen.domain.lease import Lease
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.machine.processes import new_identity
from shardgen.operations.demo import WEIGHTS, write_photographs
from shardgen.operations.page.look import SharedLook
from shardgen.operations.page.server import Address, PageServer
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.template import settings_text
from tests.page.conftest import BROWSER, OPTIONS
from tests.runs import plan_run

MAX_BYTES = 120_000
_COLOURS = 128
_TALL = 1_150
_SETTINGS = {
    "sources.mask": '"grabcut"',
    "compose.grid": "[5, 4]",
    "shards.size": "120",
    "shards.slice_batches": "2",
    "shards.batch": "4",
    "lease.seconds": "15",
    "lease.heartbeat_seconds": "1",
}
_DEAD = "250,251,330"  # samples that are made to fail


@contextmanager
def working(run: RunDirectory, *ids: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers of one thread each, some of whose samples fail."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEAD_SAMPLES": _DEAD}
    command = [sys.executable, "-m", "tests.kill_at", "worker", str(run.path), "-", "1"]
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        for _ in ids
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def wait_for(opened: OpenedRun, stored: int) -> None:
    """Until so many samples are stored."""
    while opened.report().stored < stored:
        time.sleep(0.5)


def break_things(opened: OpenedRun, worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker, and block a slice in its place."""
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    identity = new_identity("worker-9-b10c4ed0")
    with opened.run.manifest(opened.plan) as manifest:
        manifest.workers.register(identity)
        lease = manifest.leases.lease(identity.id, opened.run.settings.lease_policy)
        if isinstance(lease, Lease):
            manifest.leases.block(
                lease, "StorageFailed: /mnt/shared/people/artifacts: No space left on device"
            )
        manifest.workers.beat(identity.id, WorkerReport(state=WorkerState.STOPPED))


def picture(page: Page, path: Path, height: int) -> None:
    """What the window shows, in few colours."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})  # type: ignore[index]
    page.wait_for_timeout(3000)
    shot = Image.open(io.BytesIO(page.screenshot()))
    few = shot.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"{path}: more than {MAX_BYTES:,} bytes")


def opened_page(browser: Browser, url: str, *, width: int = 1000, dark: bool = False) -> Page:
    """A page in light or dark."""
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    page.goto(url)
    return page


def draw(opened: OpenedRun, browser: Browser, into: Path) -> None:
    """Work, look, break things, look again."""
    with (
        SharedLook(opened, named="people") as look,
        PageServer(look, Address(host="127.0.0.1", port=0)) as server,
        working(opened.run, "a", "b") as workers,
    ):
        wait_for(opened, opened.plan.samples * 2 // 5)
        picture(opened_page(browser, server.url), into / "page-light.png", _TALL)
        picture(opened_page(browser, server.url, dark=True), into / "page-dark.png", _TALL)
        picture(opened_page(browser, server.url, width=360), into / "page-narrow.png", _TALL)
        wait_for(opened, opened.plan.samples * 3 // 4)
        break_things(opened, workers[0])
        troubled = opened_page(browser, server.url)
        troubled.locator(".s-dead").first.wait_for()
        troubled.locator("details.letters summary").first.click()
        for part in ("samples", "pace"):  # they are in the other pictures
            troubled.evaluate("(part) => (document.querySelector(`[data-part=${part}]`).hidden = true)", part)
        troubled.evaluate("scrollTo(0, 0)")
        picture(troubled, into / "page-trouble.png", _TALL + 250)


def main() -> None:
    """Make a run, and draw its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("docs"))
    into = parser.parse_args().into
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        foregrounds, backgrounds = write_photographs(Path(folder))
        path = Path(folder) / "people"
        path.mkdir()
        text = settings_text(
            foregrounds=foregrounds, backgrounds=backgrounds, weights=WEIGHTS, changes=_SETTINGS
        )
        (path / "shardgen.toml").write_text(text, encoding="utf-8")
        opened = open_run(plan_run(RunDirectory.open(path)))
        opened.ensure_manifest()
        browser = playwright.chromium.launch(executable_path=BROWSER, args=[*OPTIONS])
        draw(opened, browser, into)
        browser.close()


if __name__ == "__main__":
    main()

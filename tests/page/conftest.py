"""A served run and a browser for all tests of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from shardgen.coordination.base import OpenedRun
from shardgen.coordination.open import open_run
from shardgen.operations.page.look import SharedLook
from shardgen.operations.page.server import Address, PageServer
from shardgen.settings.run_directory import RunDirectory

BROWSER = Path("/usr/bin/chromium-headless-shell")
INSTALL = "as root: apt-get update && apt-get install -y chromium-headless-shell"
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium."""
    if not BROWSER.is_file():
        pytest.fail(f"{BROWSER} is not there; {INSTALL}", pytrace=False)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=[*OPTIONS])
        yield found
        found.close()


@contextlib.contextmanager
def serving(
    run: RunDirectory | OpenedRun, *, address: str = "127.0.0.1", token: str | None = None
) -> Iterator[PageServer]:
    """Serve a planned run at a free port, in this process."""
    opened = open_run(run) if isinstance(run, RunDirectory) else run
    with (
        SharedLook(opened, named="people") as look,
        PageServer(look, Address(host=address, port=0), token=token) as page,
    ):
        yield page

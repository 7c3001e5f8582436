"""`shardgen status`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, RunDir, Serve
from shardgen.cli.progress import Way, doing, way
from shardgen.cli.serving import serving
from shardgen.cli.status_view import next_step, status_view
from shardgen.coordination.base import OpenedRun, Watcher
from shardgen.coordination.open import open_directory, open_run
from shardgen.coordination.report import Report
from shardgen.domain.wording import sized, typed, with_run_dir
from shardgen.errors import TransientError
from shardgen.machine.notebooks import is_notebook
from shardgen.operations.forecast import Forecast, read_forecast, status_json
from shardgen.operations.merged import finished_zip

if TYPE_CHECKING:
    from rich.console import Console

_WATCH_SECONDS = 2.0
_FILE_SECONDS = 30.0  # in a file or a pipe every look stays
_TABLE_COLUMNS = 60  # a table on a narrower terminal cannot be read


def status(
    *,
    run_dir: RunDir = HERE,
    json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until everything is made, or Ctrl-C.")
    ] = False,
    serve: Serve = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the page as one file, pictures inside, for mail, a drive or a bucket.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what is stored and pending, the workers, and time left.

    Only reads; safe at any time, from any number of terminals.

    \b
    Example:
      shardgen status people --watch
      shardgen status people --serve
      shardgen status people --html status.html
    """
    if sum((json, watch, serve is not None, html is not None)) > 1:
        raise typer.BadParameter("choose one of --json, --watch, --serve and --html")
    opened = open_run(open_directory(run_dir))
    if serve is not None:
        with serving(opened, serve):
            threading.Event().wait()
    elif html is not None:
        _write_page(opened, html)
    elif watch:
        _watch(opened)
    elif json:
        render.print_json(status_json(opened.report(), read_forecast(opened.run)))
    else:
        _show(opened, opened.report())


def _watch(opened: OpenedRun) -> None:
    console = render.stdout()
    is_seen = sys.stdout.isatty() and way() is not Way.PRINTED
    has_no_room = is_notebook() or console.width < _TABLE_COLUMNS
    with opened.watching() as watcher:
        last = (
            _watch_in_a_line(watcher)
            if is_seen and has_no_room
            else _watch_in_tables(watcher, console, read_forecast(opened.run))
        )
    if last is not None and render.is_heard():
        _show(opened, last)


def _show(opened: OpenedRun, found: Report) -> None:
    """The tables, and what to type next."""
    finished = finished_zip(opened.run, found)
    render.show(status_view(found, finished=finished, forecast=read_forecast(opened.run)))
    if line := next_step(found, finished):
        render.say(with_run_dir(line, opened.run.named))


def _looks(watcher: Watcher, seconds: float) -> Iterator[Report]:
    """What is seen every so many seconds, until all is made and nobody works any more."""
    while True:
        with suppress(TransientError):  # a busy manifest: the next look is soon
            found = watcher.report()
            yield found
            if not found.pending and not found.is_anybody_at_work:
                return
        time.sleep(seconds)


def _watch_in_a_line(watcher: Watcher) -> Report | None:
    found = None
    with doing("looking at the run", is_printed=False) as line:
        for found in _looks(watcher, _WATCH_SECONDS):
            line.show(found.progress)
    return found


def _watch_in_tables(watcher: Watcher, console: Console, forecast: Forecast | None) -> Report | None:
    """Tables drawn over each other, gone at the end; or one below the other, where each look stays."""
    from rich.live import Live

    found, is_drawn = None, console.is_terminal
    with Live(console=console, auto_refresh=False, transient=True) if is_drawn else nullcontext() as live:
        for found in _looks(watcher, _WATCH_SECONDS if is_drawn else _FILE_SECONDS):
            if live is not None:
                live.update(status_view(found, forecast=forecast), refresh=True)
            elif found.pending or found.is_anybody_at_work:
                now = datetime.now().astimezone()
                console.print(
                    f"{now:%Y-%m-%d %H:%M:%S %z}", status_view(found, forecast=forecast), "", sep="\n"
                )
            if not render.is_heard():
                return None
    return found


def _write_page(opened: OpenedRun, path: Path) -> None:
    from shardgen.operations.page.file import refuse_page, write_page
    from shardgen.operations.page.look import look_once

    refuse_page(opened.run, path)
    size = write_page(path, look_once(opened, named=typed(opened.run.named)))
    render.result_is_a_file()
    render.echo(f"{path}   {sized(size)}")

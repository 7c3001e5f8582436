"""`shardgen status`."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, RunDir, Serve, typed_run_dir, with_run_dir
from shardgen.cli.serving import serving
from shardgen.cli.status_view import next_step, status_view
from shardgen.coordination.base import OpenedRun

_WATCH_SECONDS = 2.0
_FILE_SECONDS = 30.0  # in a file, a pipe or a notebook every look stays


def status(
    *,
    run_dir: RunDir = HERE,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
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
    """Show what is stored and pending, who works, and time left.

    Only reads; safe at any time, from any number of terminals.

    \b
    Example:
      shardgen status people --watch
      shardgen status people --serve
      shardgen status people --html status.html
    """
    from shardgen.coordination.open import open_directory, open_run

    opened = open_run(open_directory(run_dir))
    if sum((json, watch, serve is not None, html is not None)) > 1:
        raise typer.BadParameter("of --json, --watch, --serve and --html only one at a time")
    if serve is not None:
        with serving(opened, serve):
            threading.Event().wait()
    elif html is not None:
        _write_page(opened, html)
    elif watch:
        _watch(opened)
    elif json:
        render.print_json(opened.report().as_json())
    else:
        found = opened.report()
        render.stdout().print(status_view(found))
        if line := next_step(found):
            render.say(with_run_dir(line))


def _watch(opened: OpenedRun) -> None:
    from rich.live import Live

    from shardgen.errors import TransientError

    console = render.stdout()
    wait = _WATCH_SECONDS if console.is_terminal else _FILE_SECONDS
    with (
        opened.watching() as watcher,
        Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live,
    ):
        while True:
            with suppress(TransientError):  # a busy manifest: the next look is soon
                view = status_view(watcher.report())
                if live is None:
                    console.print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}", view, "", sep="\n")
                else:
                    live.update(view, refresh=True)
            if not render.is_heard():
                return
            time.sleep(wait)


def _write_page(opened: OpenedRun, path: Path) -> None:
    from shardgen.operations.page.file import refuse_page, write_page
    from shardgen.operations.page.look import look_once

    refuse_page(opened.run, path)
    size = write_page(path, look_once(opened, named=typed_run_dir()))
    render.result_is_a_file()
    render.echo(f"{path}   {render.size(size)}")

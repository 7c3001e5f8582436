"""`shardgen status`."""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from datetime import datetime
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, RunDir, with_run_dir
from shardgen.cli.status_view import next_step, status_view

_WATCH_SECONDS = 2.0
_FILE_SECONDS = 30.0  # in a file, a pipe or a notebook every look stays


def status(
    *,
    run_dir: RunDir = HERE,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show what is stored and pending, who works, and time left.

    Only reads; safe at any time, from any number of terminals.

    \b
    Example:
      shardgen status people --watch
    """
    from shardgen.coordination.open import open_directory
    from shardgen.errors import TransientError
    from shardgen.operations.forecast import read_forecast, status_json
    from shardgen.operations.status import report

    run = open_directory(run_dir)
    if json and watch:
        raise typer.BadParameter("--json prints once; leave out --watch")
    if not watch:
        found = report(run)
        if json:
            render.print_json(status_json(found, read_forecast(run)))
        else:
            render.stdout().print(status_view(found, read_forecast(run)))
            if line := next_step(found):
                render.say(with_run_dir(line))
        return
    from rich.live import Live

    console = render.stdout()
    wait = _WATCH_SECONDS if console.is_terminal else _FILE_SECONDS
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            with suppress(TransientError):  # a busy manifest: the next look is soon
                found = report(run)
                if found.folder is not None:  # looked through as seldom as its workers do
                    wait = max(wait, found.folder.scan_seconds)
                view = status_view(found, read_forecast(run))
                if live is None:
                    console.print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}", view, "", sep="\n")
                else:
                    live.update(view, refresh=True)
            if not render.is_heard():
                return
            time.sleep(wait)

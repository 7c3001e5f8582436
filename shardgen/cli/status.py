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
    from shardgen.coordination.open import open_directory, open_run
    from shardgen.errors import TransientError

    opened = open_run(open_directory(run_dir))
    if json and watch:
        raise typer.BadParameter("--json prints once; leave out --watch")
    if not watch:
        found = opened.report()
        if json:
            render.print_json(found.as_json())
        else:
            render.stdout().print(status_view(found))
            if line := next_step(found):
                render.say(with_run_dir(line))
        return
    from rich.live import Live

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

"""`shardgen status`."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, RunDir

HELP = """Show what is stored and pending, who works, how long to go.

Reads only; safe at any time, from any number of terminals.

\b
Example:
  shardgen status people --watch
"""
_WATCH_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status", help=HELP)(status)


def status(
    *,
    run_dir: RunDir = HERE,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it on the screen until Ctrl-C.")] = False,
) -> None:
    """Call the verb and show the report."""
    from shardgen.errors import TransientError
    from shardgen.reporting import report
    from shardgen.rundir import RunDirectory

    run = RunDirectory.open(run_dir)
    if json and watch:
        raise typer.BadParameter("--json prints once; leave out --watch")
    if not watch:
        found = report(run)
        if json:
            render.print_json(found.as_json())
        else:
            render.stdout().print(render.status_view(found))
        return
    from rich.live import Live

    # A shared folder is looked through as seldom as its workers do.
    wait = run.settings.folder.scan_seconds if run.is_shared_folder else _WATCH_SECONDS
    with Live(console=render.stdout(), auto_refresh=False) as live:
        while True:
            with contextlib.suppress(TransientError):  # a busy manifest: the next look is soon
                live.update(render.status_view(report(run)), refresh=True)
            time.sleep(wait)

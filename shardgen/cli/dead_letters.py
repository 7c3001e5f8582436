"""`shardgen dead-letters`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, RunDir, typed

HELP = """List the samples that were given up, and why.

\b
Example:
  shardgen dead-letters people --details
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dead-letters", help=HELP)(dead_letters)


def dead_letters(
    *,
    run_dir: RunDir = HERE,
    json: Json = False,
    details: Annotated[bool, typer.Option("--details", help="Show the whole text and traceback.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show at most N.")] = 1000,
) -> None:
    """Read the manifest."""
    from shardgen.coordination.open import open_run
    from shardgen.domain.sample import recipe_of
    from shardgen.settings.run_directory import RunDirectory

    run = RunDirectory.open(run_dir)
    opened = open_run(run)
    plan = opened.plan
    rows = []
    total = opened.report().dead
    with opened.records() as recorded:
        for letter in islice(recorded.source.dead_letters(), limit):
            recipe = recipe_of(plan, letter.sample)
            rows.append(
                {
                    "sample": letter.sample,
                    "batch": plan.layout.batch_of_sample(letter.sample),
                    "reason": letter.reason.value,
                    "background": plan.sources.backgrounds[recipe.background].name,
                    "foreground": plan.sources.foregrounds[recipe.foreground].name,
                    "detail": letter.detail,
                }
            )
    if json:
        render.print_json({"total": total, "dead_letters": rows})
        return
    if not rows:
        typer.echo("no dead letters")
        return
    heads = ["sample", "batch", "reason", "background", "foreground", "detail"]
    cells = [
        [str(row[h]) if h != "detail" or details else str(row[h]).partition("\n")[0] for h in heads]
        for row in rows
    ]
    render.stdout().print(render.table(heads, cells))
    if total > len(rows):
        render.say(f"{len(rows)} of {total} shown; --limit {total} shows all")
    render.say(f"to try them again: shardgen requeue {typed(run_dir)} --dead-letters")

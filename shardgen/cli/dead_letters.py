"""`shardgen dead-letters`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import HERE, Json, RunDir
from shardgen.domain.wording import typed


def dead_letters(
    *,
    run_dir: RunDir = HERE,
    json: Json = False,
    details: Annotated[bool, typer.Option("--details", help="Show the whole text and traceback.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show at most N.")] = 1000,
) -> None:
    """List the samples that were given up, and why.

    \b
    Example:
      shardgen dead-letters people --details
    """
    from shardgen.coordination.open import open_directory, open_run

    run = open_directory(run_dir)
    opened = open_run(run)
    plan, recipe = opened.plan, run.recipe(opened.plan)
    total = opened.report().dead
    with opened.records() as recorded:
        rows: list[dict[str, object]] = [
            {
                "sample": letter.sample,
                "batch": plan.layout.batch_of_sample(letter.sample),
                "reason": letter.reason.value,
                **recipe.describe(letter.sample),
                "detail": letter.detail,
            }
            for letter in islice(recorded.source.dead_letters(), limit)
        ]
    if json:
        render.print_json({"total": total, "dead_letters": rows})
        return
    if not rows:
        typer.echo("no dead letters")
        return
    heads = list(rows[0])
    cells = [
        [str(row[h]) if h != "detail" or details else str(row[h]).partition("\n")[0] for h in heads]
        for row in rows
    ]
    render.stdout().print(render.table(heads, cells))
    if total > len(rows):
        render.say(f"{len(rows)} of {total} shown; --limit {total} shows all")
    render.say(f"to try them again: shardgen requeue {typed(run_dir)} --dead-letters")

"""`shardgen extend`, and the warning of those who could use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardgen.cli import render
from shardgen.cli.options import (
    HERE,
    Backgrounds,
    Foregrounds,
    Pictures,
    RunDir,
    given_folders,
)
from shardgen.cli.plan import plan_view, planning_progress, say_planning_remarks
from shardgen.cli.progress import opening
from shardgen.domain.wording import counted, typed

if TYPE_CHECKING:
    from shardgen.domain.plan import Plan
    from shardgen.recipes.base import Folders
    from shardgen.settings.run_directory import RunDirectory


def extend(
    *,
    run_dir: RunDir = HERE,
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
) -> None:
    """Add the new photographs of the source folders to the plan.

    Everything planned keeps its number and its name, and what is stored is not made again: the new samples
    follow at the end. Stop the workers first. Photographs that were removed or changed are refused.

    \b
    Example:
      shardgen extend people
    """
    with opening():
        from shardgen.coordination.open import open_directory
        from shardgen.operations.extend import extend as extend_run

        run = open_directory(run_dir)
        before = run.plan().samples
    with planning_progress() as events:
        extended = extend_run(
            run,
            given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures),
            events=events,
        )
    say_planning_remarks(extended)
    render.stdout().print(plan_view(extended, None, changed="EXTENDED"))
    named = typed(run_dir)
    if extended.changes:
        new = counted(extended.plan.samples - before, "new sample")
        numbers = (
            f"number {before:,}" if extended.plan.samples == before + 1 else f"numbers {before:,} and up"
        )
        render.say(f"{new}, {numbers}. Next: `shardgen run {named}`.")
    else:
        render.say("The plan has every photograph of the folders: nothing to add.")


def warn_of_unplanned(run: RunDirectory, plan: Plan, given: Folders) -> None:
    """Say on stderr which photographs lie in the folders and nothing is made of."""
    from shardgen.operations.extend import unplanned

    found = unplanned(run, plan, given)
    render.say_remarks("warning", found)

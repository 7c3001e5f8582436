"""`shardgen plan`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from shardgen.cli import render
from shardgen.cli.options import (
    HERE,
    Backgrounds,
    Foregrounds,
    Pictures,
    RunDir,
    given_folders,
    parse_rate,
    typed,
)
from shardgen.cli.progress import Line, doing, downloading
from shardgen.coordination.open import open_directory
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.wording import counted, sized
from shardgen.errors import ShardgenError
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory

if TYPE_CHECKING:
    from shardgen.operations.plan import Planned
    from shardgen.recipes.base import Folders, PlanEvents


_CHANGES = 20  # lines
_ASK_RATE = "unknown; add --rate N (a V100 made 6.4 samples/s), or run `status` once workers run"


def plan(
    *,
    run_dir: RunDir = HERE,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="N",
            callback=parse_rate,
            help="Estimate the time at N samples per second, all workers together.",
            show_default=False,
        ),
    ] = None,
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
) -> None:
    """Check every source, print what will be made, write the plan.

    Prints how many samples, how many bytes and how long; for composites also how much of the picture
    foregrounds cover.
    Fetches missing nyu/kitti weights. Makes no samples yet; safe to repeat.
    Until the first sample is stored it takes changed settings and photographs, and says what changed.

    \b
    Example:
      shardgen plan people --rate 6.4
    """
    given = given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures)
    with doing("opening the run", is_printed=False):
        run = open_directory(run_dir)
    planned = make_plan_with_progress(run, given, rate=rate)
    render.stdout().print(plan_view(planned, rate))
    if remark := recipe_of(planned.plan).remark:
        render.say(remark)
    named = typed(run_dir)
    render.say(f"Next: `shardgen preview {named}` (check the pictures), then `shardgen run {named}`.")


def make_plan_with_progress(run: RunDirectory, given: Folders, *, rate: float | None = None) -> Planned:
    """Plan, with a bar for the sources and for a download; warnings and notes on stderr.

    A plan that lacks something is shown before that is raised.
    """
    from shardgen.operations.plan import make_plan

    unwritten: list[Planned] = []
    try:
        with planning_progress() as events:
            planned = make_plan(run, given, events=events, on_unwritten=unwritten.append)
    except ShardgenError:
        for planned in unwritten:
            say_planning_remarks(planned)
            render.stdout().print(plan_view(planned, rate))
        raise
    say_planning_remarks(planned)
    return planned


@contextmanager
def planning_progress() -> Iterator[PlanEvents]:
    """A bar for the sources that are read, and one for a download."""
    with doing("reading the sources") as line:
        yield planning_events(line)


def planning_events(line: Line) -> PlanEvents:
    """What shows on a line the sources that are read, and a download."""
    from shardgen.recipes.base import PlanEvents

    count, on_file = itertools.count(1), line.counter("reading the sources", "file")
    return PlanEvents(
        doing=partial(line.doing, is_printed=False),
        on_file=lambda _name, of: on_file(next(count), of),
        on_download=downloading(line, "the weights"),
    )


def say_planning_remarks(planned: Planned) -> None:
    """What was found in the sources, on stderr."""
    render.say_remarks("warning", planned.draft.warnings)
    render.say_remarks("note", planned.draft.notes)


def plan_view(planned: Planned, rate: float | None, *, changed: str = "CHANGED") -> RenderableType:
    """The printed plan; `changed` is how one is called that took the place of another."""
    plan, layout = planned.plan, planned.plan.layout
    shards = [ShardIndex(shard) for shard in range(layout.shard_count)]
    slices = sum(map(layout.slice_count, shards))
    is_written = planned.draft.lacks is None
    batches = counted(layout.batch_count, "batch")
    facts = [
        ("samples", f"{plan.samples:,}"),
        *planned.draft.facts,
        (
            "shards",
            f"{layout.shard_count:,} of {_sizes([len(layout.shard_samples(one)) for one in shards])}",
        ),
        ("slices, batches", f"{counted(slices, 'slice')}, {batches} of {plan.shards.batch}"),
        ("bytes expected", _bytes(planned)),
        ("time", f"{render.duration(plan.samples / rate)} at {rate:g} samples/s" if rate else _ASK_RATE),
        ("fingerprint", plan.fingerprint if is_written else "not known yet: see the error below"),
    ]
    changes = [*planned.changes[:_CHANGES]]
    if more := len(planned.changes) - len(changes):
        changes.append(f"and {more:,} more")
    facts[:0] = [("" if number else "changed", change) for number, change in enumerate(changes)]
    unchanged = "NEW" if planned.is_new else "as it was"
    state = (changed if changes else unchanged) if is_written else "NOT WRITTEN"
    return render.table(["plan", state], facts, left=True)


def _sizes(samples: list[int]) -> str:
    """How many samples the shards have: all but the last as many, unless a plan has grown."""
    *others, last = samples
    if len(set(others)) > 1 or max(others, default=last) < last:
        return f"{min(samples):,} to {max(samples):,} samples"
    return f"{max(samples):,} samples" + (f", the last of {last:,}" if others else "")


def _bytes(planned: Planned) -> str:
    total = sized(planned.sample_bytes * planned.plan.samples)
    parts = " + ".join(f"{size:,.0f}" for size in planned.estimate.outputs.values())
    remark = f"; {planned.estimate.remark}" if planned.estimate.remark else ""
    sheet = "as much again for the zip, and its contact sheet"
    return f"about {total} of artifacts, {sheet} ({parts} a sample{remark})"

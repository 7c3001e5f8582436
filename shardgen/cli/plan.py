"""`shardgen plan`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.cli.options import (
    HERE,
    Backgrounds,
    Foregrounds,
    Json,
    Pictures,
    RunDir,
    given_folders,
    parse_rate,
)
from shardgen.cli.progress import Line, doing, downloading, opening
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.wording import counted, duration, sized, typed
from shardgen.errors import ShardgenError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shardgen.operations.forecast import Forecast
    from shardgen.operations.plan import Planned
    from shardgen.recipes.base import Folders, PlanEvents
    from shardgen.settings.run_directory import RunDirectory

_CHANGES = 20  # lines
_ASK_RATE = "unknown; add --calibrate to measure it, or --rate N (a V100 made 6.4 samples/s)"
_CREWS = (1, 2, 4, 8)
_SUCH_WORKERS = (
    "Each worker is a machine or GPU like this one. Workers on one CPU share its cores: two are hardly "
    "faster than one."
)


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
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Make some batches on this device, throw them away, and print how fast that was, how long "
            "1, 2, 4 and 8 such workers take, and how big the result will be.",
        ),
    ] = False,
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
    json: Json = False,
) -> None:
    """Check every source, print what will be made, write the plan.

    Prints how many samples, how many bytes and how long; for composites also how much of the picture
    foregrounds cover.
    Fetches missing nyu/kitti weights. Makes no samples yet; safe to repeat.
    Until the first sample is stored it takes changed settings and photographs, and says what changed.

    \b
    Example:
      shardgen plan people --rate 6.4
      shardgen plan people --calibrate
    """
    given = given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures)
    with opening():
        from shardgen.coordination.open import open_directory, open_run
        from shardgen.recipes.registry import recipe_of

        run = open_directory(run_dir)
    planned = make_plan_with_progress(run, given, rate=rate, shows_unwritten=not json)
    run, forecast = run.planned(planned.plan), None
    try:
        if calibrate:
            forecast = _measured(run, given)
    finally:  # whatever the machine lacks, the plan is written
        if not json:
            render.stdout().print(plan_view(planned, rate, forecast=forecast))
    if json:
        from shardgen.cli.documents import PlanDocument, answer

        answer(PlanDocument.of(planned, run_dir=run_dir, rate=rate, forecast=forecast))
        return
    if forecast is not None:
        render.stdout().print(_forecast_view(forecast, open_run(run).report().pending))
    if remark := recipe_of(planned.plan).remark:
        render.say(remark)
    named = typed(run_dir)
    render.say(f"Next: `shardgen preview {named}` (check the pictures), then `shardgen run {named}`.")


def make_plan_with_progress(
    run: RunDirectory, given: Folders, *, rate: float | None = None, shows_unwritten: bool = True
) -> Planned:
    """Plan, with a bar for the sources and for a download; warnings and notes on stderr.

    A plan that lacks something is shown before that is raised, unless stdout is for JSON.
    """
    unwritten: list[Planned] = []
    try:
        with planning_progress() as events:
            from shardgen.operations.plan import make_plan

            planned = make_plan(run, given, events=events, on_unwritten=unwritten.append)
    except ShardgenError:
        for planned in unwritten:
            say_planning_remarks(planned)
            if shows_unwritten:
                render.stdout().print(plan_view(planned, rate))
        raise
    say_planning_remarks(planned)
    return planned


def _measured(run: RunDirectory, given: Folders) -> Forecast:
    """Measure, with a bar of what is made."""
    render.say("calibrating: working as a worker does here, for ten seconds or more; no sample is kept")
    with doing("loading what makes samples, up to a minute", is_printed=False) as line:
        from shardgen.operations.forecast import make_forecast

        count, show = itertools.count(1), line.counter("calibrating", "sample")
        return make_forecast(run, given, say=render.say, on_made=lambda _samples: show(next(count), None))


def _forecast_view(forecast: Forecast, pending: int) -> RenderableType:
    """How long so many workers take for what is pending, and when that would be."""
    now, rows = datetime.now().astimezone(), []
    for workers in _CREWS:
        seconds = forecast.seconds_for(pending, workers)
        rows.append([f"{workers}", duration(seconds), _instant(now, seconds)])
    computing = f", micro-batch {forecast.micro_batch}" if forecast.micro_batch else ""
    measured = f"{counted(forecast.batches, 'batch')} in {duration(forecast.seconds)}"
    device = f"{forecast.device_model}{computing}"
    from rich.console import Group

    return Group(
        render.text(""),
        render.text(f"forecast: {_rate(forecast)} a worker ({measured}) on {device}"),
        render.text(""),
        render.table(["workers", f"{counted(pending, 'pending sample')} take", "done, local time"], rows),
        render.text(""),
        render.text(_SUCH_WORKERS),
    )


def _rate(forecast: Forecast) -> str:
    from shardgen.operations.forecast import rate_text

    return f"{rate_text(forecast.rate)} samples/s{_spread(forecast.rate_spread)}"


def _spread(share: float) -> str:
    return f" ± {max(1, round(100 * share))} %" if share else ""


def _instant(now: datetime, seconds: float) -> str:
    try:
        return f"{now + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
    except OverflowError:
        return "in thousands of years"


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


def plan_view(
    planned: Planned, rate: float | None, *, changed: str = "CHANGED", forecast: Forecast | None = None
) -> RenderableType:
    """The printed plan; `changed` is how one is called that took the place of another.

    Of bytes and time a `forecast` knows better.
    """
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
        ("bytes expected", _bytes(planned) if forecast is None else _measured_bytes(planned, forecast)),
        *_time(plan.samples, rate, is_measured=forecast is not None),
        ("fingerprint", plan.fingerprint if is_written else "not known yet: see the error below"),
    ]
    changes = [*planned.changes[:_CHANGES]]
    if more := len(planned.changes) - len(changes):
        changes.append(f"and {more:,} more")
    facts[:0] = [("" if number else "changed", change) for number, change in enumerate(changes)]
    unchanged = "NEW" if planned.is_new else "unchanged"
    state = (changed if changes else unchanged) if is_written else "NOT WRITTEN"
    return render.table(["plan", state], facts, left=True)


def _sizes(samples: list[int]) -> str:
    """How many samples the shards have: all but the last as many, unless a plan has grown."""
    *others, last = samples
    if len(set(others)) > 1 or max(others, default=last) < last:
        return f"{min(samples):,} to {max(samples):,} samples"
    return f"{max(samples):,} samples" + (f", the last of {last:,}" if others else "")


def _time(samples: int, rate: float | None, *, is_measured: bool) -> list[tuple[str, str]]:
    if rate:
        return [("time", f"{duration(samples / rate)} at {rate:g} samples/s")]
    return [] if is_measured else [("time", _ASK_RATE)]


def _measured_bytes(planned: Planned, forecast: Forecast) -> str:
    samples = planned.plan.samples
    artifacts = sized((forecast.sample_bytes + forecast.artifact_bytes) * samples)
    in_zip = sized(planned.bytes_in_zip(forecast.bytes) * samples)
    parts = " + ".join(f"{size:,.0f}" for size in forecast.bytes.values())
    return (
        f"{artifacts} of artifacts{_spread(forecast.bytes_spread)}, {in_zip} for the zip, and its contact "
        f"sheet ({parts} a sample, of {forecast.samples} encoded)"
    )


def _bytes(planned: Planned) -> str:
    total = sized(planned.sample_bytes * planned.plan.samples)
    parts = " + ".join(f"{size:,.0f}" for size in planned.estimate.outputs.values())
    remark = f"; {planned.estimate.remark}" if planned.estimate.remark else ""
    sheet = "as much again for the zip, and its contact sheet"
    return f"about {total} of artifacts, {sheet} ({parts} a sample{remark})"

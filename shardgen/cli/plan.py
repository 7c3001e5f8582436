"""`shardgen plan`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from shardgen.cli import render
from shardgen.cli.options import HERE, Backgrounds, Foregrounds, RunDir, parse_rate, typed
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.plan import Plan
from shardgen.domain.wording import counted
from shardgen.settings.run_directory import GivenFolders, RunDirectory

if TYPE_CHECKING:
    from shardgen.operations.plan import Planned


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
) -> None:
    """Check every source, print what will be made, write the plan.

    Prints how many samples, how many bytes and how long.
    Fetches missing nyu/kitti weights. Makes no samples yet; safe to repeat.

    \b
    Example:
      shardgen plan people --rate 6.4
    """
    planned = make_plan_with_progress(
        RunDirectory.open(run_dir), GivenFolders(foregrounds=foregrounds, backgrounds=backgrounds)
    )
    render.stdout().print(plan_view(planned, rate))
    if planned.plan.depth.weights.is_random:
        render.say(
            f"NOT DEPTH: the weights are {planned.plan.depth.weights.name}: depth images will be noise"
        )
    named = typed(run_dir)
    render.say(f"Next: `shardgen preview {named}` (check the pictures), then `shardgen run {named}`.")


def make_plan_with_progress(run: RunDirectory, given: GivenFolders) -> Planned:
    """Plan, with a bar for the sources and for a download; warnings and notes on stderr."""
    from shardgen.operations.plan import PlanEvents, make_plan

    with render.progress_bar("reading sources") as bar:
        files = bar.add_task("files", total=None)
        planned = make_plan(
            run,
            given,
            events=PlanEvents(
                on_file=lambda _name: bar.advance(files),
                on_download=render.add_download(bar, run.settings.depth.weights, visible=False),
            ),
        )
    for line in planned.inventory.warnings:
        render.say(f"warning: {line}")
    for line in planned.inventory.notes:
        render.say(f"note: {line}")
    return planned


def plan_view(planned: Planned, rate: float | None) -> RenderableType:
    """The printed plan."""
    plan, layout, weights = planned.plan, planned.plan.layout, planned.plan.depth.weights
    backgrounds, foregrounds = len(plan.sources.backgrounds), len(plan.sources.foregrounds)
    columns, rows = plan.compose.grid
    flips = f" x {plan.flip_count} flips ({plan.compose.flips.value})" if plan.flip_count > 1 else ""
    shards = [ShardIndex(shard) for shard in range(layout.shard_count)]
    slices = sum(map(layout.slice_count, shards))
    batches = counted(layout.batch_count, "batch")
    facts = [
        ("samples", f"{plan.samples:,}"),
        (
            "made of",
            f"{backgrounds:,} backgrounds x {foregrounds:,} foregrounds{flips} x {columns}x{rows} places",
        ),
        ("masks", _mask_modes(planned)),
        (
            "shards",
            f"{layout.shard_count:,} of {min(plan.shards.size, plan.samples):,} samples"
            + (f", the last of {len(layout.shard_samples(shards[-1])):,}" if shards[1:] else ""),
        ),
        ("slices, batches", f"{counted(slices, 'slice')}, {batches} of {plan.shards.batch}"),
        ("network", _network(plan)),
        ("bytes expected", _bytes(planned)),
        ("time", f"{render.duration(plan.samples / rate)} at {rate:g} samples/s" if rate else _ASK_RATE),
        ("fingerprint", plan.fingerprint),
    ]
    if weights.is_random:
        facts.insert(6, ("NOT DEPTH", "the weights are random: depth images will be noise"))
    return render.table(["plan", "NEW" if planned.is_new else "as it was"], facts, left=True)


def _network(plan: Plan) -> str:
    depth, weights = plan.depth, plan.depth.weights
    activations = f"{counted(weights.activations, 'activation')} per up block"
    parts = [f"{depth.model} {weights.name}", f"decoder width {weights.decoder_width}", activations]
    parts += [f"{depth.upsampling.value} upsampling", depth.precision.value, f"sha256 {weights.sha256[:12]}…"]
    return ", ".join(parts)


def _bytes(planned: Planned) -> str:
    estimate = planned.estimate
    total = render.size(estimate.sample_bytes * planned.plan.samples)
    kinds = f"{estimate.fgbg_bytes:,.0f} + {estimate.mask_bytes:,.0f} + {estimate.depth_bytes:,.0f}"
    return f"about {total} of artifacts, as much again for the zip ({kinds} a sample; depth is a guess)"


def _mask_modes(planned: Planned) -> str:
    counts = Counter(foreground.mask.value for foreground in planned.plan.sources.foregrounds)
    return ", ".join(f"{count} by {mode}" for mode, count in sorted(counts.items()))

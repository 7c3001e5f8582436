"""`shardgen demo`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgen.cli import render
from shardgen.domain.wording import duration
from shardgen.errors import explained

if TYPE_CHECKING:
    from shardgen.settings.run_directory import RunDirectory


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder, or the folder of an earlier demo.")
    ] = Path("shardgen-demo"),
) -> None:
    """Try everything out on real photographs, in minutes.

    Plans, starts two workers, kills one of them half-way, merges, verifies.
    Needs pip install -e ".[demo]", and no network. Makes 96 samples in about two minutes on two cores.

    \b
    Example:
      shardgen demo
    """
    began, numbers = time.monotonic(), itertools.count(1)

    def step(text: str) -> None:
        render.stdout().print(f"\n[{next(numbers)}/6] {text}")

    step("Photographs: an astronaut, a cat, a cup to cut out; a temple, a flower, a garage, a rocket.")
    from shardgen.operations.demo import prepare

    run = prepare(folder)
    with explained(run.named):
        has_findings = _tell(run, folder, step)
    took = duration(time.monotonic() - began)
    render.stdout().print(f"done in {took}. Next, with your own photographs: shardgen init --help")
    if has_findings:
        raise typer.Exit(21)


def _tell(run: RunDirectory, folder: Path, step: Callable[[str], None]) -> bool:
    """All but the first step; returns whether the zip is not what it should be."""
    from shardgen.cli.plan import make_plan_with_progress, plan_view
    from shardgen.cli.progress import doing
    from shardgen.cli.run import showing
    from shardgen.cli.status_view import status_view
    from shardgen.domain.progress import STARTING
    from shardgen.operations.demo import WEIGHTS, extract_contact_sheet, work
    from shardgen.operations.merge import merge_run
    from shardgen.operations.status import report
    from shardgen.operations.verify import check

    out = render.stdout()
    step("Plan: read and cut out every photograph (grabcut); print what will be made, and how big.")
    planned = make_plan_with_progress(run, {})
    run = run.planned(planned.plan)
    out.print(plan_view(planned, None))
    out.print(
        f"This demo uses the small depth network that comes with shardgen ({WEIGHTS}), for trials.\n"
        "For a data set use the released weights: shardgen weights fetch nyu."
    )
    step("Work: two workers, one core each; kill one of them halfway, like a lost runtime.")
    with doing(STARTING, keeps_last=True) as line:
        killer = work(run, planned.plan, say=render.say, on_look=showing(line, since=report(run)))
    if killer.taken_over_after is not None:
        out.print(
            "The other worker took over its slice at once: at most 3 batches were made twice, none was lost."
        )
    step("Status: planned = stored + dead letters + pending, always.")
    out.print(status_view(report(run)))
    step("Merge: one zip with labels, a contact sheet and the statistics of the pixels as stored.")
    result = merge_run(run, folder / "demo.zip", allow_dead_letters=False)
    render.result_is_a_file()
    out.print(render.merge_view(result))
    step("Verify: check every CRC, every name and every pixel's statistics, from the zip alone.")
    found = check(result.path)
    render.echo_findings(found)
    sheet = extract_contact_sheet(result.path, folder)
    render.echo(f"\ncontact sheet: {sheet}")
    render.echo(f"data set:      {result.path}")
    return bool(found.findings)

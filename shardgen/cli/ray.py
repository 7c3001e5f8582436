"""`shardgen ray`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from shardgen.cli import render
from shardgen.cli.merge import show_merged
from shardgen.cli.options import (
    HERE,
    AllowDeadLetters,
    Backgrounds,
    Foregrounds,
    Output,
    Pictures,
    RunDir,
    given_folders,
)
from shardgen.cli.progress import doing, opening
from shardgen.cli.run import finish, plan_and_open, showing
from shardgen.domain.progress import STARTING
from shardgen.errors import InputMissing


def ray(
    *,
    run_dir: RunDir = HERE,
    address: Annotated[
        str,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="The cluster; auto: $RAY_ADDRESS, or the one that this machine is part of.",
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            max=4096,
            help="Worker processes, spread over the cluster; those that find no room wait for more nodes.",
            show_default="one per GPU, else one per node",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker",
            metavar="N",
            min=0,
            max=1,
            help="GPUs that each worker reserves: 0 for none; with 0.5, two share one.",
            show_default="1 if there are GPUs",
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None,
        typer.Option(
            "--cpus-per-worker",
            metavar="N",
            min=1,
            help="CPUs that each worker reserves and uses.",
            show_default="an even share of its node's",
        ),
    ] = None,
    output: Output = None,
    allow_dead_letters: AllowDeadLetters = False,
    foregrounds: Foregrounds = None,
    backgrounds: Backgrounds = None,
    pictures: Pictures = None,
) -> None:
    """Plan if needed, make everything on a Ray cluster, merge.

    Type it on a node of the cluster, or put `ray job submit --` in front. Starts workers on every node,
    including nodes that join later, and restarts lost ones. If anything stops it, run it again: it continues
    where it stopped. A second one on the same run joins in.

    With several nodes, the run must be in a bucket, or in PostgreSQL with artifacts that all nodes can reach.

    \b
    Example:
      shardgen ray people -o people.zip
      shardgen ray people --workers 40 -o people.zip
    """
    try:
        from shardgen.operations.ray import work_on_cluster
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        from shardgen.errors import MachineUnfit

        raise MachineUnfit("Ray is not installed", hint='python -m pip install "shardgen[ray]"') from None
    from shardgen.launch.rooms import ClusterWanted
    from shardgen.operations.plan import refuse_lost_sources

    wanted = ClusterWanted(workers=workers, gpus=gpus_per_worker, cpus=cpus_per_worker)
    given = given_folders(foregrounds=foregrounds, backgrounds=backgrounds, pictures=pictures)
    with opening():
        from shardgen.coordination.open import open_directory

        directory = open_directory(run_dir)
    opened = plan_and_open(directory, given, output)
    found = opened.report()
    if found.pending:
        with suppress(InputMissing):  # the photographs may be on other nodes only
            refuse_lost_sources(opened.run, opened.plan, given)
        with doing(STARTING, keeps_last=True) as line:
            show = showing(line, since=found)
            found = work_on_cluster(
                opened.run, address, wanted, folders=given,
                say=render.say, on_look=lambda found, _pids: show(found),
            )  # fmt: skip
    merged = finish(opened, found, output, allow_dead_letters=allow_dead_letters)
    if merged is not None:
        show_merged(merged)

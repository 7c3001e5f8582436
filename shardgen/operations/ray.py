"""Make a run on a Ray cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from shardgen.coordination.artifact_folder import open_store
from shardgen.coordination.base import OpenedRun
from shardgen.coordination.open import open_directory, open_run
from shardgen.coordination.report import Report
from shardgen.domain.wording import Say, counted
from shardgen.errors import ManifestMismatch, ShardgenError
from shardgen.launch.launcher import WorkerCommand
from shardgen.launch.ray import RayLauncher, alive_nodes, ask_nodes, connected
from shardgen.launch.rooms import ClusterWanted, Node
from shardgen.launch.supervisor import OnLook, RunOptions, run_workers
from shardgen.recipes.base import Folders
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory

# What says where the manifest, the artifacts and the photographs are, and as whom to read them; not what a
# container is given by its host for itself alone.
_PASSED_ON = re.compile(r"(?!AWS_CONTAINER_)(AWS|AZURE|GOOGLE|PG|SHARDGEN)[A-Z0-9_]*")
_ELSEWHERE = "docs/operating.md, A Ray cluster, says how"


def work_on_cluster(  # noqa: PLR0913 - which cluster, with which workers, and who watches
    run: RunDirectory,
    address: str,
    wanted: ClusterWanted,
    *,
    folders: Folders,
    say: Say,
    on_look: OnLook,
) -> Report:
    """Make what is pending with workers on the nodes of a cluster; returns the last report.

    Errors of `run_workers` and `connected`. Raises ManifestMismatch for a run that only this machine can work
    on where there are more, and MachineUnfit where no node has room.
    """
    opened = open_run(run)
    named = run.elsewhere or str(run.path.absolute())
    with connected(address):
        nodes = alive_nodes()
        _refuse_unshared(opened, named, nodes)
        launcher = RayLauncher(
            WorkerCommand(
                run_dir=named, folders={kind: folder.absolute() for kind, folder in folders.items()}
            ),
            wanted.for_recipe(recipe_of(opened.plan).demand(run.local), computes=run.local is not None),
            say=say,
            passed_on=_passed_on(run),
            only_here=bool(opened.why_one_machine),
        )
        found = run_workers(run, opened.plan, launcher, RunOptions(), say=say, on_look=on_look)
    return opened.report() if found.pending else found


def _refuse_unshared(opened: OpenedRun, named: str, nodes: Sequence[Node]) -> None:
    if len(nodes) < 2:
        return
    if opened.why_one_machine:
        raise ManifestMismatch(
            f"the cluster has {counted(len(nodes), 'node')}, and {opened.why_one_machine}",
            hint=f"move the run to a bucket or to PostgreSQL: {_ELSEWHERE}",
        )
    if (identity := opened.claim_artifacts()) is None:
        return
    there = ask_nodes(nodes, artifacts_of, named)
    if lacking := sorted({node.name for node, found in there if found != identity}):
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise ManifestMismatch(
            f"{opened.run.artifacts}: not the artifact folder on {shown}, of {counted(len(nodes), 'node')}",
            hint="mount it and the run directory under the same paths on every node; or put the artifacts "
            f"in a bucket: {_ELSEWHERE}",
        )


def artifacts_of(run_dir: str) -> str | None:
    """On a node: which folder the artifacts of a run would lie in there; None if in none."""
    try:
        return open_store(open_directory(Path(run_dir))).identity()
    except ShardgenError:
        return None


def _passed_on(run: RunDirectory) -> dict[str, str]:
    """The variables that a worker on another node needs to find and read what this machine does."""
    named = run.settings.named_variables
    return {name: value for name, value in os.environ.items() if name in named or _PASSED_ON.fullmatch(name)}

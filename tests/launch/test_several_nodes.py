"""Runs that several nodes of a cluster cannot make, found out without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.coordination.open import open_run
from shardgen.errors import ManifestMismatch
from shardgen.launch.rooms import Node
from tests.runs import make_run, plan_run

pytestmark = pytest.mark.slow  # to import Ray takes seconds


@pytest.mark.parametrize(
    ("url", "why"), [("sqlite", "SQLite manifest is for one machine"), ("folder:", "watches its own workers")]
)
def test_a_manifest_that_shows_the_workers_of_one_machine_is_for_one_node(
    tmp_path: Path, url: str, why: str
) -> None:
    from shardgen.operations.ray import _refuse_unshared  # noqa: PLC0415

    changes = {"manifest.url": f'"{url}"'} if url == "folder:" else {}
    run = plan_run(make_run(tmp_path, changes=changes))
    nodes = [Node(id=name, name=name, cpus=1, gpus=0, memory=0) for name in "ab"]
    _refuse_unshared(open_run(run), run.named, nodes[:1])
    with pytest.raises(ManifestMismatch, match=f"has 2 nodes, and .*{why}"):
        _refuse_unshared(open_run(run), run.named, nodes)

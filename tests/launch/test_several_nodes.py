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


def test_workers_get_the_variables_that_say_where_and_as_whom_but_not_a_containers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardgen.operations.ray import _passed_on  # noqa: PLC0415

    url = '"postgresql+psycopg://${DB_PLACE}/people"'
    run = make_run(tmp_path, changes={"manifest.url": url})
    passed = {"DB_PLACE": "server", "AWS_REGION": "eu", "PGUSER": "anna", "SHARDGEN_PICTURES": "/pictures"}
    kept = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/mine", "RAY_ADDRESS": "here:1", "DB_OTHER": "x"}
    for name, value in (passed | kept).items():
        monkeypatch.setenv(name, value)
    found = _passed_on(run)
    assert passed.items() <= found.items()
    assert not kept.keys() & found.keys()

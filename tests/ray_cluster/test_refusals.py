"""What `shardgen ray` refuses on a cluster, once however many workers find it; see test_by_hand.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardgen.launch.launcher import LAST_WORDS
from shardgen.settings.run_directory import RunDirectory
from tests.ray_cluster.cluster import LocalCluster, begin
from tests.ray_cluster.conftest import ClusterRun

pytestmark = pytest.mark.slow


def errors(said: str) -> list[str]:
    """Those of shardgen, not what Ray's own code writes."""
    return [line for line in said.splitlines() if LAST_WORDS.match(line)]


def test_a_sqlite_manifest_is_for_one_node(cluster: LocalCluster, run: RunDirectory, tmp_path: Path) -> None:
    arguments: list[str | Path] = ["ray", run.path, "--address", cluster.address]
    with begin(arguments, tmp_path / "said", cluster.environment) as driver:
        assert driver.wait() == 13
    error, hint = errors(driver.said)
    assert error == "error: the cluster has 3 nodes, and a SQLite manifest is for one machine"
    assert "PostgreSQL" in hint


def test_a_node_that_does_not_see_the_artifacts_is_named_before_anything_is_made(
    on_cluster: ClusterRun,
) -> None:
    on_cluster.run.artifacts.mkdir(exist_ok=True)
    with on_cluster.cluster.elsewhere(hidden=on_cluster.run.artifacts):
        driver = on_cluster.begin()
        assert driver.wait() == 13, driver.said
    error, hint = errors(driver.said)
    assert error.startswith(f"error: {on_cluster.run.artifacts}: not the artifact folder on ")
    assert error.endswith("of 4 nodes")
    assert "mount it and the run directory" in hint
    assert not (on_cluster.folder / "begun").exists()


def test_other_photographs_are_refused_once_for_all_workers(on_cluster: ClusterRun) -> None:
    changed = next((on_cluster.folder / "sources" / "backgrounds").iterdir())
    changed.write_bytes(changed.read_bytes() + b"\0")
    driver = on_cluster.begin()
    assert driver.wait() == 14, driver.said
    said = errors(driver.said)
    assert sum(changed.name in line for line in said) == 1
    assert "2 of 2 workers ended with exit code" in said[-2]
    assert len(said) == 4


def test_a_node_with_another_version_is_refused_once(on_cluster: ClusterRun, tmp_path: Path) -> None:
    old = tmp_path / "old" / "shardgen-0.0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: shardgen\nVersion: 0.0.1\n", encoding="utf-8")
    path = f"{old.parent}{os.pathsep}{on_cluster.cluster.environment['PYTHONPATH']}"
    on_cluster.cluster.add(environment={"PYTHONPATH": path})
    on_cluster.hurry()
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    assert driver.wait() == 0, driver.said  # the others make it
    error, hint = errors(driver.said)
    assert "has shardgen 0.0.1, and this machine has" in error
    assert hint.endswith("install the same version on every node")


def test_a_node_without_shardgen_is_refused_once(on_cluster: ClusterRun, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['shardgen'] = None\n", encoding="utf-8"
    )
    for node in on_cluster.cluster.nodes:
        on_cluster.cluster.remove(node)
    for _ in range(2):
        on_cluster.cluster.add(environment={"PYTHONPATH": str(tmp_path / "without")})
    driver = on_cluster.begin()
    code = driver.wait()
    for node in on_cluster.cluster.nodes:
        on_cluster.cluster.remove(node)
    assert code in (13, 14), driver.said
    assert len(errors(driver.said)) in (2, 4), driver.said


def test_a_port_of_another_server_is_no_cluster(
    cluster: LocalCluster, run: RunDirectory, tmp_path: Path
) -> None:
    port = cluster.raylet_port
    arguments: list[str | Path] = ["ray", run.path, "--address", f"127.0.0.1:{port}"]
    with begin(arguments, tmp_path / "said", cluster.environment) as driver:
        assert driver.wait(90) == 11
    assert len(errors(driver.said)) == 2

"""A run on a cluster loses an actor and a node, and gets a new one: the same zip, and little made twice."""

from __future__ import annotations

import psutil
import pytest

from tests.ray_cluster.conftest import ClusterRun

pytestmark = pytest.mark.slow


def test_a_run_outlives_the_loss_of_an_actor_and_of_a_node_and_uses_a_new_one(
    on_cluster: ClusterRun, alone: str
) -> None:
    cluster = on_cluster.cluster
    assert cluster.strangers() == []
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for_both()
    psutil.Process(on_cluster.workers()[0].ppid()).kill()
    driver.wait_for(r"worker-\d\] was lost")
    on_cluster.wait_for_more(40)
    cluster.remove(cluster.nodes[0], graceful=False)
    driver.wait_for("is gone")
    on_cluster.wait_for_more(40)
    on_cluster.wait_for_a_batch_of(on_cluster.worker_on(cluster.add()))
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    on_cluster.assert_whole(alone, losses=2)

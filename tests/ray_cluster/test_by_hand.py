"""What may happen to a run on a cluster, one thing at a time; collected where SHARDGEN_TEST_RAY is set."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.bucket.servers import Store
from tests.ray_cluster.cluster import LocalCluster, raylet_of, wait_until
from tests.ray_cluster.conftest import SETTINGS, ClusterRun
from tests.runs import make_run, plan_run, sha256_of

pytestmark = pytest.mark.slow
_OURS = re.compile(
    r"starting the workers$|[\d ]+ %  |2 workers on |\[worker-[01]\] |[\d,]+ of 1,600 |.*made\.zip"
    r"|[\d,]+ samples stored|$|images|fgbg|mask"
)


def test_an_undisturbed_run_says_nothing_of_ray(on_cluster: ClusterRun, alone: str) -> None:
    on_cluster.hurry()
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    assert driver.wait() == 0, driver.said
    on_cluster.assert_whole(alone, losses=0)
    strange = [line for line in driver.said.splitlines() if not _OURS.match(line)]
    assert strange == []


def test_an_actor_that_is_killed_comes_back(on_cluster: ClusterRun, alone: str) -> None:
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for_both()
    orphan = on_cluster.workers()[0]
    psutil.Process(orphan.ppid()).kill()
    driver.wait_for(r"worker-\d\] was lost")
    wait_until(lambda: not orphan.is_running(), lambda: "it outlives its actor")
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    assert driver.said.count("starts on") == 3
    on_cluster.assert_whole(alone, losses=1)


def test_a_worker_that_is_killed_is_started_again(on_cluster: ClusterRun, alone: str) -> None:
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for_both()
    on_cluster.workers()[0].kill()
    driver.wait_for(r"worker-\d\] was killed by signal 9 on .*another worker takes over")
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    assert driver.said.count("starts on") == 3
    on_cluster.assert_whole(alone, losses=1)


@pytest.mark.parametrize("graceful", [True, False], ids=["removed", "killed"])
def test_a_node_that_goes_takes_its_worker_with_it(
    on_cluster: ClusterRun, alone: str, *, graceful: bool
) -> None:
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for_both()
    on_cluster.cluster.remove(on_cluster.cluster.nodes[0], graceful=graceful)
    driver.wait_for("is gone")
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    on_cluster.assert_whole(alone, losses=1)


def test_a_raylet_that_is_killed_takes_its_worker_with_it(on_cluster: ClusterRun, alone: str) -> None:
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for_both()
    lost = on_cluster.cluster.nodes[0]
    os.kill(raylet_of(lost), signal.SIGKILL)
    driver.wait_for("is gone")
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    on_cluster.cluster.remove(lost)
    on_cluster.assert_whole(alone, losses=1)


def test_a_node_that_joins_gets_a_worker(on_cluster: ClusterRun, alone: str) -> None:
    driver = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for_both()
    on_cluster.wait_for_a_batch_of(on_cluster.worker_on(on_cluster.cluster.add()))
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    assert "joined" in driver.said
    on_cluster.assert_whole(alone, losses=0)


def test_a_driver_that_is_killed_takes_its_workers_with_it_and_goes_on_when_begun_again(
    on_cluster: ClusterRun, alone: str
) -> None:
    first = on_cluster.begin()
    on_cluster.wait_for_both()
    first.kill()
    on_cluster.assert_nothing_is_left()
    stored = on_cluster.report().stored
    second = on_cluster.begin("-o", on_cluster.folder / "made.zip")
    on_cluster.hurry()
    assert second.wait() == 0, second.said
    assert stored > 0
    on_cluster.assert_whole(alone, losses=2)  # both of its workers


def test_ctrl_c_stops_the_workers_as_run_does(on_cluster: ClusterRun) -> None:
    driver = on_cluster.begin()
    on_cluster.wait_for_both()
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == 130, driver.said
    on_cluster.assert_nothing_is_left()
    found = on_cluster.report()
    assert sum(shard.slices.leased + shard.slices.expired for shard in found.overview.shards) == 0
    assert {one.row.state.value for one in found.workers} == {"stopped"}
    assert "error:" not in driver.said


@pytest.mark.parametrize("moment", ["start", "wait", "dying"])
def test_ctrl_c_ends_it_at_any_moment(on_cluster: ClusterRun, moment: str) -> None:
    options = ("--workers", "2", "--cpus-per-worker", "64") if moment == "wait" else ()
    driver = on_cluster.begin(*options)
    if moment == "start":
        wait_until(lambda: "ray/_raylet" in maps_of(driver.process.pid), lambda: driver.said)
    elif moment == "wait":
        driver.wait_for("waiting for room")
    else:
        on_cluster.wait_for_both()
        on_cluster.cluster.remove(on_cluster.cluster.nodes[0], graceful=False)
    began = time.monotonic()
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130, driver.said
    assert time.monotonic() - began < 45
    on_cluster.assert_nothing_is_left()
    assert "Traceback" not in driver.said


def maps_of(pid: int) -> str:
    """What a process has loaded."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def test_a_second_command_joins_in(on_cluster: ClusterRun, alone: str) -> None:
    first = on_cluster.begin("--workers", "1", "-o", on_cluster.folder / "made.zip")
    on_cluster.wait_for(lambda found: found.stored > 0)
    second = on_cluster.begin("-o", on_cluster.folder / "second.zip")  # one of its two finds a place
    on_cluster.wait_for_both()
    assert second.said.count("starts on") == 1
    on_cluster.hurry()
    assert second.wait() == 0, second.said
    assert first.wait() == 0, first.said
    assert sha256_of(on_cluster.folder / "second.zip") == alone
    on_cluster.assert_whole(alone, losses=0)


def test_workers_without_room_wait_and_the_run_ends_all_the_same(on_cluster: ClusterRun, alone: str) -> None:
    driver = on_cluster.begin("--workers", "5", "-o", on_cluster.folder / "made.zip")
    driver.wait_for("3 workers waiting for room")
    on_cluster.hurry()
    assert driver.wait() == 0, driver.said
    assert driver.said.count("waiting for room") == 1
    on_cluster.assert_whole(alone, losses=0)


def test_a_run_in_a_bucket_needs_no_folder_that_nodes_share(
    cluster: LocalCluster,
    bucket_servers: Callable[[str], Store],
    tmp_path: Path,
    alone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = bucket_servers("moto")
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    url = store.new_url()
    run = plan_run(make_run(tmp_path, changes=SETTINGS | {"manifest.url": f'"{url}"'}))
    environment = cluster.environment | {"SHARDGEN_TEST_BEGUN": str(tmp_path / "begun")}
    (tmp_path / "begun.slow").touch()
    with ExitStack() as stack:
        made = ClusterRun(cluster, url, run, tmp_path, environment, stack)
        driver = made.begin("-o", tmp_path / "made.zip")
        made.wait_for_both()
        cluster.remove(cluster.nodes[0], graceful=False)
        made.hurry()
        assert driver.wait() == 0, driver.said
        made.assert_whole(alone, losses=1)

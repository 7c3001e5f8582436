from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from shardgen.depth.device import Device
from shardgen.depth.families import find_family
from shardgen.errors import MachineUnfit
from shardgen.launch.allocation import Wanted, settle_workers
from shardgen.machine.cores import schedulable_cores, threads_each, usable_cores
from shardgen.recipes.network import agree_micro_batch, network_choice
from shardgen.settings.run_directory import RunDirectory
from tests.plans import depth_in
from tests.runs import make_run, plan_run


def test_more_workers_than_memory_holds_are_fewer_and_it_says_so(run: RunDirectory) -> None:
    said: list[str] = []
    wanted = Wanted(workers=100_000, device="cpu")
    settled = settle_workers(run, run.plan(), wanted, (), say=said.append)
    total_gib = psutil.virtual_memory().total / 2**30
    assert 1 <= len(settled) <= total_gib / 0.6  # TensorFlow alone takes that much a process
    assert "(not 100000: memory)" in said[0]
    assert "GiB" in said[0]


def test_the_first_worker_decides_the_micro_batch_for_its_device_model(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes={"depth.micro_batch": '"auto"'})
    run = plan_run(run)
    plan = run.plan()
    with run.manifest(plan) as manifest:
        assert manifest.micro_batches.agreed("some CPU", 2) == 2
        assert manifest.micro_batches.agreed("some CPU", 1) == 2
        assert manifest.micro_batches.agreed("another CPU", 1) == 1


def test_a_given_micro_batch_that_memory_did_not_suffice_for_is_not_tried_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes={"depth.micro_batch": "8"})
    run = plan_run(run)
    plan, on = run.plan(), Device(kind="cpu", model="some CPU", library="tensorflow", version="2")
    choice, depth = network_choice(run.local), depth_in(plan)
    network = find_family(depth.model).find(choice)
    with run.manifest(plan) as manifest:
        assert agree_micro_batch(
            choice.micro_batch, depth, manifest.micro_batches, on=on, network=network
        ) == (8, "")
        manifest.micro_batches.shrink("some CPU", 2)
        manifest.micro_batches.shrink("some CPU", 4)
        agreed, remark = agree_micro_batch(
            choice.micro_batch, depth, manifest.micro_batches, on=on, network=network
        )
    assert (agreed, remark) == (2, "micro-batch 2, not 8: memory ran out before")


def test_cores_are_split_between_workers(run: RunDirectory) -> None:
    said: list[str] = []
    shares = settle_workers(run, run.plan(), Wanted(workers=2, device="cpu"), (), say=said.append)
    assert [share.threads for share in shares] == [threads_each(usable_cores(), 2)] * 2
    assert " each of " in said[0]
    assert re.search(r", \d+ (?:or \d+ )?threads? each$", said[0])
    alone = settle_workers(run, run.plan(), Wanted(device="cpu"), (), say=said.append)
    limited = usable_cores() < schedulable_cores()
    assert [share.threads for share in alone] == [usable_cores() if limited else 0]


@pytest.mark.slow
def test_a_network_that_no_memory_holds_is_refused_before_anything_starts(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes={"depth.micro_batch": "1024", "depth.input": "[4096, 4096]"})
    run = plan_run(run)
    with pytest.raises(MachineUnfit, match="GiB"):
        settle_workers(run, run.plan(), Wanted(device="cpu"), (), say=lambda _line: None)

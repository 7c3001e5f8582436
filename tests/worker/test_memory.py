from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth.densedepth import network as module
from shardgen.depth.densedepth.network import GraphShape, build_network
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.depth.device import describe_cpu
from shardgen.depth.estimator import DepthEstimator
from shardgen.domain.identifiers import SampleIndex
from shardgen.errors import DepthBackendUnavailable
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import Worker, WorkerOptions, WorkOutcome
from tests.logged import logged
from tests.runs import make_run, plan_run, shardgen
from tests.worker.parts import CPU, load_network, open_composer

pytestmark = pytest.mark.slow
AGREED = 8
Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned run whose first worker found room for a micro-batch of 8."""
    folder = tmp_path_factory.mktemp("memory")
    run = make_run(folder, changes={"depth.micro_batch": '"auto"', "shards.batch": "8"})
    run = plan_run(run)
    with run.manifest(run.plan()) as manifest:
        assert manifest.micro_batches.agreed(describe_cpu(), AGREED) == AGREED
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(template, path)
    work(RunDirectory.open(path))
    return merged(path)


@pytest.fixture
def run(template: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(template, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


@dataclass
class Device:
    """A device with memory for `largest` images, after `calls` more calls; the network is real."""

    largest: int
    calls: int = 0

    def build(self, weights: WeightsFile, shape: GraphShape) -> Callable[[Images], NDArray[np.float32]]:
        network = build_network(weights, shape)

        def run_network(images: Images) -> NDArray[np.float32]:
            self.calls -= 1
            if self.calls < 0 and len(images) > self.largest:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            found: NDArray[np.float32] = network(images)
            return found

        return run_network


def work(run: RunDirectory) -> tuple[WorkOutcome, list[str]]:
    said: list[str] = []
    options = WorkerOptions(device=CPU)
    with logged(said.append):
        return Worker(run, options).work(), said


def merged(path: Path) -> dict[str, bytes]:
    done = shardgen("merge", path)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(path / "dataset.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def remembered(run: RunDirectory, *, threads: int = 0) -> int:
    with run.manifest(run.plan()) as manifest:
        return manifest.micro_batches.agreed(describe_cpu(threads), 99)


@pytest.mark.parametrize("calls", [0, 4], ids=["at its start", "in the middle"])
@pytest.mark.parametrize("largest", [4, 2, 1])
def test_out_of_memory_shrinks_the_micro_batch_and_loses_nothing(
    run: RunDirectory,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    largest: int,
    calls: int,
) -> None:
    monkeypatch.setattr(module, "build_network", Device(largest, calls).build)
    outcome, said = work(run)
    assert outcome.samples_done == 48
    assert f"out of memory: micro-batch {largest} instead of {AGREED} from now on" in said
    assert remembered(run) == largest
    found = merged(run.path)
    assert set(found) == set(undisturbed)
    for name, data in undisturbed.items():
        if not name.startswith("depth/") and name not in ("stats.json", "contact_sheet.png"):
            assert found[name] == data, name
    document = json.loads(shardgen("status", run.path, "--json").stdout)
    made_by = {one["micro_batch"]: one["batches"] for one in document["mixture"]}
    if calls:
        assert set(made_by) == {AGREED, largest}
        assert sum(made_by.values()) == 7
        shown = shardgen("run", run.path)  # nothing is left to make: it reports and merges
        assert shown.returncode == 0, shown.stderr
        assert f"micro-batch {largest}" in shown.stderr
        assert not any(b"micro" in data for name, data in found.items() if "/" not in name)
    else:
        assert made_by == {}


def test_the_next_worker_starts_with_what_is_remembered_and_says_so(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "build_network", Device(2, 4).build)
    work(run)
    _, said = work(run)
    assert any(line.startswith("network ") and "micro-batch 2" in line for line in said)
    assert not any("out of memory" in line for line in said)


def test_without_memory_for_one_image_the_slice_is_given_back_and_nothing_is_lost(
    run: RunDirectory, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "build_network", Device(0, 4).build)
        with pytest.raises(DepthBackendUnavailable, match="not enough memory for one image"):
            work(run)
    with sqlite3.connect(run.path / "manifest.sqlite") as connection:
        slices = connection.execute("SELECT state, deaths FROM slice WHERE state != 'done'").fetchall()
        assert slices == [("open", 0)]
        assert connection.execute("SELECT count(*) FROM dead_letter").fetchall() == [(0,)]
        connection.execute("UPDATE micro_batch SET micro_batch = ?", (AGREED,))  # the device is free again
    work(run)
    found = merged(run.path)
    assert {name for name in found if "/" in name} == {name for name in undisturbed if "/" in name}


def test_depth_differs_by_one_grey_level_at_most_between_micro_batches(template: Path) -> None:
    run = RunDirectory.open(template)
    composer = open_composer(run)
    images = [composer.compose(SampleIndex(sample)).network_input for sample in range(24)]
    estimator = load_network(run)
    assert isinstance(estimator, DepthEstimator)
    greys = []
    for micro_batch in (8, 4, 2, 1):
        estimator._micro_batch = micro_batch
        raw = estimator.outputs(images)
        depth = np.stack([estimator.depth_of(one) for one in raw if one is not None]).astype(np.float64)
        low, high = depth.min(axis=(1, 2), keepdims=True), depth.max(axis=(1, 2), keepdims=True)
        greys.append(255 * (depth - low) / (high - low))
    for other in greys[1:]:
        assert np.abs(other - greys[0]).max() <= 1


def test_workers_that_do_not_fit_with_a_micro_batch_of_two_take_one(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardgen.launch import allocation  # noqa: PLC0415

    plan = run.plan()
    demand = recipe_of(plan).demand(run.local)
    two, one = map(demand.bytes_for, demand.micro_batches)
    assert one < two
    with sqlite3.connect(run.path / "manifest.sqlite") as connection:
        connection.execute("DELETE FROM micro_batch")
    monkeypatch.setattr(allocation, "free_bytes", lambda: 3 * one)
    said: list[str] = []
    wanted = allocation.Wanted(workers=3, device="cpu", threads_per_worker=1)
    settled = allocation.settle_workers(run, plan, wanted, (), say=said.append)
    assert len(settled) == 3
    assert remembered(run, threads=1) == 1
    assert said[0].startswith("3 workers, micro-batch 1, about ")
    monkeypatch.setattr(allocation, "free_bytes", lambda: 3 * one - 1)
    settled = allocation.settle_workers(run, plan, wanted, (), say=said.append)
    assert len(settled) == 2
    assert said[1].startswith("2 workers (not 3: memory), micro-batch 1, about ")

from __future__ import annotations

import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shardgen.artifacts.folder_store import FolderStore
from shardgen.depth.base import Estimator, Picture, RawOutput
from shardgen.depth.estimator import DepthEstimator
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.lease import NoLease
from shardgen.domain.overview import ShardState
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, DeadLetterReason
from shardgen.domain.steps import BatchStep, Step
from shardgen.domain.worker import WorkerState
from shardgen.errors import (
    ComposeFailed,
    DepthBackendUnavailable,
    DeviceBroken,
    LeaseLost,
    RunHasHoles,
    SliceFailed,
)
from shardgen.machine.processes import new_identity
from shardgen.manifest.port import Manifest
from shardgen.operations.merge import merge_run
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import make_folders
from shardgen.worker.batch import BatchMaker, Stages
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.pipeline import Pipeline
from tests.depth.queued_device import QueuedDevice
from tests.plans import depth_in
from tests.runs import coordinated, make_run, plan_run
from tests.worker.parts import load_network, maker_of, open_composer

POISONED = SampleIndex(9)  # in batch 2, place 1


@pytest.fixture(scope="module")
def estimator(planned_template: Path) -> Estimator:
    run = RunDirectory.open(planned_template / "run")
    return load_network(run)


class FaultyComposer(Composer):
    """Raises for one sample, as a bug or a broken photograph would."""

    def compose(self, sample: SampleIndex) -> ComposedSample:
        if sample == POISONED:
            raise ComposeFailed("made to fail") from ZeroDivisionError("the cause")
        return super().compose(sample)


class FaultyEstimator:
    """The real network, but it raises whenever a marked image is among its inputs."""

    def __init__(self, real: Estimator, *marked: NDArray[np.uint8], non_finite: bool = False) -> None:
        self._real = real
        self._marked = marked
        self._non_finite = non_finite
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def outputs(self, pictures: Sequence[Picture | None], **options: Any) -> list[RawOutput | None]:
        self.calls += 1
        is_bad = [
            picture is not None and any(np.array_equal(picture, one) for one in self._marked)
            for picture in pictures
        ]
        if any(is_bad) and not self._non_finite:
            raise ZeroDivisionError("made to fail")
        found = self._real.outputs(pictures, **options)
        nothing = np.full((1, 1), np.nan, np.float32)
        return [nothing if bad else raw for raw, bad in zip(found, is_bad, strict=True)]


def make_everything(run: RunDirectory, plan: Plan, stages: Callable[[Manifest, Heartbeat], Stages]) -> None:
    """Lease and make in this process, as a worker does."""
    identity = new_identity("test")
    policy = run.settings.lease_policy
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity)
        with (
            Heartbeat(coordinated(manifest, identity), policy) as heartbeat,
            BatchMaker(stages(manifest, heartbeat)) as maker,
            Pipeline(maker, begin_batch=lambda: True) as pipeline,
        ):
            while not isinstance(lease := manifest.leases.lease(identity.id, policy), NoLease):
                heartbeat.holds(lease)
                heartbeat.now_is(WorkerState.WORKING)
                assert pipeline.make(lease, manifest.receipts.pending_batches(lease))
                heartbeat.holds(None)


def stages_of(
    run: RunDirectory, plan: Plan, composer: Composer, estimator: object
) -> Callable[[Manifest, Heartbeat], Stages]:
    make_folders(run.artifacts)

    def build(manifest: Manifest, heartbeat: Heartbeat) -> Stages:
        return Stages(
            recipe=recipe_of(plan),
            maker=maker_of(plan, composer, estimator),
            store=FolderStore(run.artifacts),
            manifest=manifest,
            heartbeat=heartbeat,
            between=lambda _done: None,
        )

    return build


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def letters(run: RunDirectory, plan: Plan) -> list[DeadLetter]:
    with run.manifest(plan, read_only=True) as manifest:
        return list(manifest.receipts.dead_letters())


@contextmanager
def whole_run(planned_template: Path, tmp_path: Path, estimator: Estimator) -> Iterator[dict[str, bytes]]:
    """The members of an undisturbed run's zip."""
    path = tmp_path / "whole"
    shutil.copytree(planned_template / "run", path)
    run = RunDirectory.open(path)
    plan = run.plan()
    composer = open_composer(run)
    make_everything(run, plan, stages_of(run, plan, composer, estimator))
    yield members(merge_run(run, None, allow_dead_letters=False).path)


@pytest.mark.parametrize("stage", ["compose", "network raises", "network gives NaN"])
def test_one_bad_sample_is_one_dead_letter_and_every_other_byte_stays(
    run: RunDirectory, planned_template: Path, tmp_path: Path, estimator: Estimator, stage: str
) -> None:
    plan = run.plan()
    composer = open_composer(run, FaultyComposer if stage == "compose" else Composer)
    network: object = estimator
    if stage != "compose":
        marked = composer.compose(POISONED).network_input
        network = FaultyEstimator(estimator, marked, non_finite=stage == "network gives NaN")
    make_everything(run, plan, stages_of(run, plan, composer, network))
    (letter,) = letters(run, plan)
    assert letter.sample == POISONED
    expected = DeadLetterReason.COMPOSE if stage == "compose" else DeadLetterReason.NON_FINITE
    assert letter.reason is expected
    assert "ZeroDivisionError" in letter.detail or stage == "network gives NaN"
    with pytest.raises(RunHasHoles):
        merge_run(run, None, allow_dead_letters=False)
    found = members(merge_run(run, None, allow_dead_letters=True).path)
    with whole_run(planned_template, tmp_path, estimator) as whole:
        images = {name for name in whole if "/" in name}
        missing = {name for name in images if f"{POISONED:07d}" in name}
        assert len(missing) == 3
        assert {name for name in found if "/" in name} == images - missing
        assert all(found[name] == whole[name] for name in images - missing)
    assert found["dead_letters.csv"].decode().splitlines() == ["sample,reason", f"9,{expected.value}"]


def test_when_the_network_fails_for_every_sample_no_sample_is_blamed(
    run: RunDirectory, estimator: Estimator
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            return getattr(estimator, name)

        def outputs(self, *_: object, **__: object) -> list[RawOutput | None]:
            raise ZeroDivisionError("always")

    plan = run.plan()
    composer = open_composer(run)
    with pytest.raises(DeviceBroken, match=r"2 threads\): computing fails for every .*'always'"):
        make_everything(run, plan, stages_of(run, plan, composer, Broken()))
    assert letters(run, plan) == []


def test_when_it_fails_for_all_of_a_batch_and_not_elsewhere_the_slice_is_at_fault(
    run: RunDirectory, estimator: Estimator
) -> None:
    plan, composer = run.plan(), open_composer(run)
    inputs = [composer.compose(SampleIndex(sample)).network_input for sample in range(4)]
    network = FaultyEstimator(estimator, *inputs)
    with pytest.raises(SliceFailed, match="for every sample of a batch"):
        make_everything(run, plan, stages_of(run, plan, composer, network))
    assert letters(run, plan) == []


def test_a_failing_batch_leaves_the_one_before_it_its_receipt(
    run: RunDirectory, estimator: Estimator
) -> None:
    raised = threading.Event()

    class BreaksLater:
        batches = 0

        def __getattr__(self, name: str) -> object:
            return getattr(estimator, name)

        def outputs(self, pictures: Sequence[Picture | None], **_options: object) -> list[RawOutput | None]:
            self.batches += 1
            if self.batches == 1:
                return estimator.outputs(pictures)
            raised.set()
            raise DepthBackendUnavailable("lost")

    def on_step(step: Step) -> None:
        if step is BatchStep.ENCODED:
            assert raised.wait(60)
            time.sleep(0.2)  # the failure gets every chance to be first

    plan, identity, policy = run.plan(), new_identity("test"), run.settings.lease_policy
    composer = open_composer(run)
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity)
        with Heartbeat(coordinated(manifest, identity), policy) as heartbeat:
            build = stages_of(run, plan, composer, BreaksLater())(manifest, heartbeat)
            with (
                BatchMaker(replace(build, on_step=on_step)) as maker,
                Pipeline(maker, begin_batch=lambda: True) as pipeline,
            ):
                lease = manifest.leases.lease(identity.id, policy)
                assert not isinstance(lease, NoLease)
                with pytest.raises(DepthBackendUnavailable):
                    pipeline.make(lease, manifest.receipts.pending_batches(lease))
                # As soon as the failure is out, since the slice may be given back then.
                assert [receipt.record.batch for receipt in manifest.receipts.receipts()] == [0]


def test_a_sample_made_alone_keeps_its_place_in_its_micro_batch(
    run: RunDirectory, estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[Picture | None]] = []
    run_network = estimator._run

    def record(pictures: Sequence[Picture | None]) -> NDArray[np.float32]:
        seen.append(pictures)
        return run_network(pictures)

    monkeypatch.setattr(estimator, "_micro_batch", 3)
    monkeypatch.setattr(estimator, "_run", record)
    plan, identity = run.plan(), new_identity("test")
    composer = open_composer(run)
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity)
        heartbeat = Heartbeat(coordinated(manifest, identity), run.settings.lease_policy)
        with BatchMaker(stages_of(run, plan, composer, estimator)(manifest, heartbeat)) as maker:
            for sample in (5, 7):  # of batch 1: samples 4 to 7
                maker.make_alone(SampleIndex(sample))
    assert [[picture is not None for picture in part] for part in seen] == [[False, True, False], [True]]
    given = seen[0][1]
    assert given is not None
    assert np.array_equal(given, composer.compose(SampleIndex(5)).network_input)


@pytest.fixture
def long_run(tmp_path: Path) -> RunDirectory:
    """Its first slice has five batches of four."""
    return plan_run(make_run(tmp_path, changes={"shards.slice_batches": "5"}))


def queued(run: RunDirectory, device: QueuedDevice) -> DepthEstimator:
    return device.estimator(depth_in(run.plan()), micro_batch=3)


def test_a_device_with_a_queue_has_the_next_batch_before_it_is_asked_for_this_one(
    long_run: RunDirectory,
) -> None:
    run = long_run
    plan, composer = run.plan(), open_composer(run)
    device = QueuedDevice(seconds_per_picture=0.02)
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        if step is BatchStep.ENCODED:
            time.sleep(0.1)  # storing is slower than the device

    build = stages_of(run, plan, composer, queued(run, device))
    make_everything(run, plan, lambda *ports: replace(build(*ports), on_step=on_step))
    assert letters(run, plan) == []
    without_receipt = [
        steps[:end].count(BatchStep.PREPARED) - steps[:end].count(BatchStep.RECORDED)
        for end in range(len(steps) + 1)
    ]
    assert max(without_receipt) == 3
    in_first_slice = [what for what, _ in device.log[:20]]
    given, waited = ["given"] * 2, ["waited"] * 2  # a batch of four is two micro-batches of three
    assert in_first_slice == [*given, *(given + waited) * 4, *waited]


def test_a_bad_sample_on_a_queue_costs_no_other_of_its_batch_or_the_next(
    run: RunDirectory, tmp_path: Path
) -> None:
    plan, composer = run.plan(), open_composer(run)
    marked = composer.compose(POISONED).network_input

    def on_work(images: NDArray[np.uint8]) -> None:
        if any(np.array_equal(image, marked) for image in images):
            raise ZeroDivisionError("made to fail")

    shutil.copytree(run.path, tmp_path / "whole")
    whole = RunDirectory.open(tmp_path / "whole")
    make_everything(whole, plan, stages_of(whole, plan, composer, queued(run, QueuedDevice())))
    make_everything(run, plan, stages_of(run, plan, composer, queued(run, QueuedDevice(on_work=on_work))))
    (letter,) = letters(run, plan)
    assert (letter.sample, letter.reason) == (POISONED, DeadLetterReason.NON_FINITE)
    expected = members(merge_run(whole, None, allow_dead_letters=False).path)
    found = members(merge_run(run, None, allow_dead_letters=True).path)
    images = {name for name in expected if "/" in name and f"{POISONED:07d}" not in name}
    assert {name for name in found if "/" in name} == images
    assert all(found[name] == expected[name] for name in images)


@pytest.mark.parametrize("begun", [1, 2, 4, 5])
def test_who_is_stopped_finishes_what_is_on_the_queue_and_nothing_else(
    long_run: RunDirectory, begun: int
) -> None:
    run = long_run
    plan, identity = run.plan(), new_identity("test")
    room = iter([True] * begun + [False] * 9)
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity)
        heartbeat = Heartbeat(coordinated(manifest, identity), run.settings.lease_policy)
        stages = stages_of(run, plan, open_composer(run), queued(run, QueuedDevice(0.01)))
        lease = manifest.leases.lease(identity.id, run.settings.lease_policy)
        assert not isinstance(lease, NoLease)
        batches = manifest.receipts.pending_batches(lease)
        with (
            BatchMaker(stages(manifest, heartbeat)) as maker,
            Pipeline(maker, begin_batch=lambda: next(room)) as pipeline,
        ):
            is_whole = pipeline.make(lease, batches)
        assert is_whole == (begun == 5)
        made = [receipt.record.batch for receipt in manifest.receipts.receipts()]
        assert made == list(batches[:begun])


def test_a_slice_taken_over_in_the_middle_loses_nothing_and_changes_nothing(
    run: RunDirectory, estimator: Estimator
) -> None:
    plan = run.plan()
    composer = open_composer(run)
    identity, heir = new_identity("zombie"), new_identity("heir")
    policy = run.settings.lease_policy
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity)
        manifest.workers.register(heir)
        before: list[tuple[ShardState, ...]] = []

        def take_over(step: Step) -> None:
            if step is BatchStep.PUBLISHED and not before:
                manifest.leases.lease(heir.id, policy, gone=[identity.id])
                before.append(manifest.overview().shards)

        with Heartbeat(coordinated(manifest, identity), policy) as heartbeat:
            build = stages_of(run, plan, composer, estimator)(manifest, heartbeat)
            stages = Stages(
                **{name: getattr(build, name) for name in build.__slots__} | {"on_step": take_over}
            )
            with BatchMaker(stages) as maker, Pipeline(maker, begin_batch=lambda: True) as pipeline:
                lease = manifest.leases.lease(identity.id, policy)
                assert not isinstance(lease, NoLease)
                heartbeat.holds(lease)
                with pytest.raises(LeaseLost):
                    pipeline.make(lease, manifest.receipts.pending_batches(lease))
        assert manifest.overview().shards == before[0]
        assert list(manifest.receipts.receipts()) == []
    assert list(run.artifacts.glob("shard-*/*.zip"))  # the orphan that a zombie may leave

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import (
    Estimator,
    Network,
    NetworkPlan,
    Precision,
    Quality,
    RawOutput,
    Upsampling,
    Weights,
)
from shardgen.depth.densedepth import network as densedepth
from shardgen.depth.densedepth.family import DenseDepthNetwork
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, arithmetic_of, depth_of
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, Graph
from shardgen.errors import (
    DepthBackendUnavailable,
    DepthNotFinite,
    InvalidSettings,
    MachineUnfit,
    WeightsRefused,
)
from tests.depth.queued_device import DEVICE, QueuedDevice

WIDTH, HEIGHT = 96, 64
WEIGHTS = Weights(name="file", bytes=1, sha256="0" * 64, structure="", quality=Quality.DEPTH)
needs_bfloat16 = pytest.mark.skipif(not device.has_bfloat16(), reason="this CPU has no bfloat16")


@pytest.fixture(scope="module")
def network(narrow: WeightsFile) -> Network:
    return DenseDepthNetwork("file", narrow)


def plan_of(weights: Weights, precision: Precision = Precision.FLOAT32) -> NetworkPlan:
    return NetworkPlan(
        model="densedepth",
        weights=weights,
        input=(WIDTH, HEIGHT),
        upsampling=Upsampling.ALIGNED,
        precision=precision,
    )


def images_of(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def estimator_with(
    on: Device, *, micro_batch: int = 4, precise: bool = True, largest: int = 99, bad_below: int = 0
) -> tuple[DepthEstimator, list[tuple[int, Precision]]]:
    """Of a network that puts out 2 everywhere, unless told to fail; the fault is fake, all else is real."""
    built: list[tuple[int, Precision]] = []

    def build(micro_batch: int, precision: Precision) -> Graph:
        built.append((micro_batch, precision))

        @device.translated_errors()
        def run(images: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
            assert images.shape == (micro_batch, HEIGHT, WIDTH, 3)
            if len(images) > largest:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            raw = np.full((len(images), HEIGHT // 2, WIDTH // 2), 2, np.float32)
            if precision is not Precision.FLOAT32 or bad_below == 255:
                raw[images[:, 0, 0, 0] < bad_below] = np.inf
            return lambda: raw

        return run

    plan = plan_of(WEIGHTS, Precision.FLOAT32 if precise else Precision.FAST)
    return DepthEstimator(build, depth_of, plan, micro_batch=micro_batch, on=on), built


def depths(estimator: Estimator, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    found = [estimator.depth_of(raw) for raw in estimator.outputs(list(images)) if raw is not None]
    assert len(found) == len(images)
    return np.stack(found)


def test_relative_depth_follows_the_formula_of_densedepth() -> None:
    raw = np.array([[0.5, 1, 2, 4, 50, 100, 1000, 1e-40]], np.float32)
    expected = [1, 1, 0.5, 0.25, 0.02, 0.01, 0.01, 1]
    depth = depth_of(raw)
    np.testing.assert_allclose(depth[0], expected, rtol=1e-6)
    assert depth.dtype == np.float32


def test_outputs_of_zero_or_less_are_far() -> None:
    assert depth_of(np.array([[0, -0.0, -5, 2]], np.float32)).tolist() == [[1, 1, 1, 0.5]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_with_one_value_that_is_not_finite_is_no_depth(bad: float) -> None:
    raw = np.full((2, 2), 2, np.float32)
    raw[0, 1] = bad
    with pytest.raises(DepthNotFinite):
        depth_of(raw)


def test_the_padded_tail_gives_the_same_bytes_as_a_full_micro_batch(network: Network, cpu: Device) -> None:
    estimator = network.load(plan_of(network.weights), micro_batch=4, on=cpu)
    images = images_of(6)
    whole = depths(estimator, images)
    assert whole.shape == (6, HEIGHT // 2, WIDTH // 2)
    for stop in range(1, 6):
        np.testing.assert_array_equal(depths(estimator, images[:stop]), whole[:stop])


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_every_run_gives_the_same_bytes(network: Network, cpu: Device, micro_batch: int) -> None:
    first, second = (
        network.load(plan_of(network.weights), micro_batch=micro_batch, on=cpu) for _ in range(2)
    )
    images = images_of(2 * micro_batch)
    expected = depths(first, images)
    for _ in range(8):
        np.testing.assert_array_equal(depths(first, images), expected)
    np.testing.assert_array_equal(depths(second, images), expected)


def test_an_empty_batch_is_an_empty_answer(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu)
    assert estimator.outputs([]) == []


def test_out_of_memory_halves_the_micro_batch_and_remembers_it(network: Network, cpu: Device) -> None:
    estimator, built = estimator_with(cpu, micro_batch=8, largest=3)
    assert (depths(estimator, images_of(11)) == 0.5).all()
    assert estimator.micro_batch == 2
    estimator.outputs(list(images_of(11)))
    assert [micro_batch for micro_batch, _ in built] == [8, 4, 2]


def test_out_of_memory_for_one_image_is_a_transient_error(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu, largest=0)
    with pytest.raises(DepthBackendUnavailable, match="not enough memory for one image"):
        estimator.outputs(list(images_of(1)))
    assert estimator.micro_batch == 1


def test_an_overflow_in_sixteen_bits_is_tried_once_more_in_float32(network: Network, cpu: Device) -> None:
    estimator, built = estimator_with(cpu, precise=False, bad_below=100)
    images = images_of(4)
    images[:, 0, 0, 0] = [50, 200, 200, 200]
    assert (depths(estimator, images) == 0.5).all()
    assert [precision for _, precision in built] == [Precision.FAST, Precision.FLOAT32]


def test_what_is_not_finite_in_float32_too_is_flagged(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu, precise=False, bad_below=255)
    images = images_of(4)
    images[:, 0, 0, 0] = [255, 0, 255, 255]
    raw = estimator.outputs(list(images))
    assert [one is not None and bool(np.isfinite(one).all()) for one in raw] == [True, False, True, True]


def test_a_tensorflow_error_does_not_cross_the_border(
    network: Network, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise tf.errors.InternalError(None, None, "CUDA_ERROR_ILLEGAL_ADDRESS\nstack")

    monkeypatch.setattr(densedepth, "build_network", lambda _weights, _shape: lost)
    estimator = network.load(plan_of(network.weights), micro_batch=2, on=cpu)
    with pytest.raises(DepthBackendUnavailable, match=r"InternalError: CUDA_ERROR_ILLEGAL_ADDRESS\n"):
        estimator.outputs(list(images_of(1)))


def test_a_graph_that_does_not_fit_is_built_for_fewer_images(
    network: Network, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = densedepth.build_network

    def build(weights: WeightsFile, shape: GraphShape) -> object:
        if shape.micro_batch > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return real(weights, shape)

    monkeypatch.setattr(densedepth, "build_network", build)
    estimator = network.load(plan_of(network.weights), micro_batch=4, on=cpu)
    estimator.warm_up()
    assert estimator.micro_batch == 2


def test_an_error_that_speaks_of_the_input_is_left_to_the_caller_to_bisect(
    network: Network, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(_images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise tf.errors.InvalidArgumentError(None, None, "not this image")

    monkeypatch.setattr(densedepth, "build_network", lambda _weights, _shape: picky)
    estimator = network.load(plan_of(network.weights), micro_batch=2, on=cpu)
    with pytest.raises(tf.errors.InvalidArgumentError):
        estimator.outputs(list(images_of(1)))


def test_between_micro_batches_progress_is_told_and_the_batch_may_be_abandoned(
    network: Network, cpu: Device
) -> None:
    estimator, _ = estimator_with(cpu)
    finished: list[int] = []

    def stop_at_eight(image_count: int) -> None:
        finished.append(image_count)
        if image_count == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        estimator.outputs(list(images_of(10)), between=stop_at_eight)
    estimator.outputs(list(images_of(6)), between=finished.append)
    assert finished == [4, 8, 4, 6]


def test_images_of_another_size_are_a_programmers_error(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu)
    with pytest.raises(ValueError, match="expected uint8"):
        estimator.outputs([np.zeros((WIDTH, HEIGHT, 3), np.uint8)])
    with pytest.raises(ValueError, match="expected uint8"):
        estimator.outputs([np.zeros((HEIGHT, WIDTH, 3), np.float32)])


def test_weights_that_are_not_the_plans_are_refused(network: Network) -> None:
    with pytest.raises(WeightsRefused, match="the plan has"):
        network.check_plan(plan_of(WEIGHTS))


@pytest.mark.parametrize("size", [(100, 64), (64, 100), (32, 64), (0, 64)])
def test_an_input_size_that_the_network_cannot_halve_is_refused(
    network: Network, size: tuple[int, int]
) -> None:
    with pytest.raises(InvalidSettings, match="multiples of 32, at least 64"):
        network.check_plan(replace(plan_of(network.weights), input=size))


@needs_bfloat16
def test_fast_on_a_cpu_with_bfloat16_is_near_float32_but_not_equal(network: Network, cpu: Device) -> None:
    images = images_of(2)
    exact = depths(network.load(plan_of(network.weights), micro_batch=2, on=cpu), images)
    fast = depths(network.load(plan_of(network.weights, Precision.FAST), micro_batch=2, on=cpu), images)
    error = np.abs(exact - fast)
    assert 0 < error.mean() < 0.005


def test_fast_without_bfloat16_is_refused_and_never_float32_in_silence(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(MachineUnfit, match="no bfloat16 instructions") as caught:
        arithmetic_of(Precision.FAST, cpu)
    assert 'precision = "float32"' in caught.value.hint


def test_fast_on_a_gpu_is_float16(cpu: Device) -> None:
    assert arithmetic_of(Precision.FAST, replace(cpu, kind="gpu")) is Arithmetic.FLOAT16


def test_the_float16_graph_can_be_built_and_is_near_float32(network: Network, cpu: Device) -> None:
    images = images_of(2)
    gpu_like = replace(cpu, kind="gpu")
    exact = depths(network.load(plan_of(network.weights), micro_batch=2, on=cpu), images)
    half = depths(network.load(plan_of(network.weights, Precision.FAST), micro_batch=2, on=gpu_like), images)
    assert np.abs(exact - half).max() < 0.02


def marked(*marks: int) -> list[NDArray[np.uint8] | None]:
    """Pictures whose first pixel tells them apart; 0: none there."""
    return [np.full((HEIGHT, WIDTH, 3), mark, np.uint8) if mark else None for mark in marks]


def brightest(raw: list[RawOutput | None]) -> list[float]:
    return [0.0 if one is None else float(one.max()) - 1 for one in raw]


def test_a_device_with_a_queue_is_given_everything_before_anything_is_waited_for() -> None:
    queued = QueuedDevice()
    estimator = queued.estimator(plan_of(WEIGHTS), micro_batch=2)
    first, second = marked(1, 2, 3, 4, 5), marked(6, 7, 0, 0, 8)
    begun = estimator.begin(first)
    behind = estimator.begin(second)
    finished: list[int] = []
    assert brightest(estimator.outputs(first, begun=begun, between=finished.append)) == [1, 2, 3, 4, 5]
    assert finished == [2, 4, 5]
    assert brightest(estimator.outputs(second, begun=behind)) == [6, 7, 0, 0, 8]
    assert queued.log == [
        *(("given", mark) for mark in (1, 3, 5, 6, 8)),
        *(("waited", mark) for mark in (1, 3, 5, 6, 8)),
    ]
    assert brightest(estimator.outputs(marked(9, 10))) == [9, 10]


def test_a_cpu_is_given_nothing_ahead(network: Network, cpu: Device) -> None:
    estimator, built = estimator_with(cpu)
    assert estimator.begin(list(images_of(2))) is None
    assert built == []


def test_memory_that_runs_out_on_the_queue_halves_the_micro_batch_for_what_is_behind_it_too() -> None:
    sizes: list[int] = []

    def on_work(images: NDArray[np.uint8]) -> None:
        sizes.append(len(images))
        if len(images) > 1 and 3 in images[:, 0, 0, 0]:
            raise MemoryError

    estimator = QueuedDevice(on_work=on_work).estimator(plan_of(WEIGHTS), micro_batch=2)
    first, second = marked(1, 2, 3, 4), marked(5, 6)
    begun, behind = estimator.begin(first), estimator.begin(second)
    assert brightest(estimator.outputs(first, begun=begun)) == [1, 2, 3, 4]
    assert estimator.micro_batch == 1
    assert brightest(estimator.outputs(second, begun=behind)) == [5, 6]
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1]  # 5 and 6 are computed anew: their receipt says one at a time


def test_what_cannot_be_given_is_told_when_its_turn_comes() -> None:
    def picky(_images: NDArray[np.uint8]) -> NoReturn:
        raise ArithmeticError("not this one")

    plan = plan_of(WEIGHTS)
    refuses = DepthEstimator(lambda _size, _precision: picky, depth_of, plan, micro_batch=2, on=DEVICE)
    begun = refuses.begin(marked(1))
    assert begun is not None
    with pytest.raises(ArithmeticError):
        refuses.outputs(marked(1), begun=begun)

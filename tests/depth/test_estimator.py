from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import Network, NetworkPlan, Precision, Quality, Upsampling, Weights
from shardgen.depth.densedepth import network as densedepth
from shardgen.depth.densedepth.family import DenseDepthNetwork
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, arithmetic_of, depth_of
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, Graph
from shardgen.errors import DepthBackendUnavailable, InvalidSettings, MachineUnfit, WeightsRefused

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
        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            assert images.shape == (micro_batch, HEIGHT, WIDTH, 3)
            if len(images) > largest:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            raw = np.full((len(images), HEIGHT // 2, WIDTH // 2), 2, np.float32)
            if precision is not Precision.FLOAT32 or bad_below == 255:
                raw[images[:, 0, 0, 0] < bad_below] = np.inf
            return raw

        return run

    plan = plan_of(WEIGHTS, Precision.FLOAT32 if precise else Precision.FAST)
    return DepthEstimator(build, depth_of, plan, micro_batch=micro_batch, on=on), built


def test_relative_depth_follows_the_formula_of_densedepth() -> None:
    raw = np.array([[[0.5, 1, 2, 4, 50, 100, 1000, 1e-40]]], np.float32)
    expected = [1, 1, 0.5, 0.25, 0.02, 0.01, 0.01, 1]
    depth = depth_of(raw)
    np.testing.assert_allclose(depth.relative[0, 0], expected, rtol=1e-6)
    assert depth.relative.dtype == np.float32
    assert depth.far_pixels.tolist() == [0]


def test_outputs_of_zero_or_less_are_far_and_counted() -> None:
    raw = np.array([[[0, -0.0, -5, 2]], [[1, 2, 3, 4]]], np.float32)
    depth = depth_of(raw)
    assert depth.relative[0, 0].tolist() == [1, 1, 1, 0.5]
    assert depth.far_pixels.tolist() == [3, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_flags_its_image_only(bad: float) -> None:
    raw = np.full((3, 2, 2), 2, np.float32)
    raw[1, 0, 1] = bad
    assert depth_of(raw).non_finite.tolist() == [False, True, False]


def test_the_padded_tail_gives_the_same_bytes_as_a_full_micro_batch(network: Network, cpu: Device) -> None:
    estimator = network.load(plan_of(network.weights), micro_batch=4, on=cpu)
    images = images_of(6)
    whole = estimator.estimate(images).relative
    assert whole.shape == (6, HEIGHT // 2, WIDTH // 2)
    for start in range(6):
        np.testing.assert_array_equal(estimator.estimate(images[start:]).relative, whole[start:])


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_every_run_gives_the_same_bytes(network: Network, cpu: Device, micro_batch: int) -> None:
    first, second = (
        network.load(plan_of(network.weights), micro_batch=micro_batch, on=cpu) for _ in range(2)
    )
    images = images_of(2 * micro_batch)
    expected = first.estimate(images).relative
    for _ in range(8):
        np.testing.assert_array_equal(first.estimate(images).relative, expected)
    np.testing.assert_array_equal(second.estimate(images).relative, expected)


def test_an_empty_batch_is_an_empty_answer(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu)
    assert len(estimator.estimate(images_of(0)).relative) == 0


def test_out_of_memory_halves_the_micro_batch_and_remembers_it(network: Network, cpu: Device) -> None:
    estimator, built = estimator_with(cpu, micro_batch=8, largest=3)
    assert (estimator.estimate(images_of(11)).relative == 0.5).all()
    assert estimator.micro_batch == 2
    estimator.estimate(images_of(11))
    assert [micro_batch for micro_batch, _ in built] == [8, 4, 2]


def test_out_of_memory_for_one_image_is_a_transient_error(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu, largest=0)
    with pytest.raises(DepthBackendUnavailable, match="not enough memory for one image"):
        estimator.estimate(images_of(1))
    assert estimator.micro_batch == 1


def test_an_overflow_in_sixteen_bits_is_tried_once_more_in_float32(network: Network, cpu: Device) -> None:
    estimator, built = estimator_with(cpu, precise=False, bad_below=100)
    images = images_of(4)
    images[:, 0, 0, 0] = [50, 200, 200, 200]
    assert not estimator.estimate(images).non_finite.any()
    assert [precision for _, precision in built] == [Precision.FAST, Precision.FLOAT32]


def test_what_is_not_finite_in_float32_too_is_flagged(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu, precise=False, bad_below=255)
    images = images_of(4)
    images[:, 0, 0, 0] = [255, 0, 255, 255]
    assert estimator.estimate(images).non_finite.tolist() == [False, True, False, False]


def test_a_tensorflow_error_does_not_cross_the_border(
    network: Network, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise tf.errors.InternalError(None, None, "CUDA_ERROR_ILLEGAL_ADDRESS\nstack")

    monkeypatch.setattr(densedepth, "build_network", lambda _weights, _shape: lost)
    estimator = network.load(plan_of(network.weights), micro_batch=2, on=cpu)
    with pytest.raises(DepthBackendUnavailable, match=r"InternalError: CUDA_ERROR_ILLEGAL_ADDRESS\n"):
        estimator.estimate(images_of(1))


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
        estimator.estimate(images_of(1))


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
        estimator.estimate(images_of(10), between=stop_at_eight)
    estimator.estimate(images_of(6), between=finished.append)
    assert finished == [4, 8, 4, 6]


def test_images_of_another_size_are_a_programmers_error(network: Network, cpu: Device) -> None:
    estimator, _ = estimator_with(cpu)
    with pytest.raises(ValueError, match="expected uint8"):
        estimator.estimate(np.zeros((1, WIDTH, HEIGHT, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        estimator.estimate(np.zeros((1, HEIGHT, WIDTH, 3), np.float32))


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
    exact = network.load(plan_of(network.weights), micro_batch=2, on=cpu).estimate(images)
    fast = network.load(plan_of(network.weights, Precision.FAST), micro_batch=2, on=cpu).estimate(images)
    error = np.abs(exact.relative - fast.relative)
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
    exact = network.load(plan_of(network.weights), micro_batch=2, on=cpu).estimate(images)
    half = network.load(plan_of(network.weights, Precision.FAST), micro_batch=2, on=gpu_like).estimate(images)
    assert np.abs(exact.relative - half.relative).max() < 0.02

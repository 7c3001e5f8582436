from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from numpy.typing import NDArray
from skimage.transform import resize

from benchmarks.calibrated import calibrate
from shardgen.depth import device
from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth import folding, tapped_convolution
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.folding import ClippedConvolution
from shardgen.depth.densedepth.network import (
    Arithmetic,
    GraphShape,
    _Format,
    _Graph,
    build_network,
    depth_of,
)
from shardgen.depth.densedepth.random_weights import random_weights
from shardgen.depth.densedepth.tapped_convolution import (
    interpolation_matrix,
    low_resolution_pays,
    winograd_pays,
)
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.depth.device import Device
from tests.depth.keras_reference import reference_outputs
from tests.legacy_weights import LegacyNetwork

pytestmark = pytest.mark.usefixtures("cpu")
needs_bfloat16 = pytest.mark.skipif(not device.has_bfloat16(), reason="this CPU has no bfloat16")

UPSAMPLINGS = [Upsampling.ALIGNED, pytest.param(Upsampling.HALF_PIXEL, marks=pytest.mark.slow)]


def photographs(width: int, height: int) -> NDArray[np.uint8]:
    images = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea")]
    return np.stack([np.rint(resize(i, (height, width)) * 255).astype(np.uint8) for i in images])


def outputs(
    weights: WeightsFile, images: NDArray[np.uint8], upsampling: Upsampling, arithmetic: Arithmetic
) -> NDArray[np.float32]:
    shape = GraphShape(
        micro_batch=len(images),
        input_size=(images.shape[2], images.shape[1]),
        upsampling=upsampling,
        arithmetic=arithmetic,
    )
    return np.asarray(build_network(weights, shape)(images))


def grey_levels(raw: NDArray[np.float32]) -> NDArray[np.int64]:
    depth = depth_of(raw)
    low, high = depth.min((1, 2), keepdims=True), depth.max((1, 2), keepdims=True)
    return np.asarray(255 - np.floor(255 * (depth - low) / (high - low)), np.int64)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("activations", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_raw_outputs_are_those_of_keras_layers(
    tmp_path: Path, upsampling: Upsampling, activations: int
) -> None:
    network = LegacyNetwork(activations=activations)
    weights = read_weights(network.write(tmp_path / "w.h5"))
    images = photographs(96, 64)
    ours = outputs(weights, images, upsampling, Arithmetic.FLOAT32)
    expected = reference_outputs(network, images, upsampling)
    assert expected.std(axis=(1, 2)).min() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("final_relu", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_wide_decoder_computed_in_tiles_agrees_with_keras_layers(
    tmp_path: Path, upsampling: Upsampling, *, final_relu: bool
) -> None:
    network = LegacyNetwork(width=640, blocks=(1, 2, 1, 3), growth=12, stem=24, final_relu=final_relu, seed=4)
    weights = read_weights(network.write(tmp_path / "w.h5"))
    images = photographs(320, 192)
    # All three ways of the decoder: tiles at up1, nine taps at the low resolution, rows last.
    assert winograd_pays(height=12, width=20, incoming=640 + 28, outgoing=320)
    assert low_resolution_pays(height=48, width=80, incoming=160, outgoing=80)
    assert not low_resolution_pays(height=96, width=160, incoming=80, outgoing=40)
    ours = outputs(weights, images, upsampling, Arithmetic.FLOAT32)
    np.testing.assert_allclose(ours, reference_outputs(network, images, upsampling), rtol=3e-4, atol=3e-4)


def test_the_two_upsamplings_give_different_depth(narrow: WeightsFile) -> None:
    images = photographs(96, 64)
    aligned = outputs(narrow, images, Upsampling.ALIGNED, Arithmetic.FLOAT32)
    half_pixel = outputs(narrow, images, Upsampling.HALF_PIXEL, Arithmetic.FLOAT32)
    assert np.abs(grey_levels(aligned) - grey_levels(half_pixel)).mean() > 1


def test_an_activation_more_gives_different_depth(tmp_path: Path) -> None:
    images = photographs(96, 64)
    one, two = (
        outputs(
            read_weights(LegacyNetwork(activations=count).write(tmp_path / f"{count}.h5")),
            images, Upsampling.ALIGNED, Arithmetic.FLOAT32,
        )
        for count in (1, 2)
    )  # fmt: skip
    assert np.abs(grey_levels(one) - grey_levels(two)).mean() > 1


@pytest.mark.parametrize("final_relu", [True, False])
def test_a_centre_changes_nothing_but_what_comes_in(tmp_path: Path, *, final_relu: bool) -> None:
    weights = read_weights(LegacyNetwork(final_relu=final_relu).write(tmp_path / "w.h5"))
    random = np.random.default_rng(0)
    for layer, batch_norm in (("conv3_block1_1_conv", "conv3_block1_0_bn"), ("conv2", "bn")):
        channels = weights.tensors[layer, "kernel"].shape[2]
        x = random.normal(0, 2, (1000, channels))
        centre = np.asarray(random.normal(3, 2, channels), np.float64)
        plain = folding.after_batch_norm(weights.tensors, layer, batch_norm, weights.topology)
        centred = folding.after_batch_norm(
            weights.tensors, layer, batch_norm, weights.topology, centre=centre
        )
        expected = applied(plain, x)
        assert np.ptp(expected) > 1
        np.testing.assert_allclose(applied(centred, x - centre), expected, atol=2e-6 * np.abs(expected).max())
        np.testing.assert_allclose(
            applied(folding.less(plain, np.arange(1.0 * expected.shape[1])), x),
            expected - np.arange(expected.shape[1]),
            atol=1e-3,
        )


def applied(folded: ClippedConvolution, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (pixels, channels), in float64."""
    clipped = np.clip(x, folded.low.astype(np.float64), folded.high.astype(np.float64))
    return np.asarray(clipped @ folded.convolution.kernel[0, 0] + folded.convolution.bias, np.float64)


def test_features_without_their_means_give_the_same_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    small, images = read_weights(SHIPPED["small"]), photographs(160, 96)
    exact = outputs(small, images, Upsampling.ALIGNED, Arithmetic.FLOAT32)
    monkeypatch.setattr(_Format, "kept", lambda _format, x: x)  # centred, and nothing is rounded
    centred = outputs(small, images, Upsampling.ALIGNED, Arithmetic.BFLOAT16_EMULATED)
    np.testing.assert_allclose(centred, exact, rtol=2e-5)
    assert not np.array_equal(centred, exact)  # it is another graph


def test_bfloat16_costs_few_grey_levels_of_a_trained_network() -> None:
    small, images = read_weights(SHIPPED["small"]), photographs(320, 256)
    exact, fast = (
        grey_levels(outputs(small, images, Upsampling.ALIGNED, arithmetic))
        for arithmetic in (Arithmetic.FLOAT32, Arithmetic.BFLOAT16_EMULATED)
    )
    error = np.abs(exact - fast)
    assert 0 < error.mean() <= 0.5
    assert np.percentile(error, 99) <= 2
    assert error.max() <= 6


@pytest.mark.slow
def test_bfloat16_costs_as_few_of_a_network_of_full_width() -> None:
    images = photographs(320, 256)
    wide = random_weights("random:1664")
    wide = replace(wide, tensors=calibrate(wide, images))
    exact, fast = (
        grey_levels(outputs(wide, images, Upsampling.ALIGNED, arithmetic))
        for arithmetic in (Arithmetic.FLOAT32, Arithmetic.BFLOAT16_EMULATED)
    )
    error = np.abs(exact - fast)
    assert 0 < error.mean() <= 0.44  # 0.40, or 0.46 if bfloat16 began with the second dense block
    assert np.percentile(error, 99) <= 2
    assert error.max() <= 4


@needs_bfloat16
def test_the_emulation_of_bfloat16_is_near_what_the_cpu_does() -> None:
    small, images = read_weights(SHIPPED["small"]), photographs(320, 256)
    fast, emulated = (
        grey_levels(outputs(small, images, Upsampling.ALIGNED, arithmetic))
        for arithmetic in (Arithmetic.BFLOAT16, Arithmetic.BFLOAT16_EMULATED)
    )
    assert np.abs(fast - emulated).mean() <= 0.5


def test_a_gpu_gets_no_tiles(wide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = read_weights(wide_file)
    spread: list[int] = []
    real = tapped_convolution.winograd_kernel

    def counted(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
        spread.append(kernel.shape[2])
        return real(kernel)

    monkeypatch.setattr(tapped_convolution, "winograd_kernel", counted)
    shape = GraphShape(
        micro_batch=1, input_size=(320, 192), upsampling=Upsampling.ALIGNED, arithmetic=Arithmetic.FLOAT32
    )
    _Graph(weights, replace(shape, kind="gpu"))
    assert spread == []
    _Graph(weights, shape)
    assert spread != []


@pytest.mark.parametrize("upsampling", Upsampling)
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_interpolation_matrices_are_tensorflows_bilinear_resize(size: int, upsampling: Upsampling) -> None:
    line = np.random.default_rng(0).random((1, size, 1, 1), dtype=np.float32)
    is_aligned = upsampling is Upsampling.ALIGNED
    resized = tf.raw_ops.ResizeBilinear(
        images=line, size=(2 * size, 1), align_corners=is_aligned, half_pixel_centers=not is_aligned
    )
    ours = interpolation_matrix(size, upsampling) @ line[0, :, 0, 0]
    np.testing.assert_allclose(ours, resized[0, :, 0, 0], atol=5e-6)


@pytest.mark.slow
def test_random_weights_give_depth_that_varies_over_photographs(cpu: Device) -> None:
    raw = outputs(random_weights("random:64"), photographs(320, 256), Upsampling.ALIGNED, Arithmetic.FLOAT32)
    depth = depth_of(raw)
    assert (raw > 0).all()
    assert depth.min() > 0.02
    assert depth.max() < 0.98
    assert grey_levels(raw).std(axis=(1, 2)).min() > 15


@pytest.mark.slow
def test_the_full_width_network_agrees_with_keras_layers_to_one_grey_level(tmp_path: Path) -> None:
    """Here for the sum of all roundings; the networks above have each way to upsample and to activate."""
    network = LegacyNetwork(blocks=(6, 12, 32, 32), growth=32, stem=64, width=1664)
    weights = read_weights(network.write(tmp_path / "w.h5"))
    images = photographs(640, 480)[:1]
    expected = grey_levels(reference_outputs(network, images, Upsampling.ALIGNED))
    exact = grey_levels(outputs(weights, images, Upsampling.ALIGNED, Arithmetic.FLOAT32))
    assert np.abs(exact - expected).max() <= 1


def test_xla_can_compile_what_pads_and_pools(narrow: WeightsFile) -> None:
    shape = GraphShape(
        micro_batch=2, input_size=(96, 64), upsampling=Upsampling.ALIGNED, arithmetic=Arithmetic.FLOAT32
    )
    stem, images = _Graph(narrow, shape)._steps[0], tf.constant(photographs(96, 64), tf.float32) / 255
    compiled = tf.function(lambda x: stem({}, x), autograph=False, jit_compile=True)
    np.testing.assert_allclose(compiled(images), stem({}, images), atol=1e-5)

"""Batch norms folded into the convolutions beside them: numpy only, in float64, rounded once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.densedepth.topology import Topology
from shardgen.depth.densedepth.weights_file import Tensors

DEAD_SCALE = 1e-20  # below it a batch norm ignores its input, and its threshold would overflow
Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A kernel float32 (height, width, in, out) and its bias (out,)."""

    kernel: Array32
    bias: Array32


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedConvolution:
    """`convolution(clip(x, low, high))` in place of `convolution(relu(batch_norm(x)))`.

    With a > 0, `relu(a x + b) = a max(x, t) + b` where t = -b / a, so only one comparison per value is left
    and a, b go into the 1x1 kernel and its bias; with a < 0 it is `a min(x, t) + b`.
    """

    low: Array32
    high: Array32
    convolution: Convolution


def scale_and_shift(tensors: Tensors, layer: str, epsilon: float) -> tuple[Array64, Array64]:
    """The (a, b) of a batch norm, as in `a x + b`, per channel."""
    gamma, beta, mean, variance = (
        tensors[layer, part].astype(np.float64)
        for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def plain(tensors: Tensors, layer: str) -> Convolution:
    """A convolution with a bias, as it is in the file."""
    return Convolution(kernel=tensors[layer, "kernel"], bias=tensors[layer, "bias"])


def before_batch_norm(tensors: Tensors, layer: str, batch_norm: str, epsilon: float) -> Convolution:
    """`batch_norm(convolution(x))` as one convolution."""
    scale, shift = scale_and_shift(tensors, batch_norm, epsilon)
    return _rounded(tensors[layer, "kernel"] * scale, shift)


def means_of(tensors: Tensors, batch_norm: str) -> Array64:
    """What the features before a batch norm were on average in training, per channel."""
    return tensors[batch_norm, "moving_mean"].astype(np.float64)


def after_batch_norm(
    tensors: Tensors,
    layer: str,
    batch_norm: str,
    topology: Topology,
    *,
    centre: Array64 | None = None,
) -> ClippedConvolution:
    """`convolution1x1(relu(batch_norm(x)))`, or without the ReLU, as a clip and a 1x1 convolution.

    With a `centre` m, per channel, it takes `x - m` and gives the same: `max(x, t) = max(x - m, t - m) + m`,
    so the thresholds take up m and, through the kernel, the bias.
    """
    has_relu = batch_norm != "bn" or topology.final_relu
    scale, shift = scale_and_shift(tensors, batch_norm, topology.epsilon)
    kernel = tensors[layer, "kernel"].astype(np.float64)
    bias = tensors.get((layer, "bias"), np.zeros(kernel.shape[3], np.float32)).astype(np.float64)
    low, high = np.full_like(scale, -np.inf), np.full_like(scale, np.inf)
    if has_relu:
        is_dead = np.abs(scale) < DEAD_SCALE
        threshold = np.divide(-shift, scale, out=np.zeros_like(scale), where=~is_dead)
        low = np.where(~is_dead & (scale > 0), threshold, low)
        high = np.where(~is_dead & (scale < 0), threshold, high)
        shift = np.where(is_dead, np.maximum(shift, 0), shift)
        scale = np.where(is_dead, 0, scale)
    folded = kernel * scale[:, np.newaxis]
    bias = bias + np.einsum("c,cd->d", shift, kernel[0, 0])
    if centre is not None:
        low, high = low - centre, high - centre
        bias = bias + np.einsum("c,cd->d", centre, folded[0, 0])
    return ClippedConvolution(
        low=low.astype(np.float32), high=high.astype(np.float32), convolution=_rounded(folded, bias)
    )


def less(folded: ClippedConvolution, centre: Array64) -> ClippedConvolution:
    """The same with outputs less `centre`, per channel."""
    bias = (folded.convolution.bias - centre).astype(np.float32)
    return replace(folded, convolution=replace(folded.convolution, bias=bias))


def dense_layer(
    tensors: Tensors, name: str, topology: Topology, *, centre: Array64 | None = None
) -> ClippedConvolution:
    """A dense layer's bottleneck, with the batch norms before and after it inside."""
    bottleneck = after_batch_norm(tensors, f"{name}_1_conv", f"{name}_0_bn", topology, centre=centre)
    scale, shift = scale_and_shift(tensors, f"{name}_1_bn", topology.epsilon)
    inner = bottleneck.convolution
    return ClippedConvolution(
        low=bottleneck.low,
        high=bottleneck.high,
        convolution=_rounded(inner.kernel * scale, inner.bias * scale + shift),
    )


def _rounded(kernel: Array64, bias: Array64) -> Convolution:
    return Convolution(kernel=kernel.astype(np.float32), bias=bias.astype(np.float32))

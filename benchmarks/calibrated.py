"""Full-width weights that behave like trained ones: random, their batch norms calibrated on photographs.

Random weights alone say nothing about the encoder's rounding errors: their batch norms let features drift
away from what they normalise. Here every batch norm has the mean and the variance of what photographs bring
it, and every convolution of the decoder puts out unit variance, as in a trained network.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth.densedepth.topology import Layer, LayerKind, TensorKey, layers_of
from shardgen.depth.densedepth.weights_file import WeightsFile

Tensors = dict[TensorKey, NDArray[np.float32]]


def calibrate(weights: WeightsFile, images: NDArray[np.uint8]) -> Tensors:
    """The weights' tensors, calibrated on images, uint8 (B, H, W, 3), layer after layer."""
    tensors = {key: np.array(tensor) for key, tensor in weights.tensors.items()}
    topology = weights.topology
    layers = layers_of(topology)
    to_come = Counter(source for layer in layers for source in layer.inputs)
    made: dict[str, Any] = {"input": tf.constant(images.astype(np.float32) / 255)}
    for layer in layers[1:]:
        sources = [made[source] for source in layer.inputs]
        match layer.kind:
            case LayerKind.CONVOLUTION:
                made[layer.name] = _convolved(layer, sources[0], tensors)
            case LayerKind.BATCH_NORM:
                made[layer.name] = _normalised(layer.name, sources[0], tensors, topology.epsilon)
            case _:
                made[layer.name] = _other(layer, sources)
        for source in layer.inputs:
            to_come[source] -= 1
            if not to_come[source]:
                del made[source]
    return tensors


def _convolved(layer: Layer, x: Any, tensors: Tensors) -> Any:
    kernel = tensors[layer.name, "kernel"]
    y = tf.nn.conv2d(x, kernel, layer.stride, "SAME" if layer.stride == 1 else "VALID")
    if not layer.has_bias:
        return y
    y += tensors[layer.name, "bias"]
    if layer.name == "conv3":
        return y
    gain = np.float32(1 / float(tf.math.reduce_std(y)))
    tensors[layer.name, "kernel"] = kernel * gain
    tensors[layer.name, "bias"] *= gain
    return y * gain


def _normalised(name: str, x: Any, tensors: Tensors, epsilon: float) -> Any:
    mean, variance = (np.asarray(moment, np.float32) for moment in tf.nn.moments(x, (0, 1, 2)))
    tensors[name, "moving_mean"], tensors[name, "moving_variance"] = mean, variance
    return (x - mean) * (tensors[name, "gamma"] / np.sqrt(variance + epsilon)) + tensors[name, "beta"]


def _other(layer: Layer, sources: list[Any]) -> Any:  # noqa: PLR0911 - one line per kind
    x = sources[0]
    match layer.kind:
        case LayerKind.RELU:
            return tf.nn.relu(x)
        case LayerKind.LEAKY_RELU:
            return tf.nn.leaky_relu(x, layer.slope)
        case LayerKind.ZERO_PADDING:
            return tf.pad(x, [[0, 0], [layer.size] * 2, [layer.size] * 2, [0, 0]])
        case LayerKind.MAX_POOLING:
            return tf.nn.max_pool2d(x, layer.size, layer.stride, "VALID")
        case LayerKind.AVERAGE_POOLING:
            return tf.nn.avg_pool2d(x, layer.size, layer.stride, "VALID")
        case LayerKind.CONCATENATE:
            return tf.concat(sources, 3)
        case LayerKind.UPSAMPLING:
            size = [2 * x.shape[1], 2 * x.shape[2]]
            return tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)
    raise ValueError(f"{layer.name}: a {layer.kind} cannot be calibrated")

"""The small network: its topology, the Keras model that is trained, and what an image costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth.densedepth.topology import (
    BATCH_NORM_TENSORS,
    RELEASED_EPSILON,
    RELEASED_SKIPS,
    RELEASED_SLOPE,
    Layer,
    LayerKind,
    TensorKey,
    Topology,
    UpBlock,
    layers_of,
    tensor_shapes,
)

FILTERS = (64, 32, 16, 16)  # of up1 to up4; multiples of 16 fill the vectors of AVX-512
MOMENTUM = 0.98  # of the batch norms: a few thousand steps only
PARTS = ("kernel", "bias", *BATCH_NORM_TENSORS)
Tensors = Mapping[TensorKey, NDArray[np.float32]]

SMALL = Topology(
    stem=16,
    blocks=(2, 4, 10, 10),
    bottleneck=48,
    growth=16,
    transitions=(32, 48, 96),
    final_relu=True,
    epsilon=RELEASED_EPSILON,
    decoder_width=128,
    ups=tuple(
        UpBlock(
            name=f"up{number}", filters=filters, skip=skip, slope_a=RELEASED_SLOPE, slope_b=RELEASED_SLOPE
        )
        for number, (filters, skip) in enumerate(zip(FILTERS, RELEASED_SKIPS, strict=True), start=1)
    ),
)


class Upsample(keras.layers.Layer):  # type: ignore[misc]
    """Bilinear with aligned corners, as the released weights were trained."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(B, h, w, C) to (B, 2h, 2w, C)."""
        shape = tf.shape(x)
        return tf.compat.v1.image.resize_bilinear(x, [2 * shape[1], 2 * shape[2]], align_corners=True)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The sides are unknown until an image comes."""
        return (shape[0], None, None, shape[3])


def build_model(topology: Topology) -> Any:
    """The Keras model of a topology, for images of any size, float32 (B, H, W, 3) from 0 to 1."""
    made: dict[str, Any] = {"input": keras.Input((None, None, 3))}
    for layer in layers_of(topology)[1:]:
        sources = [made[source] for source in layer.inputs]
        made[layer.name] = _keras_layer(layer, topology.epsilon)(sources if len(sources) > 1 else sources[0])
    return keras.Model(made["input"], made["conv3"])


def _keras_layer(layer: Layer, epsilon: float) -> Any:  # noqa: C901, PLR0911 - one line per kind
    layers, name = keras.layers, keras_name(layer.name)
    match layer.kind:
        case LayerKind.CONVOLUTION:
            return layers.Conv2D(
                layer.filters,
                layer.size,
                layer.stride,
                "valid" if layer.stride > 1 else "same",
                use_bias=layer.has_bias,
                kernel_initializer="he_normal",
                # The middle of the outputs' range, so that the first steps need not look for it.
                bias_initializer=keras.initializers.Constant(3.0) if layer.name == "conv3" else "zeros",
                name=name,
            )
        case LayerKind.BATCH_NORM:
            return layers.BatchNormalization(epsilon=epsilon, momentum=MOMENTUM, name=name)
        case LayerKind.RELU:
            return layers.ReLU(name=name)
        case LayerKind.LEAKY_RELU:
            return layers.LeakyReLU(layer.slope, name=name)
        case LayerKind.ZERO_PADDING:
            return layers.ZeroPadding2D(layer.size, name=name)
        case LayerKind.MAX_POOLING:
            return layers.MaxPooling2D(layer.size, layer.stride, name=name)
        case LayerKind.AVERAGE_POOLING:
            return layers.AveragePooling2D(layer.size, layer.stride, name=name)
        case LayerKind.CONCATENATE:
            return layers.Concatenate(name=name)
        case LayerKind.UPSAMPLING:
            return Upsample(name=name)
        case LayerKind.INPUT:
            raise ValueError(f"{layer.name}: a second input")


def keras_name(layer: str) -> str:
    """Keras 3 allows no slash in a name."""
    return layer.replace("/", "_")


def tensors_of(model: Any, topology: Topology) -> dict[TensorKey, NDArray[np.float32]]:
    """The model's tensors under the names that a weights file has."""
    tensors = {}
    for layer, part in tensor_shapes(topology):
        variable = getattr(model.get_layer(keras_name(layer)), part)
        tensors[layer, part] = np.asarray(variable.numpy(), np.float32)
    return tensors


def load_tensors(model: Any, tensors: Tensors) -> None:
    """Put the tensors of a weights file into the model."""
    for (layer, part), tensor in tensors.items():
        getattr(model.get_layer(keras_name(layer)), part).assign(tensor)


def multiply_adds(topology: Topology, input_size: tuple[int, int]) -> int:
    """Multiply-adds of one image's convolutions, done directly; `input_size` is (width, height) in pixels."""
    shapes, sides, total = tensor_shapes(topology), {"input": input_size}, 0
    for layer in layers_of(topology)[1:]:
        width, height = sides[layer.inputs[0]]
        if layer.kind is LayerKind.UPSAMPLING:
            width, height = 2 * width, 2 * height
        elif layer.kind is LayerKind.ZERO_PADDING:
            width, height = width + 2 * layer.size, height + 2 * layer.size
        elif layer.stride > 1:
            width, height = (
                (width - layer.size) // layer.stride + 1,
                (height - layer.size) // layer.stride + 1,
            )
        sides[layer.name] = (width, height)
        if layer.kind is LayerKind.CONVOLUTION:
            total += width * height * int(np.prod(shapes[layer.name, "kernel"]))
    return total

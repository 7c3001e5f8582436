"""CPU-seconds per image of our network against Keras `model.predict`, and the grey levels it costs.

    python benchmarks/network.py [--rounds 3] [--width 1664]

Variants take turns inside one process; each round times one batch of two images of every variant. The
reference is the same network out of Keras layers, called as DenseDepth's own code does. Grey levels are those
of the 8-bit encoding (inverse min-max of relative depth), over all photographs. The small network that ships
takes its turns too.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import cv2
import keras
import numpy as np
import skimage.data
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from shardgen.depth import device
from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network
from shardgen.depth.densedepth.random_weights import random_weights
from shardgen.depth.densedepth.topology import Layer, LayerKind, layers_of
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights

MICRO_BATCH = 2
FULL, SMALL = "ours, float32", "the small network, float32"
INPUT_SIZE = (640, 480)
Images = NDArray[np.uint8]
Outputs = NDArray[np.float32]


def photographs() -> Images:
    """Ten photographs of scikit-image and scikit-learn, uint8 (10, 480, 640, 3) RGB."""
    images = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee")]
    images += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    images += [image[:, ::-1] for image in images]
    return np.stack([cv2.resize(image, INPUT_SIZE, interpolation=cv2.INTER_LINEAR) for image in images])


class Upsample(keras.layers.Layer):  # type: ignore[misc]
    """Bilinear with aligned corners, as the released weights were trained."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(B, h, w, C) to (B, 2h, 2w, C)."""
        return tf.raw_ops.ResizeBilinear(
            images=x, size=(2 * x.shape[1], 2 * x.shape[2]), align_corners=True, half_pixel_centers=False
        )


def keras_layer(layer: Layer, epsilon: float) -> Callable[..., object]:
    """The Keras layer of one of ours."""
    layers, name = keras.layers, layer.name.replace("/", "_")
    padding = "valid" if layer.stride > 1 else "same"
    makers: dict[LayerKind, Callable[[], Callable[..., object]]] = {
        LayerKind.CONVOLUTION: lambda: layers.Conv2D(
            layer.filters, layer.size, layer.stride, padding, use_bias=layer.has_bias, name=name
        ),
        LayerKind.BATCH_NORM: lambda: layers.BatchNormalization(epsilon=epsilon, name=name),
        LayerKind.RELU: lambda: layers.ReLU(name=name),
        LayerKind.LEAKY_RELU: lambda: layers.LeakyReLU(layer.slope, name=name),
        LayerKind.ZERO_PADDING: lambda: layers.ZeroPadding2D(layer.size, name=name),
        LayerKind.MAX_POOLING: lambda: layers.MaxPooling2D(layer.size, layer.stride, name=name),
        LayerKind.AVERAGE_POOLING: lambda: layers.AveragePooling2D(layer.size, layer.stride, name=name),
        LayerKind.CONCATENATE: lambda: layers.Concatenate(name=name),
        LayerKind.UPSAMPLING: lambda: Upsample(name=name),
    }
    return makers[layer.kind]()


def keras_reference(weights: WeightsFile) -> Callable[[Images], Outputs]:
    """The network as DenseDepth's code runs it: Keras layers and `model.predict` in batches of two."""
    width, height = INPUT_SIZE
    made: dict[str, object] = {"input": keras.Input((height, width, 3))}
    for layer in layers_of(weights.topology)[1:]:
        sources = [made[source] for source in layer.inputs]
        new: Any = keras_layer(layer, weights.topology.epsilon)
        made[layer.name] = new(sources if len(sources) > 1 else sources[0])
        parts = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
        values = [
            weights.tensors[layer.name, part] for part in parts if (layer.name, part) in weights.tensors
        ]
        if values:
            new.set_weights(values)
    model = keras.Model(made["input"], made["conv3"])

    def predict(images: Images) -> Outputs:
        outputs = model.predict(images.astype(np.float32) / 255, batch_size=2, verbose=0)
        return np.asarray(outputs[..., 0], np.float32)

    return predict


def ours(weights: WeightsFile, arithmetic: Arithmetic) -> Callable[[Images], Outputs]:
    """Our graph."""
    shape = GraphShape(
        micro_batch=MICRO_BATCH, input_size=INPUT_SIZE, upsampling=Upsampling.ALIGNED, arithmetic=arithmetic
    )
    network = build_network(weights, shape)
    return lambda images: np.asarray(network(images))


def grey_levels(raw: Outputs) -> NDArray[np.int64]:
    """The 8-bit image of raw outputs (B, H, W): inverse min-max of `clip(1000 / y, 10, 1000) / 1000`."""
    depth = np.clip(1000 / raw, 10, 1000) / 1000
    low, high = depth.min((1, 2), keepdims=True), depth.max((1, 2), keepdims=True)
    return np.asarray(255 - np.floor(255 * (depth - low) / (high - low)), np.int64)


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    times = os.times()
    return times.user + times.system


def main() -> None:
    """Time, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=1664)
    options = parser.parse_args()
    device.prepare("cpu")
    weights = random_weights(f"random:{options.width}")
    images = photographs()
    pairs = [images[start : start + MICRO_BATCH] for start in range(0, len(images), MICRO_BATCH)]
    variants = {
        "reference: Keras model.predict, batches of 2": keras_reference(weights),
        FULL: ours(weights, Arithmetic.FLOAT32),
        SMALL: ours(read_weights(SHIPPED["small"]), Arithmetic.FLOAT32),
    }
    if device.has_bfloat16():
        variants["ours, fast (bfloat16 decoder)"] = ours(weights, Arithmetic.BFLOAT16_DECODER)
    outputs = {name: np.concatenate([variant(pair) for pair in pairs]) for name, variant in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_index in range(options.rounds):
        for pair_index, pair in enumerate(pairs):
            order = list(variants) if (round_index + pair_index) % 2 else list(variants)[::-1]
            for name in order:
                before = cpu_seconds()
                variants[name](pair)
                seconds[name].append((cpu_seconds() - before) / MICRO_BATCH)
    reference_name = next(iter(variants))
    reference = grey_levels(outputs[reference_name])
    base = statistics.median(seconds[reference_name])
    raw = outputs[reference_name]
    print(f"{device.describe_cpu()}; decoder width {options.width}; {len(images)} photographs, "
          f"{options.rounds} rounds; raw outputs {raw.min():.2f} to {raw.max():.2f}")  # fmt: skip
    print(f"{'variant':46} {'CPU s/image':>11} {'ratio':>6}   grey levels: mean   99%   max")
    for name in variants:
        if name == SMALL:
            continue
        error = np.abs(grey_levels(outputs[name]) - reference)
        middle = statistics.median(seconds[name])
        print(f"{name:46} {middle:11.3f} {base / middle:6.2f} {error.mean():19.3f} "
              f"{np.percentile(error, 99):5.0f} {error.max():5d}")  # fmt: skip
    full, small = statistics.median(seconds[FULL]), statistics.median(seconds[SMALL])
    print(f"{SMALL:46} {small:11.3f} {base / small:6.2f}   {full / small:.1f} times {FULL}")


if __name__ == "__main__":
    main()

"""The same network out of tf_keras layers: an independent way from a file's tensors to raw outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from shardgen.depth.base import Upsampling
from tests.legacy_weights import LegacyNetwork


def reference_outputs(
    network: LegacyNetwork, images: NDArray[np.uint8], upsampling: Upsampling
) -> NDArray[np.float32]:
    """Walk the layers of `model_config` in order, as Keras would; returns (B, H/2, W/2)."""
    import tf_keras  # noqa: PLC0415

    made: dict[str, Any] = {}
    for entry in network.layers:
        name, settings = entry["name"], entry["config"]
        nodes = entry["inbound_nodes"]
        sources = [made[edge[0]] for edge in nodes[0]] if nodes else []
        if entry["class_name"] == "InputLayer":
            made[name] = tf_keras.Input(images.shape[1:])
            continue
        if entry["class_name"] == "BilinearUpSampling2D":
            layer = _upsampling(tf_keras, upsampling)
        else:
            settings = settings | {"name": name.replace("/", "_")}
            layer = getattr(tf_keras.layers, entry["class_name"]).from_config(settings)
        made[name] = layer(sources if len(sources) > 1 else sources[0])
        if network.arrays[name]:
            layer.set_weights(list(network.arrays[name].values()))
    model = tf_keras.Model(made["input_1"], made["conv3"])
    outputs = model(tf.constant(images.astype(np.float32) / 255), training=False)
    return np.asarray(outputs, dtype=np.float32)[..., 0]


def _upsampling(tf_keras: Any, upsampling: Upsampling) -> Any:
    if upsampling is Upsampling.HALF_PIXEL:
        return tf_keras.layers.UpSampling2D(interpolation="bilinear")

    def aligned(x: Any) -> Any:
        return tf.compat.v1.image.resize_bilinear(x, [2 * x.shape[1], 2 * x.shape[2]], align_corners=True)

    return tf_keras.layers.Lambda(aligned)

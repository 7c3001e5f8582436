"""The writer of weights files in the legacy layout of Keras 2.2.4, `model_config` included, without Keras."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from shardgen.depth.densedepth.topology import (
    Layer,
    LayerKind,
    TensorKey,
    Topology,
    layers_of,
    tensor_shapes,
)

KERAS_VERSION, BACKEND = "2.2.4", "tensorflow"
CLASSES = {
    LayerKind.INPUT: "InputLayer",
    LayerKind.CONVOLUTION: "Conv2D",
    LayerKind.BATCH_NORM: "BatchNormalization",
    LayerKind.RELU: "Activation",
    LayerKind.LEAKY_RELU: "LeakyReLU",
    LayerKind.ZERO_PADDING: "ZeroPadding2D",
    LayerKind.MAX_POOLING: "MaxPooling2D",
    LayerKind.AVERAGE_POOLING: "AveragePooling2D",
    LayerKind.CONCATENATE: "Concatenate",
    LayerKind.UPSAMPLING: "BilinearUpSampling2D",
}


def write_weights(path: Path, topology: Topology, tensors: Mapping[TensorKey, NDArray[np.float32]]) -> None:
    """Write the network as `model.save` did: root attributes of variable length, names as byte arrays.

    The same network gives the same bytes: nothing in the file knows the time.
    """
    names: dict[str, list[str]] = {layer.name: [] for layer in layers_of(topology)}
    for layer, part in tensor_shapes(topology):
        names[layer].append(part)
    with h5py.File(path, "w", libver="earliest", track_order=False) as file:
        text = h5py.string_dtype()
        file.attrs.create("keras_version", KERAS_VERSION, dtype=text)
        file.attrs.create("backend", BACKEND, dtype=text)
        file.attrs.create("model_config", json.dumps(model_config(topology)), dtype=text)
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.array([name.encode() for name in names])
        root.attrs.create("backend", BACKEND, dtype=text)
        root.attrs.create("keras_version", KERAS_VERSION, dtype=text)
        for layer, parts in names.items():
            group = root.create_group(layer)
            weights = [f"{layer}/{part}:0" for part in parts]
            group.attrs["weight_names"] = np.array([name.encode() for name in weights])
            for name, part in zip(weights, parts, strict=True):
                group.create_dataset(name, data=tensors[layer, part], track_times=False)


def model_config(topology: Topology) -> dict[str, Any]:
    """The network as Keras 2.2.4 described it in JSON."""
    layers = [
        {
            "name": layer.name,
            "class_name": CLASSES[layer.kind],
            "config": {"name": layer.name, "trainable": True} | _settings(layer, topology.epsilon),
            "inbound_nodes": [[[source, 0, 0, {}] for source in layer.inputs]] if layer.inputs else [],
        }
        for layer in layers_of(topology)
    ]
    config = {
        "name": "model_1",
        "layers": layers,
        "input_layers": [["input", 0, 0]],
        "output_layers": [["conv3", 0, 0]],
    }
    return {"class_name": "Model", "config": config}


def _settings(layer: Layer, epsilon: float) -> dict[str, Any]:  # noqa: PLR0911 - one per kind
    size, strides = [layer.size, layer.size], [layer.stride, layer.stride]
    last = "channels_last"
    match layer.kind:
        case LayerKind.INPUT:
            return {"batch_input_shape": [None, None, None, 3], "dtype": "float32"}
        case LayerKind.CONVOLUTION:
            return {
                "filters": layer.filters,
                "kernel_size": size,
                "strides": strides,
                "padding": "valid" if layer.stride > 1 else "same",
                "data_format": last,
                "dilation_rate": [1, 1],
                "activation": "linear",
                "use_bias": layer.has_bias,
            }
        case LayerKind.BATCH_NORM:
            return {"axis": 3, "momentum": 0.99, "epsilon": epsilon, "center": True, "scale": True}
        case LayerKind.RELU:
            return {"activation": "relu"}
        case LayerKind.LEAKY_RELU:
            return {"alpha": layer.slope}
        case LayerKind.ZERO_PADDING:
            return {"padding": [size, size], "data_format": last}
        case LayerKind.MAX_POOLING | LayerKind.AVERAGE_POOLING:
            return {"pool_size": size, "strides": strides, "padding": "valid", "data_format": last}
        case LayerKind.CONCATENATE:
            return {"axis": 3}
        case LayerKind.UPSAMPLING:
            return {"size": size, "data_format": last}

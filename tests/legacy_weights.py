"""Weights files in the layout of Keras 2.2.4, of any size and with any defect, written without Keras."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

LayerEntry = dict[str, Any]
Arrays = dict[str, dict[str, NDArray[Any]]]
"""Layer name -> last part of the weight's name -> array, in file order."""
EPSILON = 1.001e-5


class LegacyNetwork:
    """A DenseDepth network as Keras 2.2.4 would describe and store it; tests may damage it before `write`."""

    def __init__(
        self,
        *,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        growth: int = 8,
        stem: int = 16,
        width: int = 16,
        activations: int = 1,
        final_relu: bool = True,
        seed: int = 0,
    ) -> None:
        self.layers: list[LayerEntry] = []
        self.arrays: Arrays = {}
        self._generator = np.random.default_rng(seed)
        self._channels: dict[str, int] = {}
        self._counters: dict[str, int] = {}
        skips = self._encoder(blocks, growth, stem)
        x = self._batch_norm("bn", next(reversed(self.arrays)))
        if final_relu:
            x = self._relu("relu", x)
        x = self._convolution("conv2", x, width, bias=True)
        for number, skip in enumerate(reversed(skips), start=1):
            x = self._up(f"up{number}", x, skip, max(1, width // 2**number), activations)
        self._convolution("conv3", x, 1, size=3, bias=True)
        # Positive kernels and bias: outputs of 2 to 20, whose depth is neither clipped nor constant.
        last = self.arrays["conv3"]
        last["kernel"] = np.asarray(np.abs(last["kernel"]) * 2, dtype=np.float32)
        last["bias"] = np.full(1, 2, dtype=np.float32)

    def _encoder(self, blocks: tuple[int, ...], growth: int, stem: int) -> list[str]:
        """Add DenseNet's layers; returns those that the decoder takes up again."""
        image = self._add("InputLayer", [], name="input_1", batch_input_shape=[None, None, None, 3])
        self._channels[image] = 3
        padded = self._add("ZeroPadding2D", [image], padding=[[3, 3], [3, 3]])
        x = self._convolution("conv1/conv", padded, stem, size=7, stride=2, padding="valid")
        x = self._relu("conv1/relu", self._batch_norm("conv1/bn", x))
        padded = self._add("ZeroPadding2D", [x], padding=[[1, 1], [1, 1]])
        pooling = {"pool_size": [3, 3], "strides": [2, 2], "padding": "valid"}
        x = self._add("MaxPooling2D", [padded], name="pool1", **pooling)
        skips = ["conv1/relu", "pool1"]
        for block, count in enumerate(blocks, start=2):
            for number in range(1, count + 1):
                x = self._dense(f"conv{block}_block{number}", x, growth)
            if block < len(blocks) + 1:
                y = self._relu(f"pool{block}_relu", self._batch_norm(f"pool{block}_bn", x))
                y = self._convolution(f"pool{block}_conv", y, self._channels[x] // 2)
                pooling = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}
                x = self._add("AveragePooling2D", [y], name=f"pool{block}_pool", **pooling)
                if block < len(blocks):
                    skips.append(x)
        return skips

    def _dense(self, name: str, source: str, growth: int) -> str:
        y = self._relu(f"{name}_0_relu", self._batch_norm(f"{name}_0_bn", source))
        y = self._convolution(f"{name}_1_conv", y, 4 * growth)
        y = self._relu(f"{name}_1_relu", self._batch_norm(f"{name}_1_bn", y))
        y = self._convolution(f"{name}_2_conv", y, growth, size=3)
        return self._add("Concatenate", [source, y], name=f"{name}_concat", axis=3)

    def _up(self, name: str, source: str, skip: str, filters: int, activations: int) -> str:
        up = self._add(
            "BilinearUpSampling2D",
            [source],
            name=f"{name}_upsampling2d",
            size=[2, 2],
            data_format="channels_last",
        )
        x = self._add("Concatenate", [up, skip], name=f"{name}_concat", axis=-1)
        x = self._convolution(f"{name}_convA", x, filters, size=3, bias=True)
        if activations == 2:
            x = self._add("LeakyReLU", [x], alpha=0.20000000298023224)
        x = self._convolution(f"{name}_convB", x, filters, size=3, bias=True)
        if activations >= 1:
            x = self._add("LeakyReLU", [x], alpha=0.20000000298023224)
        return x

    def _add(self, class_name: str, inputs: list[str], *, name: str = "", **settings: Any) -> str:
        if not name:
            stem = {"ZeroPadding2D": "zero_padding2d", "LeakyReLU": "leaky_re_lu"}[class_name]
            self._counters[stem] = self._counters.get(stem, 0) + 1
            name = f"{stem}_{self._counters[stem]}"
        settings = {"name": name, "trainable": True} | settings
        if class_name.endswith(("Pooling2D", "Padding2D")):
            settings["data_format"] = "channels_last"
        nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
        self.layers.append(
            {"name": name, "class_name": class_name, "config": settings, "inbound_nodes": nodes}
        )
        self.arrays[name] = {}
        self._channels[name] = sum(self._channels[source] for source in inputs)
        return name

    def _relu(self, name: str, source: str) -> str:
        return self._add("Activation", [source], name=name, activation="relu")

    def _batch_norm(self, name: str, source: str) -> str:
        self._add(
            "BatchNormalization", [source], name=name,
            axis=3, momentum=0.99, epsilon=EPSILON, center=True, scale=True,
        )  # fmt: skip
        channels = self._channels[name]
        # Some negative gammas: trained networks have them.
        sign = np.where(self._generator.random(channels) < 0.1, -1, 1)
        self.arrays[name] = {
            "gamma": (sign * self._generator.uniform(0.5, 1.5, channels)).astype(np.float32),
            "beta": self._generator.normal(0.1, 0.2, channels).astype(np.float32),
            "moving_mean": self._generator.normal(0, 0.2, channels).astype(np.float32),
            "moving_variance": self._generator.uniform(0.5, 1.5, channels).astype(np.float32),
        }
        return name

    def _convolution(
        self, name: str, source: str, filters: int, *,
        size: int = 1, stride: int = 1, padding: str = "same", bias: bool = False,
    ) -> str:  # fmt: skip
        incoming = self._channels[source]
        self._add(
            "Conv2D", [source], name=name, filters=filters, kernel_size=[size, size],
            strides=[stride, stride], padding=padding, data_format="channels_last",
            dilation_rate=[1, 1], activation="linear", use_bias=bias,
        )  # fmt: skip
        scale = np.sqrt(2 / (size * size * incoming))
        kernel = self._generator.normal(0, scale, (size, size, incoming, filters))
        self.arrays[name] = {"kernel": kernel.astype(np.float32)}
        if bias:
            self.arrays[name]["bias"] = self._generator.normal(0, 0.1, filters).astype(np.float32)
        self._channels[name] = filters
        return name

    def layer(self, name: str) -> LayerEntry:
        """The entry of one layer in `model_config`."""
        return next(layer for layer in self.layers if layer["name"] == name)

    def model_config(self) -> dict[str, Any]:
        """What Keras 2.2.4 stores as JSON."""
        config = {
            "name": "model_1",
            "layers": self.layers,
            "input_layers": [["input_1", 0, 0]],
            "output_layers": [[self.layers[-1]["name"], 0, 0]],
        }
        return {"class_name": "Model", "config": config}

    def write(self, path: Path) -> Path:
        """Write the file as h5py 2.9 laid it out: nested groups, byte arrays, vlen strings at the root."""
        with h5py.File(path, "w", libver="earliest") as file:
            text = h5py.string_dtype()
            file.attrs.create("keras_version", "2.2.4", dtype=text)
            file.attrs.create("backend", "tensorflow", dtype=text)
            file.attrs.create("model_config", json.dumps(self.model_config()), dtype=text)
            root = file.create_group("model_weights")
            root.attrs["layer_names"] = np.array([name.encode() for name in self.arrays])
            root.attrs.create("backend", "tensorflow", dtype=text)
            root.attrs.create("keras_version", "2.2.4", dtype=text)
            for layer, arrays in self.arrays.items():
                write_layer(root, layer, arrays)
        return path


def write_layer(root: h5py.Group, layer: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """One layer's group; TensorFlow's scope makes its weights `conv1/conv/kernel:0` inside `conv1/conv`."""
    group = root.create_group(layer)
    names = [f"{layer}/{part}:0" for part in arrays]
    # A layer without weights has an empty float64 array: numpy's default for an empty list.
    group.attrs["weight_names"] = np.array([name.encode() for name in names]) if names else np.array([])
    for name, array in zip(names, arrays.values(), strict=True):
        group[name] = array


def write_legacy_weights(
    path: Path,
    *,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    growth: int = 8,
    stem: int = 16,
    width: int = 16,
    activations: int = 1,
    seed: int = 0,
    defects: Iterable[Callable[[LegacyNetwork], object]] = (),
) -> Path:
    """Write a small network with plausible, non-constant depth; the same arguments give the same tensors."""
    network = LegacyNetwork(
        blocks=blocks, growth=growth, stem=stem, width=width, activations=activations, seed=seed
    )
    for defect in defects:
        defect(network)
    return network.write(path)

"""The only maker of random weights: seeded noise in the released topology, for trials without a download."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.densedepth.family import RANDOM
from shardgen.depth.densedepth.topology import TensorKey, released_topology, tensor_shapes
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.errors import InvalidSettings

SEED = 20260101
MIN_WIDTH = 16  # four up blocks halve it, and the last must keep a channel
MAX_WIDTH = 4096
OUTPUT_BIAS = 2.0  # keeps 1000 / y inside the range that the depth formula clips to
OUTPUT_GAIN = 6.0


def random_weights(name: str) -> WeightsFile:
    """The network of a name like `random:64` (decoder width 64): its depth is noise.

    The digest is the tensors'. The same name gives the same tensors on every machine: raw PCG64 bits, drawn
    in a fixed order.
    """
    width_text = name.removeprefix(RANDOM)
    width = int(width_text) if width_text.isascii() and width_text.isdigit() else 0
    if not name.startswith(RANDOM) or not MIN_WIDTH <= width <= MAX_WIDTH:
        raise InvalidSettings(
            f"depth.weights: {name!r} (expected random:WIDTH with WIDTH from {MIN_WIDTH} to {MAX_WIDTH})",
            hint='weights = "random:64"',
        )
    topology = released_topology(width)
    tensors = draw_tensors(tensor_shapes(topology), seed=SEED)
    return WeightsFile(
        topology=topology,
        tensors=tensors,
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        sha256=digest_of(tensors),
        keras_version="",
    )


def draw_tensors(
    shapes: Mapping[TensorKey, tuple[int, ...]], *, seed: int
) -> dict[TensorKey, NDArray[np.float32]]:
    """Tensors that keep activations near unit size (He et al. 2015), so that outputs are plausible."""
    bits = np.random.PCG64(seed)
    tensors = {}
    for key, shape in shapes.items():
        tensor = _draw(bits, key, shape)
        tensor.setflags(write=False)
        tensors[key] = tensor
    return tensors


def _uniform(bits: np.random.PCG64, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uniform noise of mean 0 and variance 1.

    From the raw bits and by exactly rounded operations only, since the digest must not depend on numpy's
    version or on a CPU's approximation of `exp` or `log`, which a normal distribution would bring in.
    """
    raw = bits.random_raw(int(np.prod(shape)))
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return np.asarray((unit - np.float32(0.5)) * np.sqrt(np.float32(12)), dtype=np.float32).reshape(shape)


def _draw(bits: np.random.PCG64, key: TensorKey, shape: tuple[int, ...]) -> NDArray[np.float32]:
    layer, part = key
    noise = _uniform(bits, shape)
    match part:
        case "kernel" if layer == "conv3":
            # All positive: the output stays above the bias, so no pixel falls to y <= 0.
            gain = np.float32(OUTPUT_GAIN) / np.float32(shape[0] * shape[1] * shape[2])
            return np.asarray(np.abs(noise) * gain, dtype=np.float32)
        case "kernel":
            fan_in = np.float32(shape[0] * shape[1] * shape[2])
            return np.asarray(noise * np.sqrt(np.float32(2) / fan_in), dtype=np.float32)
        case "bias" if layer == "conv3":
            return np.full(shape, OUTPUT_BIAS, dtype=np.float32)
        case "gamma" | "moving_variance":
            return np.asarray(np.float32(1) + noise * np.float32(0.1), dtype=np.float32)
        case _:
            return np.asarray(noise * np.float32(0.1), dtype=np.float32)


def digest_of(tensors: Mapping[TensorKey, NDArray[np.float32]]) -> str:
    """The sha256 over names, shapes and little-endian bytes, in the order of the sorted names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key[0]}\0{key[1]}\0{tensor.shape}\0".encode())
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").data)
    return digest.hexdigest()

"""DenseDepth as a family of networks: which weights there are, and how they are loaded onto a device."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from shardgen.depth import device
from shardgen.depth.base import (
    FILE,
    Family,
    Network,
    NetworkChoice,
    NetworkPlan,
    Precision,
    Quality,
    Sides,
    Weights,
)
from shardgen.depth.densedepth.topology import tensor_shapes
from shardgen.depth.device import Device
from shardgen.domain.wording import counted, nearest
from shardgen.errors import InputMissing, InvalidSettings
from shardgen.storage.released import OnDownload, Released, locate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardgen.depth.densedepth.weights_file import WeightsFile
    from shardgen.depth.estimator import DepthEstimator, Graph

SHIPPED = {"small": Path(__file__).with_name("small.h5")}
_OTHERWISE = 'try things out with [depth] weights = "small"'
RELEASED = {
    "nyu": Released(
        name="nyu",
        url="https://s3-eu-west-1.amazonaws.com/densedepth/nyu.h5",
        size_bytes=172_897_376,
        otherwise=_OTHERWISE,
    ),
    "kitti": Released(
        name="kitti",
        url="https://s3-eu-west-1.amazonaws.com/densedepth/kitti.h5",
        size_bytes=None,
        otherwise=_OTHERWISE,
    ),
}
RANDOM = "random:"

# Peak resident memory at 640 x 480 on a CPU, as `python -m benchmarks.memory` measures it in float32; that of
# `fast` is a guess, since no CPU with bfloat16 was at hand.
RUNTIME_BYTES = 480 << 20  # TensorFlow itself
COPIES = 2.5  # of a tensor: as read and folded
TILED_COPIES = {Precision.FLOAT32: 8.5, Precision.FAST: 5}  # of a 3x3 convolution's: spread over tiles, too
BYTES_PER_PIXEL = 350.0  # of the input: the encoder and the skips
BYTES_PER_PIXEL_AND_CHANNEL = {Precision.FLOAT32: 0.59, Precision.FAST: 0.39}  # of the decoder's width
CPU_MICRO_BATCHES = (2, 1)  # larger ones are no faster on a CPU, and take more memory
GPU_MICRO_BATCHES = (32, 16, 8, 4, 2, 1)
# Into 3x3 convolutions. On a Zen 3 oneDNN computes those of up to 64 in half of Eigen's time, and of 128 in
# twice as much.
FEW_CHANNELS = 64


class DenseDepthNetwork(Network):
    """A weights file, or random weights."""

    def __init__(self, name: str, file: WeightsFile) -> None:
        topology = file.topology
        activations = counted(topology.activations, "activation")
        quality = Quality.TRIAL if name in SHIPPED else Quality.DEPTH
        weights = Weights(
            name=name,
            bytes=file.bytes,
            sha256=file.sha256,
            structure=f"decoder width {topology.decoder_width}, {activations} per up block",
            quality=Quality.NOISE if name.startswith(RANDOM) else quality,
        )
        super().__init__(weights, Sides(topology.stride, 2 * topology.stride))
        self._file = file

    def memory_bytes(self, plan: NetworkPlan, micro_batch: int) -> int:
        """As measured; needs no TensorFlow."""
        topology, (width, height) = self._file.topology, plan.input
        tensors = 0.0
        for shape in tensor_shapes(topology).values():
            copies = TILED_COPIES[plan.precision] if shape[:2] == (3, 3) else COPIES
            tensors += 4 * copies * math.prod(shape)
        per_pixel = BYTES_PER_PIXEL + BYTES_PER_PIXEL_AND_CHANNEL[plan.precision] * topology.decoder_width
        pixels = micro_batch * width * height
        return round(RUNTIME_BYTES + tensors + pixels * per_pixel)

    def micro_batches(self, kind: str) -> tuple[int, ...]:
        """Small ones on a CPU."""
        return GPU_MICRO_BATCHES if kind == "gpu" else CPU_MICRO_BATCHES

    def prepare(self, choice: str, *, threads: int) -> Device:
        """TensorFlow, one operation after the other when the threads are counted; oneDNN for few channels."""
        topology = self._file.topology
        widest = max(topology.bottleneck, *(up.filters for up in topology.ups))
        return device.prepare(
            choice, intra_op=threads, inter_op=min(threads, 1), few_channels=widest <= FEW_CHANNELS
        )

    def load(self, plan: NetworkPlan, *, micro_batch: int, on: Device) -> DepthEstimator:
        """The first image builds the graph."""
        import numpy as np

        from shardgen.depth.densedepth.network import GraphShape, arithmetic_of, build_network, depth_of
        from shardgen.depth.estimator import DepthEstimator

        arithmetic_of(plan.precision, on)  # refuses what cannot be built

        @device.translated_errors()
        def build(micro_batch: int, precision: Precision) -> Graph:
            shape = GraphShape(
                micro_batch=micro_batch,
                input_size=plan.input,
                upsampling=plan.upsampling,
                arithmetic=arithmetic_of(precision, on),
                kind=on.kind,
            )
            network = build_network(self._file, shape)

            @device.translated_errors()
            def run(images: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
                given = network(images)  # a GPU is still at it
                return device.translated_errors()(lambda: np.array(given, dtype=np.float32))

            return run

        return DepthEstimator(build, depth_of, plan, micro_batch=micro_batch, on=on)


class DenseDepth(Family):
    """Alhashim and Wonka 2018, "High Quality Monocular Depth Estimation via Transfer Learning"."""

    name = "densedepth"
    default_weights = "nyu"
    sides = Sides(32, 32)

    def plan_name(self, written: str) -> str:
        """`nyu`, `kitti`, `small` and `random:WIDTH` are names."""
        if written.startswith(RANDOM):
            if not re.fullmatch(r"random:[1-9]\d{0,3}", written):
                raise ValueError(
                    f'random ones are written "random:WIDTH", as in "random:64" (found {written!r})'
                )
            return written
        return written if written in RELEASED or written in SHIPPED else FILE

    def find(self, choice: NetworkChoice, *, on_download: OnDownload | None = None) -> DenseDepthNetwork:
        """A file from outside is first read by a process of its own."""
        return DenseDepthNetwork(choice.name, _weights_file(choice, on_download))


def _weights_file(choice: NetworkChoice, on_download: OnDownload | None) -> WeightsFile:
    from shardgen.depth.densedepth.random_weights import random_weights
    from shardgen.depth.densedepth.trial import read_untrusted
    from shardgen.depth.densedepth.weights_file import read_weights

    name = choice.name
    if name.startswith(RANDOM):
        return random_weights(name)
    if name in SHIPPED:
        return read_weights(SHIPPED[name])
    if name in RELEASED:
        if on_download is not None:
            from shardgen.storage.fetch import fetch

            return fetch(RELEASED[name], read_untrusted, on_progress=on_download)
        return read_untrusted(locate(RELEASED[name]))
    if choice.file is None:
        raise InvalidSettings(
            f'[depth] weights = "{name}": this version does not know such weights',
            hint='weights = "nyu", "kitti", "small", "random:64" or a file',
        )
    _refuse_unknown_word(choice.written, choice.file)
    return read_untrusted(choice.file)


def _refuse_unknown_word(setting: str, path: Path) -> None:
    """Who writes a bare word, and has no file of that name, means one of the names."""
    if Path(setting).suffix or "/" in setting or os.path.lexists(path):
        return
    near = nearest(setting, [*RELEASED, *SHIPPED, "random:64"])
    meant = f'did you mean "{near}"? ' if near else ""
    raise InputMissing(
        f"{path}: no such weights file",
        hint=f"{meant}weights is nyu, kitti, small, random:N or a file's path",
    )

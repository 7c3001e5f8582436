"""What `fast` costs: the depth of the same images with both precisions, on this CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import Upsampling
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network, depth_of
from shardgen.depth.densedepth.weights_file import WeightsFile


@dataclass(frozen=True, slots=True, kw_only=True)
class BothPrecisions:
    """Relative depth of B images, float32 (B, h, w). `is_emulated`: this CPU has no bfloat16 instructions."""

    float32: NDArray[np.float32]
    fast: NDArray[np.float32]
    is_emulated: bool


def by_both_precisions(file: WeightsFile, images: NDArray[np.uint8]) -> BothPrecisions:
    """The depth of images, uint8 (B, H, W, 3), one after the other, with aligned corners.

    Without bfloat16 instructions `fast` is emulated, rounding by rounding. Raises MachineUnfit if TensorFlow
    cannot be imported, DepthBackendUnavailable if it fails.
    """
    device.prepare("cpu")
    is_emulated = not device.has_bfloat16()
    fast = Arithmetic.BFLOAT16_EMULATED if is_emulated else Arithmetic.BFLOAT16
    return BothPrecisions(
        float32=_depth(file, images, Arithmetic.FLOAT32),
        fast=_depth(file, images, fast),
        is_emulated=is_emulated,
    )


def _depth(file: WeightsFile, images: NDArray[np.uint8], arithmetic: Arithmetic) -> NDArray[np.float32]:
    _, height, width, _ = images.shape
    shape = GraphShape(
        micro_batch=1, input_size=(width, height), upsampling=Upsampling.ALIGNED, arithmetic=arithmetic
    )
    with device.translated_errors():
        network = build_network(file, shape)
        raw = np.concatenate([np.asarray(network(images[at : at + 1])) for at in range(len(images))])
    return depth_of(raw)

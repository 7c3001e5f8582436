"""The smallest family of depth networks: the brighter, the farther. It needs no TensorFlow and no file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import (
    Family,
    Network,
    NetworkChoice,
    NetworkPlan,
    Precision,
    Quality,
    RawOutput,
    Sides,
    Weights,
)
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, Graph
from shardgen.storage.released import OnDownload


class BrightnessNetwork(Network):
    def memory_bytes(self, plan: NetworkPlan, micro_batch: int) -> int:
        return (1 << 20) + micro_batch * plan.input[0] * plan.input[1] * 4

    def micro_batches(self, kind: str) -> tuple[int, ...]:
        return (4, 2, 1)

    def prepare(self, choice: str, *, threads: int) -> Device:
        return Device(kind="cpu", model=device.describe_cpu(threads), library="numpy", version=np.__version__)

    def load(self, plan: NetworkPlan, *, micro_batch: int, on: Device) -> DepthEstimator:
        def build(micro_batch: int, precision: Precision) -> Graph:
            return lambda images: lambda: images.mean(axis=3, dtype=np.float32)

        return DepthEstimator(build, depth_of, plan, micro_batch=micro_batch, on=on)


class Brightness(Family):
    name = "brightness"
    default_weights = "plain"
    sides = Sides(4, 12)

    def plan_name(self, written: str) -> str:
        if written != "plain":
            raise ValueError(f'must be "plain" (found {written!r})')
        return written

    def find(self, choice: NetworkChoice, *, on_download: OnDownload | None = None) -> BrightnessNetwork:
        weights = Weights(
            name=choice.name, bytes=1, sha256="b" * 64, structure="no layers", quality=Quality.TRIAL
        )
        return BrightnessNetwork(weights, self.sides)


def depth_of(raw: RawOutput) -> NDArray[np.float32]:
    return np.asarray(0.01 + 0.99 * raw / 255, np.float32)

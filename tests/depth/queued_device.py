"""A device with a queue, as a GPU has: it takes work at once, and does it in order, by sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import NetworkPlan, Precision, RawOutput
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, Graph

DEVICE = Device(kind="gpu", model="queue", library="numpy", version=np.__version__)


class QueuedDevice:
    """Its network puts out the pictures' brightness from 1 to 256, at half their size.

    `log` has `given` and `waited` with the first pixel of each micro-batch that is given and waited for.
    `on_work` is called in the device's thread with a micro-batch, before it is computed.
    """

    def __init__(
        self,
        seconds_per_picture: float = 0.0,
        on_work: Callable[[NDArray[np.uint8]], None] = lambda _images: None,
    ) -> None:
        self._seconds = seconds_per_picture
        self._on_work = on_work
        self._queue = ThreadPoolExecutor(1, "device")
        self.log: list[tuple[str, int]] = []
        self.busy: list[tuple[float, float]] = []

    def estimator(self, plan: NetworkPlan, micro_batch: int) -> DepthEstimator:
        """A network on it."""
        return DepthEstimator(self._build, brightness, plan, micro_batch=micro_batch, on=DEVICE)

    def utilisation(self) -> float:
        """The part of the time that it worked, from the first picture to the last."""
        return sum(end - start for start, end in self.busy) / (self.busy[-1][1] - self.busy[0][0])

    def _build(self, _micro_batch: int, _precision: Precision) -> Graph:
        def give(images: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
            first = int(images[0, 0, 0, 0])
            self.log.append(("given", first))
            done = self._queue.submit(self._work, images)

            def wait() -> NDArray[np.float32]:
                self.log.append(("waited", first))
                return done.result()

            return wait

        return give

    def _work(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        began = time.perf_counter()
        self._on_work(images)
        outputs = np.asarray(images[:, ::2, ::2, 1], np.float32) + 1
        if (left := self._seconds * len(images) - (time.perf_counter() - began)) > 0:
            time.sleep(left)
        self.busy.append((began, time.perf_counter()))
        return outputs


def brightness(raw: RawOutput) -> NDArray[np.float32]:
    """Near is bright."""
    return np.asarray(1 - 0.99 * (raw - 1) / 255, np.float32)

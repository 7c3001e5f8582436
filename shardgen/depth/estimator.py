"""The depth of images by any network that is a function: micro-batches, bad outputs, out of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import DepthBatch, Estimator, NetworkPlan, Precision
from shardgen.depth.device import Device
from shardgen.errors import DepthBackendUnavailable

Graph = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 (micro_batch, H, W, 3) RGB to raw outputs, float32 (micro_batch, h, w) of its own.

It raises MemoryError when the device has no memory left, and no error of its library but those that speak of
the input.
"""
Build = Callable[[int, Precision], Graph]
"""Makes the graph of a micro-batch and a precision; raises as the graph does."""


class DepthEstimator(Estimator):
    """Graphs of fixed shapes, built when they are needed; `depth_of` makes depth of raw outputs.

    `micro_batch` is halved, and stays smaller, when the device runs out of memory.
    """

    def __init__(
        self,
        build: Build,
        depth_of: Callable[[NDArray[np.float32]], DepthBatch],
        plan: NetworkPlan,
        *,
        micro_batch: int,
        on: Device,
    ) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro-batch {micro_batch} (expected at least 1)")
        self._build, self._depth_of, self._plan, self._device = build, depth_of, plan, on
        self._micro_batch = micro_batch
        self._graphs: dict[tuple[int, Precision], Graph] = {}

    @property
    def micro_batch(self) -> int:
        """As it is now."""
        return self._micro_batch

    @property
    def device_model(self) -> str:
        """The device's name; of a CPU with its widest instruction set and the number of threads."""
        return self._device.model

    @property
    def provenance(self) -> Mapping[str, str | int]:
        """The library, its version, and the switches that are set."""
        on = self._device
        found: dict[str, str | int] = {on.library: on.version}
        if on.switches:
            found[f"{on.library}_switches"] = on.switches
        return found

    def warm_up(self) -> None:
        """Build the graph, too."""
        width, height = self._plan.input
        self.estimate(np.zeros((1, height, width, 3), np.uint8))

    def estimate(
        self,
        images: NDArray[np.uint8],
        *,
        wanted: Sequence[bool] | None = None,
        between: Callable[[int], None] | None = None,
    ) -> DepthBatch:
        """The last micro-batch is padded with black; one without a `wanted` image is passed over."""
        width, height = self._plan.input
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
            raise ValueError(
                f"images are {images.dtype} {images.shape} (expected uint8 (B, {height}, {width}, 3))"
            )
        raw = np.zeros((len(images), 0, 0), np.float32)
        start = 0
        while start < len(images):
            if wanted is not None and not any(wanted[start : start + self._micro_batch]):
                start += self._micro_batch
                continue
            outputs = self._run_smaller_if_needed(images[start : start + self._micro_batch])
            if not raw.size:
                raw = np.zeros((len(images), *outputs.shape[1:]), np.float32)
            raw[start : start + len(outputs)] = outputs
            start += len(outputs)
            if between is not None:
                between(start)
        return self._depth_of(raw)

    def _run_smaller_if_needed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw outputs of the first images, as many as the micro-batch that fits into memory."""
        while True:
            images = images[: self._micro_batch]
            try:
                return self._run(images)
            except MemoryError as error:
                if self._micro_batch == 1:
                    raise DepthBackendUnavailable(
                        f"{self.device_model}: not enough memory for one image",
                        hint="close other programs on this device, or run with --device cpu",
                    ) from error
                self._graphs.clear()
                self._micro_batch //= 2

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = self._outputs(self._plan.precision, images)
        if self._plan.precision is not Precision.FLOAT32 and not np.isfinite(outputs).all():
            # Sixteen bits overflow where float32 does not. Only the bad images change, so that the bytes of
            # the others do not depend on who shares their micro-batch.
            exact = self._outputs(Precision.FLOAT32, images)
            is_bad = ~np.isfinite(outputs).all(axis=(1, 2))
            outputs[is_bad] = exact[is_bad]
        return outputs

    def _outputs(self, precision: Precision, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        padded = np.zeros((self._micro_batch, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        key = self._micro_batch, precision
        if key not in self._graphs:
            self._graphs[key] = self._build(*key)
        return self._graphs[key](padded)[: len(images)]

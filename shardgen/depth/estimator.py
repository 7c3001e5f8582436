"""The depth of images: micro-batches, bad outputs, out of memory; no TensorFlow error crosses this border."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.device import Device
from shardgen.depth.network import Arithmetic, GraphShape, build_network
from shardgen.depth.topology import Topology
from shardgen.depth.weights_file import WeightsFile
from shardgen.domain.plan import Depth, Precision, Upsampling
from shardgen.errors import DepthBackendUnavailable, InvalidSettings, MachineUnfit, WeightsRefused

NEAREST, FARTHEST, SCALE = 10.0, 1000.0, 1000.0  # DenseDepth utils.predict: clip(1000 / y, 10, 1000) / 1000
Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthBatch:
    """Depth of B images. Rows of `relative` whose `non_finite` is set hold no depth and must not be used.

    relative: float32 (B, H/2, W/2), 0.01 near to 1.0 far, not metres. non_finite: bool (B,), whether the
    output holds NaN or infinity, in float32 too. far_pixels: int64 (B,), outputs <= 0 that count as far.
    """

    relative: NDArray[np.float32]
    non_finite: NDArray[np.bool_]
    far_pixels: NDArray[np.int64]


def depth_of(raw: NDArray[np.float32]) -> DepthBatch:
    """Relative depth of raw outputs y, float32 (B, h, w): `clip(1000 / y, 10, 1000) / 1000`; y <= 0: far."""
    non_finite = np.asarray(~np.isfinite(raw).all(axis=(1, 2)))
    is_far = raw <= 0  # an output of 1 stands in for them: it is the farthest
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(SCALE) / np.where(is_far, np.float32(1), raw)
    relative = np.asarray(np.clip(inverse, NEAREST, FARTHEST) / np.float32(SCALE), np.float32)
    return DepthBatch(relative=relative, non_finite=non_finite, far_pixels=is_far.sum(axis=(1, 2)))


class DepthEstimator:
    """One network on one device, for one process and one thread.

    `micro_batch` is how many images go through the network at once; it shrinks, and stays smaller, when the
    device runs out of memory. It decides the last bits of the depth, so receipts record it.
    """

    def __init__(
        self,
        weights: WeightsFile,
        shape: GraphShape,
        on: Device,
        *,
        build: Callable[[WeightsFile, GraphShape], Network],
    ) -> None:
        self._weights, self._shape, self._device, self._build = weights, shape, on, build
        self._networks: dict[GraphShape, Network] = {}

    @property
    def micro_batch(self) -> int:
        """How many images the network takes at once now."""
        return self._shape.micro_batch

    @property
    def device_model(self) -> str:
        """The device's name; of a CPU with its widest instruction set and the number of threads."""
        return self._device.model

    @property
    def tensorflow_version(self) -> str:
        """As `2.21.0`."""
        return self._device.tensorflow_version

    def warm_up(self) -> None:
        """Trace and run the network once on black images, so that the first batch is not a slow one."""
        width, height = self._shape.input_size
        self.estimate(np.zeros((1, height, width, 3), np.uint8))

    def estimate(
        self, images: NDArray[np.uint8], *, between: Callable[[int], None] | None = None
    ) -> DepthBatch:
        """The depth of images, uint8 (B, H, W, 3) RGB, of the plan's input size.

        The last micro-batch is padded with black to its full shape. `between` is called after every
        micro-batch with the number of finished images, to report progress; what it raises abandons the batch.
        Raises DepthBackendUnavailable when memory does not suffice for one image or the device is lost.
        """
        width, height = self._shape.input_size
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
            raise ValueError(
                f"images are {images.dtype} {images.shape} (expected uint8 (B, {height}, {width}, 3))"
            )
        raw = np.empty((len(images), height // 2, width // 2), np.float32)
        start = 0
        while start < len(images):
            outputs = self._run_smaller_if_needed(images[start : start + self._shape.micro_batch])
            raw[start : start + len(outputs)] = outputs
            start += len(outputs)
            if between is not None:
                between(start)
        return depth_of(raw)

    def _run_smaller_if_needed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw outputs of the first images, as many as the micro-batch that fits into memory."""
        while True:
            images = images[: self._shape.micro_batch]
            try:
                return self._run(images)
            except _OutOfDeviceMemoryError as error:
                if self._shape.micro_batch == 1:
                    raise DepthBackendUnavailable(
                        f"{self.device_model}: not enough memory for one image",
                        hint="close other programs on this device, or run with --device cpu",
                    ) from error
                self._networks.clear()
                self._shape = replace(self._shape, micro_batch=self._shape.micro_batch // 2)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs = self._outputs(self._shape, images)
        if self._shape.arithmetic is not Arithmetic.FLOAT32 and not np.isfinite(outputs).all():
            # Sixteen bits overflow where float32 does not. Only the bad images change, so that the bytes of
            # the others do not depend on who shares their micro-batch.
            exact = self._outputs(replace(self._shape, arithmetic=Arithmetic.FLOAT32), images)
            is_bad = ~np.isfinite(outputs).all(axis=(1, 2))
            outputs[is_bad] = exact[is_bad]
        return outputs

    def _outputs(self, shape: GraphShape, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        padded = np.zeros((shape.micro_batch, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        with _translated_errors():
            if shape not in self._networks:
                self._networks[shape] = self._build(self._weights, shape)
            outputs = np.array(self._networks[shape](padded), dtype=np.float32)
        return outputs[: len(images)]


class _OutOfDeviceMemoryError(Exception):
    """The device (or the host's allocator) said that it has no memory left."""


@contextmanager
def _translated_errors() -> Iterator[None]:
    import tensorflow as tf

    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise _OutOfDeviceMemoryError from error
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError):
        raise  # they speak of the input: the caller finds out which image it is
    except tf.errors.OpError as error:
        raise DepthBackendUnavailable(
            f"TensorFlow failed: {type(error).__name__}: {str(error).splitlines()[0][:300]}",
            hint="shardgen doctor; if it stays, restart the worker or run with --device cpu",
        ) from error


def load_estimator(weights: WeightsFile, depth: Depth, *, micro_batch: int, on: Device) -> DepthEstimator:
    """Build the plan's network on a device (of `device.prepare`).

    Raises WeightsRefused if the weights are not the plan's, InvalidSettings for an input size that the
    network cannot take, MachineUnfit for `fast` on a CPU without bfloat16.
    """
    if micro_batch < 1:
        raise ValueError(f"micro-batch {micro_batch} (expected at least 1)")
    if weights.sha256 != depth.weights.sha256:
        raise WeightsRefused(
            f"weights {depth.weights.name}: sha256 {weights.sha256[:12]} "
            f"(the plan has {depth.weights.sha256[:12]})",
            hint="use the weights file that the plan was made with, or a new run directory",
        )
    check_input_size(weights.topology, depth.input)
    shape = GraphShape(
        micro_batch=micro_batch,
        input_size=depth.input,
        upsampling=Upsampling(depth.upsampling),
        arithmetic=arithmetic_of(depth.precision, on),
    )
    return DepthEstimator(weights, shape, on, build=build_network)


def check_input_size(topology: Topology, input_size: tuple[int, int]) -> None:
    """Raise InvalidSettings unless both sides are multiples of the network's stride (32 as released)."""
    if any(side < 2 * topology.stride or side % topology.stride for side in input_size):
        raise InvalidSettings(
            f"depth.input: {list(input_size)} (expected multiples of {topology.stride}, "
            f"at least {2 * topology.stride})",
            hint="input = [640, 480]",
        )


def arithmetic_of(precision: Precision, on: Device) -> Arithmetic:
    """The number formats of a precision on a device; raises MachineUnfit, never falls back silently."""
    if precision is Precision.FLOAT32:
        return Arithmetic.FLOAT32
    if on.kind == "gpu":
        return Arithmetic.FLOAT16
    if not device.has_bfloat16():
        raise MachineUnfit(
            f"{on.model}: no bfloat16 instructions, so precision fast would be slower than float32",
            hint='precision = "float32" in shardgen.toml, in a new run directory',
        )
    return Arithmetic.BFLOAT16_DECODER

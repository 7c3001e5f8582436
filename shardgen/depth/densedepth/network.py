"""The DenseDepth graph in plain TensorFlow operations, built from a weights file."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import Precision, RawOutput, Upsampling
from shardgen.depth.densedepth import folding, tapped_convolution
from shardgen.depth.densedepth.folding import ClippedConvolution, Convolution
from shardgen.depth.densedepth.tapped_convolution import Axis
from shardgen.depth.densedepth.topology import UpBlock, channels_of
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.depth.device import Device
from shardgen.errors import DepthNotFinite, MachineUnfit

Tensor = Any  # tensorflow is imported inside functions only, and has no types of its own
NEAREST, FARTHEST, SCALE = 10.0, 1000.0, 1000.0  # DenseDepth utils.predict: clip(1000 / y, 10, 1000) / 1000

_EXACT_PART = 3  # the first third of the second dense block: a hundredth of the work, a quarter of the error


class Arithmetic(StrEnum):
    """Number formats of a graph; accumulation is float32 in all of them, and so is conv3.

    bfloat16 begins inside the second dense block. Emulated, it is float32 arithmetic with its roundings:
    errors can be judged by it on any CPU, and nothing else is gained.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    BFLOAT16_EMULATED = "bfloat16, emulated"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphShape:
    """The fixed shape of a graph: `input_size` is (width, height) in pixels, `kind` is the device's."""

    micro_batch: int
    input_size: tuple[int, int]
    upsampling: Upsampling
    arithmetic: Arithmetic
    kind: str = "cpu"


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
    return Arithmetic.BFLOAT16


def build_network(weights: WeightsFile, shape: GraphShape) -> Callable[[NDArray[np.uint8]], Tensor]:
    """One traced function: uint8 (micro_batch, H, W, 3) RGB to raw outputs, float32 (micro_batch, H/2, W/2).

    The raw output is what DenseDepth's `1000 / y` takes. Tracing happens here.
    """
    import tensorflow as tf

    # Its rewritten sums (AddN) begin with whichever input's memory is free first: the last bits would hang on
    # timing. Set here, for the whole process, so that no graph is traced without it.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    graph = _Graph(weights, shape)
    width, height = shape.input_size
    signature = [tf.TensorSpec([shape.micro_batch, height, width, 3], tf.uint8)]
    network = tf.function(graph.run, input_signature=signature, autograph=False).get_concrete_function()
    return lambda images: network(tf.constant(images))


def depth_of(raw: RawOutput) -> NDArray[np.float32]:
    """Relative depth of raw outputs y, float32 (..., h, w): `clip(1000 / y, 10, 1000) / 1000`; y <= 0: far.

    Raises DepthNotFinite.
    """
    if not np.isfinite(raw).all():
        raise DepthNotFinite("the network's output holds NaN or infinity, in float32 too")
    # Cut before it is inverted, which is the same and needs no second array; what is no distance is farthest.
    relative = np.clip(raw, np.float32(SCALE / FARTHEST), np.float32(SCALE / NEAREST))
    np.divide(np.float32(SCALE), relative, out=relative)
    relative /= np.float32(SCALE)
    return relative


class _Format:
    """How tensors are kept in memory between operations."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        import tensorflow as tf

        self._tf = tf
        self._is_emulated = arithmetic is Arithmetic.BFLOAT16_EMULATED
        self._dtype = {Arithmetic.BFLOAT16: tf.bfloat16, Arithmetic.FLOAT16: tf.float16}.get(
            arithmetic, tf.float32
        )

    def kept(self, x: Tensor) -> Tensor:
        """A tensor, rounded to the format."""
        tf = self._tf
        return tf.cast(tf.cast(x, tf.bfloat16), tf.float32) if self._is_emulated else tf.cast(x, self._dtype)

    def constant(self, value: NDArray[np.floating]) -> Tensor:
        """The same of numpy's."""
        return self.kept(self._tf.constant(value, self._tf.float32))


class _Graph:
    """Constants of the network, prepared once, and the operations that use them.

    In bfloat16 the stem, the first dense block and the beginning of the second are in float32: most of the
    error would come from there. From the second block on features are kept *centred*: without their means in
    training, which the batch norms after them take off anyway. What rounding costs is then in proportion to
    how far a feature is from its mean, not to the feature.
    """

    def __init__(self, weights: WeightsFile, shape: GraphShape) -> None:
        import tensorflow as tf

        self._tf = tf
        self._topology, self._tensors, self._shape = weights.topology, weights.tensors, shape
        arithmetic = shape.arithmetic
        self._is_bfloat16 = arithmetic in (Arithmetic.BFLOAT16, Arithmetic.BFLOAT16_EMULATED)
        self._exact, self._format = _Format(Arithmetic.FLOAT32), _Format(arithmetic)
        # A GPU's library has tiles of its own, without our passes through memory.
        self._has_tiles = shape.kind == "cpu" and arithmetic is not Arithmetic.FLOAT16
        self._steps: list[Callable[[dict[str, Tensor], Tensor], Tensor]] = []
        self._prepare_stem()
        self._prepare_encoder()
        self._prepare_decoder()

    def run(self, images: Tensor) -> Tensor:
        """The raw output of uint8 images."""
        tf = self._tf
        skips: dict[str, Tensor] = {}
        x = tf.cast(images, tf.float32) / np.float32(255)
        for step in self._steps:
            x = step(skips, x)
        return x

    def _prepare_stem(self) -> None:
        tf, form = self._tf, self._form_of(0, 1)
        stem = folding.before_batch_norm(self._tensors, "conv1/conv", "conv1/bn", self._topology.epsilon)
        kernel, bias = form.constant(stem.kernel), form.constant(stem.bias)

        def run(skips: dict[str, Tensor], images: Tensor) -> Tensor:
            x = tf.pad(form.kept(images), [[0, 0], [3, 3], [3, 3], [0, 0]])
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 2, "VALID"), bias))
            skips["conv1/relu"] = x
            skips["pool1"] = tf.nn.max_pool2d(self._padded(x), 3, 2, "VALID")
            return skips["pool1"]

        self._steps.append(run)

    def _prepare_encoder(self) -> None:
        topology = self._topology
        channels = channels_of(topology)
        for index, count in enumerate(topology.blocks):
            block, centre = index + 2, self._centre(index)
            for number in range(1, count + 1):
                name = f"conv{block}_block{number}"
                here = None if centre is None else centre[: channels[f"{name}_concat"]]
                self._steps.append(self._dense_layer(name, self._form_of(index, number), here))
            if index < len(topology.transitions):
                self._steps.append(self._transition(index, centre, self._centre(index + 1)))
        self._steps.append(self._bridge(self._centre(len(topology.blocks) - 1)))

    def _form_of(self, index: int, number: int) -> _Format:
        """That of a layer, from 1, in the dense block of this index."""
        is_early = (index, number) <= (1, self._topology.blocks[1] // _EXACT_PART)
        return self._exact if self._is_bfloat16 and is_early else self._format

    def _centre(self, index: int) -> folding.Array64 | None:
        """The means that a dense block's features are kept without; None where they are kept as they are."""
        if not self._is_bfloat16 or index == 0:
            return None
        is_last = index == len(self._topology.blocks) - 1
        return folding.means_of(self._tensors, "bn" if is_last else f"pool{index + 2}_bn")

    def _dense_layer(
        self, name: str, form: _Format, centre: folding.Array64 | None
    ) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        """`centre` is that of its outputs: of the features that come in, then of those that it adds."""
        tf = self._tf
        kernel = self._tensors[f"{name}_2_conv", "kernel"]
        added = kernel.shape[3]
        here = None if centre is None else centre[:-added]
        bottleneck = self._clipped(
            folding.dense_layer(self._tensors, name, self._topology, centre=here), form
        )
        growth = form.constant(kernel)
        minus = None if centre is None else form.constant(-centre[-added:])

        def run(_skips: dict[str, Tensor], x: Tensor) -> Tensor:
            x = form.kept(x)
            y = tf.nn.conv2d(tf.nn.relu(bottleneck(x)), growth, 1, "SAME")
            y = y if minus is None else tf.nn.bias_add(y, minus)
            return tf.concat([x, form.kept(y)], 3)

        return run

    def _transition(
        self, index: int, centre: folding.Array64 | None, following: folding.Array64 | None
    ) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        """In the format in which its block ends, then without the means of the `following` one."""
        tf, name = self._tf, f"pool{index + 2}"
        form = self._form_of(index, self._topology.blocks[index])
        folded = folding.after_batch_norm(
            self._tensors, f"{name}_conv", f"{name}_bn", self._topology, centre=centre
        )
        means = None
        if following is not None:
            channels = len(folded.convolution.bias)
            folded = folding.less(folded, following[:channels])
            means = self._exact.constant(following[:channels])
        # Averaging commutes with a 1x1 convolution and costs a quarter before it.
        convolution = self._clipped(
            folded, form, between=lambda x: form.kept(tf.nn.avg_pool2d(x, 2, 2, "VALID"))
        )

        def run(skips: dict[str, Tensor], x: Tensor) -> Tensor:
            x = convolution(x)
            skips[f"{name}_pool"] = x if means is None else tf.cast(x, tf.float32) + means
            return x

        return run

    def _bridge(self, centre: folding.Array64 | None) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        topology = self._topology
        folded = folding.after_batch_norm(self._tensors, "conv2", "bn", topology, centre=centre)
        convolution = self._clipped(folded, self._format)
        return lambda _skips, x: convolution(x)

    def _prepare_decoder(self) -> None:
        width, height = self._shape.input_size
        for index, up in enumerate(self._topology.ups):
            scale = 2 ** (len(self._topology.ups) - index)
            self._steps.append(self._up(up, height // scale, width // scale))
        self._steps.append(self._last())

    def _last(self) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        """The one-channel conv3, always in float32: eight bits of mantissa would be seen as bands.

        As a product with its nine taps, then nine shifted sums: a convolution to one channel wastes the
        vectors that make a convolution fast.
        """
        tf = self._tf
        weights = folding.plain(self._tensors, "conv3")
        taps = tf.constant(weights.kernel.reshape(9, -1).T)
        bias = tf.constant(weights.bias)

        def run(_skips: dict[str, Tensor], x: Tensor) -> Tensor:
            batch, height, width, channels = x.shape
            y = tf.matmul(tf.reshape(tf.cast(x, tf.float32), (-1, channels)), taps)
            y = tf.pad(tf.reshape(y, (batch, height, width, 9)), [[0, 0], [1, 1], [1, 1], [0, 0]])
            shifted = [y[:, tap // 3 :, tap % 3 :, tap][:, :height, :width] for tap in range(9)]
            return functools.reduce(operator.add, shifted) + bias  # one after the other, unlike tf.add_n

        return run

    def _up(self, up: UpBlock, height: int, width: int) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        first = self._joined_convolution(up, height, width)
        second = self._decoder_convolution(folding.plain(self._tensors, f"{up.name}_convB"), height, width)

        def run(skips: dict[str, Tensor], x: Tensor) -> Tensor:
            y = self._activate(first(x, skips[up.skip]), up.slope_a)
            return self._activate(second(y), up.slope_b)

        return run

    def _activate(self, x: Tensor, slope: float | None) -> Tensor:
        return x if slope is None else self._tf.nn.leaky_relu(x, slope)

    def _joined_convolution(self, up: UpBlock, height: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The convA over the upsampled features and the skip, to (height, width)."""
        tf, form = self._tf, self._format
        weights = folding.plain(self._tensors, f"{up.name}_convA")
        incoming, outgoing = weights.kernel.shape[2:]
        rows, columns = (
            tapped_convolution.interpolation_matrix(size // 2, self._shape.upsampling)
            for size in (height, width)
        )
        size = {"height": height, "width": width, "outgoing": outgoing}
        is_exact = self._shape.arithmetic is Arithmetic.FLOAT32
        if is_exact and self._has_tiles and tapped_convolution.winograd_pays(incoming=incoming, **size):
            y_axis = tapped_convolution.winograd_axis(height, (rows, None))
            x_axis = tapped_convolution.winograd_axis(width, (columns, None))
            mixed = self._tapped(y_axis, x_axis, tapped_convolution.winograd_kernel(weights.kernel))
            bias = tf.constant(weights.bias)
            return lambda x, skip: tf.nn.bias_add(mixed(x, skip), bias)
        upsampled_channels = incoming - channels_of(self._topology)[up.skip]
        taps = weights.kernel[:, :, :upsampled_channels]
        if tapped_convolution.low_resolution_pays(incoming=upsampled_channels, **size):
            y_axis, x_axis = (tapped_convolution.low_resolution_axis(matrix) for matrix in (rows, columns))
            taps = taps.reshape(9, upsampled_channels, outgoing)
            upsampled = self._tapped(y_axis, x_axis, taps, is_kept=True)
        else:
            upsampled = self._rows_last(taps)
        kernel, bias = form.constant(weights.kernel[:, :, upsampled_channels:]), form.constant(weights.bias)

        def run(x: Tensor, skip: Tensor) -> Tensor:
            y = form.kept(tf.nn.bias_add(tf.nn.conv2d(form.kept(skip), kernel, 1, "SAME"), bias))
            return form.kept(form.kept(upsampled(form.kept(x))) + y)

        return run

    def _rows_last(self, kernel: NDArray[np.float32]) -> Callable[[Tensor], Tensor]:
        """A 3x3 convolution after an upsampling, at half the pixels: the rows are upsampled only afterwards.

        Upsample the columns, convolve with each row of the kernel, upsample those three along the columns'
        other axis and add them, each shifted by its row.
        """
        tf = self._tf
        form = self._format
        kernels = [form.constant(kernel[row : row + 1]) for row in range(3)]

        def run(x: Tensor) -> Tensor:
            _, height, width, _ = x.shape
            x = form.kept(self._resize(x, (height, 2 * width)))
            above, middle, below = (
                self._twice_the_rows(form.kept(tf.nn.conv2d(x, row, 1, "SAME"))) for row in kernels
            )
            above = tf.pad(above[:, :-1], [[0, 0], [1, 0], [0, 0]])
            below = tf.pad(below[:, 1:], [[0, 0], [0, 1], [0, 0]])
            return tf.reshape(middle + above + below, (-1, 2 * height, 2 * width, kernel.shape[3]))

        return run

    def _twice_the_rows(self, x: Tensor) -> Tensor:
        """Rows upsampled, to (B, 2h, w x C): a row is one pixel of many channels, which makes long loops."""
        _, height, width, channels = x.shape
        x = self._resize(self._tf.reshape(x, (-1, height, 1, width * channels)), (2 * height, 1))
        return self._tf.reshape(x, (-1, 2 * height, width * channels))

    def _padded(self, x: Tensor) -> Tensor:
        """With one pixel of zeros on all sides, as Keras pads before the pooling."""
        batch, height, width, channels = x.shape
        rows = self._tf.reshape(x, (batch, height, width * channels))
        rows = self._tf.pad(rows, [[0, 0], [1, 1], [channels, channels]])
        return self._tf.reshape(rows, (batch, height + 2, width + 2, channels))

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Bilinear, to (height, width); float32 whatever comes in."""
        is_aligned = self._shape.upsampling is Upsampling.ALIGNED
        return self._tf.raw_ops.ResizeBilinear(
            images=x, size=size, align_corners=is_aligned, half_pixel_centers=not is_aligned
        )

    def _decoder_convolution(
        self, weights: Convolution, height: int, width: int
    ) -> Callable[[Tensor], Tensor]:
        tf = self._tf
        incoming, outgoing = weights.kernel.shape[2:]
        cost = tapped_convolution.DIRECT_COST
        if self._is_bfloat16:
            cost = tapped_convolution.DIRECT_COST_BFLOAT16
        if self._has_tiles and tapped_convolution.winograd_pays(
            height=height, width=width, incoming=incoming, outgoing=outgoing, direct_cost=cost
        ):
            y_axis, x_axis = (tapped_convolution.winograd_axis(size, (None,)) for size in (height, width))
            spread = tapped_convolution.winograd_kernel(weights.kernel)
            mixed = self._tapped(y_axis, x_axis, spread)
            exact_bias = tf.constant(weights.bias)
            return lambda x: tf.nn.bias_add(mixed(tf.cast(x, tf.float32)), exact_bias)
        form = self._format
        kernel, bias = form.constant(weights.kernel), form.constant(weights.bias)
        return lambda x: form.kept(tf.nn.bias_add(tf.nn.conv2d(form.kept(x), kernel, 1, "SAME"), bias))

    def _tapped(
        self, y_axis: Axis, x_axis: Axis, kernel: NDArray[np.float32], *, is_kept: bool = False
    ) -> Callable[..., Tensor]:
        """The algorithm of tapped_convolution.py; without gathering matrices the taps share one input.

        In float32, or with `is_kept` as the arithmetic keeps tensors.
        """
        tf = self._tf
        form = self._format if is_kept else self._exact
        mixing = form.constant(kernel)
        taps = round(len(kernel) ** 0.5)
        assemble_y, assemble_x = form.constant(y_axis.assemble), form.constant(x_axis.assemble)
        height, width = len(y_axis.assemble), len(x_axis.assemble)
        gathers = [
            (form.constant(np.concatenate(y)), form.constant(np.concatenate(x)))
            for y, x in zip(y_axis.gathers, x_axis.gathers, strict=True)
        ]
        rows, columns = y_axis.assemble.shape[1] // taps, x_axis.assemble.shape[1] // taps
        batch, outgoing = self._shape.micro_batch, kernel.shape[2]

        def gather(x: Tensor, gather_y: Tensor, gather_x: Tensor) -> Tensor:
            _, in_height, in_width, channels = x.shape
            x = tf.matmul(gather_y, tf.reshape(x, (batch, in_height, in_width * channels)))
            x = tf.matmul(gather_x, tf.reshape(x, (batch * taps * rows, in_width, channels)))
            x = tf.transpose(tf.reshape(x, (batch, taps, rows, taps, columns, channels)), (1, 3, 0, 2, 4, 5))
            return tf.reshape(x, (taps * taps, batch * rows * columns, channels))

        def run(*sources: Tensor) -> Tensor:
            if gathers:
                parts = [gather(x, *matrices) for x, matrices in zip(sources, gathers, strict=True)]
                x = tf.concat(parts, 2) if len(parts) > 1 else parts[0]
            else:
                x = tf.reshape(sources[0], (1, batch * rows * columns, sources[0].shape[3]))
            x = tf.reshape(form.kept(tf.matmul(x, mixing)), (taps, taps, batch, rows, columns, outgoing))
            x = tf.reshape(
                tf.transpose(x, (2, 0, 3, 1, 4, 5)), (batch * taps * rows, taps * columns, outgoing)
            )
            x = tf.reshape(form.kept(tf.matmul(assemble_x, x)), (batch, taps * rows, width * outgoing))
            return tf.reshape(tf.matmul(assemble_y, x), (batch, height, width, outgoing))

        return run

    def _clipped(
        self, folded: ClippedConvolution, form: _Format, *, between: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[Tensor], Tensor]:
        tf = self._tf
        kernel, bias = form.constant(folded.convolution.kernel), form.constant(folded.convolution.bias)
        low = form.constant(folded.low) if np.isfinite(folded.low).any() else None
        high = form.constant(folded.high) if np.isfinite(folded.high).any() else None

        def run(x: Tensor) -> Tensor:
            x = x if low is None else tf.maximum(x, low)
            x = x if high is None else tf.minimum(x, high)
            x = x if between is None else between(x)
            return form.kept(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))

        return run

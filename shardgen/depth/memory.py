"""How much memory the network will take, and the micro-batch that fits; needs no TensorFlow."""

from __future__ import annotations

import math

from shardgen.depth.base import Precision
from shardgen.depth.topology import Topology, tensor_shapes
from shardgen.errors import MachineUnfit

# Peak resident memory measured at 480x640 on a CPU, decoder widths 64 and 1664, micro-batches 1 to 8.
RUNTIME_BYTES = 660 << 20  # TensorFlow itself
COPIES = {Precision.FLOAT32: 5, Precision.FAST: 3}  # of the tensors: as read, folded, spread over tiles
BYTES_PER_PIXEL = 320.0  # of the input: the encoder and the skips
BYTES_PER_PIXEL_AND_CHANNEL = {Precision.FLOAT32: 0.45, Precision.FAST: 0.3}  # of the decoder's width
CPU_MICRO_BATCHES = (2, 1)  # larger ones are no faster on a CPU, and take more memory
GPU_MICRO_BATCHES = (32, 16, 8, 4, 2, 1)


def memory_bytes(
    topology: Topology, *, input_size: tuple[int, int], micro_batch: int, precision: Precision
) -> int:
    """The peak memory of a process with this network, within about 25 %; `input_size` is (width, height)."""
    parameter_bytes = 4 * sum(math.prod(shape) for shape in tensor_shapes(topology).values())
    per_pixel = BYTES_PER_PIXEL + BYTES_PER_PIXEL_AND_CHANNEL[precision] * topology.decoder_width
    pixels = input_size[0] * input_size[1]
    return round(RUNTIME_BYTES + COPIES[precision] * parameter_bytes + micro_batch * pixels * per_pixel)


def default_micro_batch(
    topology: Topology, *, input_size: tuple[int, int], precision: Precision, kind: str, free_bytes: int
) -> int:
    """The micro-batch for a device (`kind` cpu or gpu) with so many bytes free for this process.

    Raises MachineUnfit if not even one image fits: on a CPU, too little memory is no exception but a kill.
    """
    for micro_batch in GPU_MICRO_BATCHES if kind == "gpu" else CPU_MICRO_BATCHES:
        needed = memory_bytes(topology, input_size=input_size, micro_batch=micro_batch, precision=precision)
        if needed <= free_bytes:
            return micro_batch
    raise MachineUnfit(
        f"the network needs {needed / 2**30:.1f} GiB for one image (free: {free_bytes / 2**30:.1f} GiB)",
        hint="close other programs, use fewer workers, or a machine with more memory",
    )

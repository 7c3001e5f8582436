"""3x3 convolutions by fewer multiplications: the matrices of Winograd's tiles and of bilinear upsampling.

Both algorithms have one form: every axis of the input is transformed by small matrices, the channels are
mixed once per pair of taps, and the result is assembled by matrices along every axis:

    out = sum over i, j of A_y[i] . ((G_y[i] . x . G_x[j]^T) @ kernel[i, j]) . A_x[j]^T

- *Winograd F(4x4, 3x3)* (Lavin and Gray 2015): 36 taps per 4x4 outputs, a quarter of the direct work. An
  upsampling before the convolution goes into the gathering matrices, so it costs nothing.
- *Low resolution*: the nine taps of the kernel as they are, mixed before the upsampling, at a quarter of the
  pixels; the assembling matrices interpolate and shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.base import Upsampling

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]

TILE = 4
TAPS = 6
# Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", F(4x4, 3x3): input, kernel, output.
GATHER = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], dtype=np.float64)  # fmt: skip
SPREAD = np.array([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
], dtype=np.float64)  # fmt: skip
ASSEMBLE = np.array([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
], dtype=np.float64)  # fmt: skip
_PIECE = 4096  # pairs of channels: in the cache, and too few for OpenBLAS to share among threads that wait
DIRECT_COST = 0.8  # of a multiply-add: direct convolutions do 52 GMAC/s per core, matrix products 40 (Zen 4)
DIRECT_COST_BFLOAT16 = 0.35  # 110 GMAC/s, while tiles stay in float32: their transforms amplify rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: `gathers[s]` (taps, positions, input of source s), `assemble` (output, taps x positions)."""

    gathers: tuple[Array32, ...]
    assemble: Array32


def interpolation_matrix(size: int, upsampling: Upsampling) -> Array64:
    """The (2 size, size) matrix of a x2 bilinear upsampling of one axis, as TensorFlow's ResizeBilinear."""
    positions = np.arange(2 * size, dtype=np.float64)
    if upsampling is Upsampling.ALIGNED:
        source = positions * (size - 1) / (2 * size - 1)
    else:
        source = np.maximum((positions + 0.5) / 2 - 0.5, 0)
    lower = np.floor(source).astype(int)
    upper = np.minimum(lower + 1, size - 1)
    matrix = np.zeros((2 * size, size))
    np.add.at(matrix, (np.arange(2 * size), lower), 1 - (source - lower))
    np.add.at(matrix, (np.arange(2 * size), upper), source - lower)
    return matrix


def winograd_axis(size: int, before: tuple[Array64 | None, ...]) -> Axis:
    """Tiles of 4 over an axis of `size` outputs; `before` is each source's upsampling, or None."""
    tile_count = -(-size // TILE)
    gather = np.zeros((TAPS, tile_count, size))
    assemble = np.zeros((size, TAPS, tile_count))
    for tile in range(tile_count):
        for offset in range(TAPS):
            position = tile * TILE - 1 + offset
            if 0 <= position < size:
                gather[:, tile, position] = GATHER[:, offset]
        for offset in range(min(TILE, size - tile * TILE)):
            assemble[tile * TILE + offset, :, tile] = ASSEMBLE[offset]
    gathers = tuple(
        np.asarray(gather if matrix is None else gather @ matrix, np.float32) for matrix in before
    )
    return Axis(gathers=gathers, assemble=assemble.reshape(size, -1).astype(np.float32))


def low_resolution_axis(interpolation: Array64) -> Axis:
    """Three taps at the low resolution, then interpolate and shift; nothing is gathered."""
    size = len(interpolation)
    taps = []
    for tap in range(3):
        shifted = np.zeros_like(interpolation)
        start, stop = max(0, 1 - tap), min(size, size + 1 - tap)
        shifted[start:stop] = interpolation[start + tap - 1 : stop + tap - 1]
        taps.append(shifted)
    return Axis(gathers=(), assemble=np.concatenate(taps, axis=1).astype(np.float32))


def winograd_kernel(kernel: Array32) -> Array32:
    """A (3, 3, in, out) kernel as (36, in, out), taps row by row."""
    taps = kernel.reshape(9, -1)
    found = np.empty((TAPS * TAPS, taps.shape[1]), np.float32)
    for start in range(0, taps.shape[1], _PIECE):
        piece = taps[:, start : start + _PIECE].reshape(3, 3, -1).astype(np.float64)
        spread = np.einsum("ay,bx,yxc->abc", SPREAD, SPREAD, piece, optimize=True)
        found[:, start : start + _PIECE] = spread.reshape(TAPS * TAPS, -1)
    return found.reshape(-1, *kernel.shape[2:])


def winograd_pays(
    *, height: int, width: int, incoming: int, outgoing: int, direct_cost: float = DIRECT_COST
) -> bool:
    """Whether tiles cost less than a direct convolution: transforms grow with the side, the gain does not.

    Counts multiply-adds of the dense transforms along both axes and of the 36 channel mixings.
    """
    rows, columns = -(-height // TILE), -(-width // TILE)
    mixing = TAPS**2 * rows * columns * incoming * outgoing
    gathering = TAPS * rows * height * width * incoming + TAPS**2 * rows * columns * width * incoming
    assembling = TAPS**2 * rows * columns * width * outgoing + TAPS * rows * height * width * outgoing
    direct = 9 * height * width * incoming * outgoing
    return mixing + gathering + assembling < direct_cost * direct


def low_resolution_pays(*, height: int, width: int, incoming: int, outgoing: int) -> bool:
    """The same for nine taps before the upsampling to (height, width)."""
    rows, columns = height // 2, width // 2
    mixing = 9 * rows * columns * incoming * outgoing
    assembling = 3 * rows * width * 3 * columns * outgoing + height * 3 * rows * width * outgoing
    return mixing + assembling < DIRECT_COST * 9 * height * width * incoming * outgoing

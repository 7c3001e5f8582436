from __future__ import annotations

import numpy as np
import pytest

from shardgen.depth.densedepth.tapped_convolution import SPREAD, winograd_kernel


@pytest.mark.parametrize("channels", [(1, 1), (7, 5), (64, 65), (300, 217)], ids=str)
def test_a_kernel_has_the_same_bits_in_pieces_as_in_one(channels: tuple[int, int]) -> None:
    kernel = np.random.default_rng(3).standard_normal((3, 3, *channels)).astype(np.float32)
    whole = np.einsum("ay,bx,yxcd->abcd", SPREAD, SPREAD, kernel.astype(np.float64), optimize=True)
    assert np.array_equal(winograd_kernel(kernel), whole.astype(np.float32).reshape(36, *channels))

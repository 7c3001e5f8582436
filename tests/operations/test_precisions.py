from __future__ import annotations

import re

import pytest

from shardgen.depth import device
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.operations.precisions import fast_beside_float32


@pytest.mark.slow
def test_fast_is_compared_with_float32_and_what_is_emulated_is_said_to_be() -> None:
    said = fast_beside_float32(read_weights(SHIPPED["small"]))
    found = re.match(
        r"(0\.\d\d) grey levels off on average, 99 % by at most (\d), all by at most (\d) \(4 photographs",
        said,
    )
    assert found, said
    mean, nearly_all, most = map(float, found.groups())
    assert 0.05 < mean <= 0.5
    assert 1 <= nearly_all <= 2
    assert nearly_all <= most
    assert ("emulated" in said) is not device.has_bfloat16()

from __future__ import annotations

import pytest

from shardgen.depth.base import Precision
from shardgen.depth.memory import default_micro_batch, memory_bytes
from shardgen.depth.densedepth.topology import released_topology
from shardgen.errors import MachineUnfit

SIZE = (640, 480)
GIB = 2**30


@pytest.mark.parametrize(
    ("width", "micro_batch", "measured_gib"),
    [
        (64, 1, 0.87),
        (64, 4, 1.15),
        (64, 8, 1.51),
        (1664, 1, 1.89),
        (1664, 2, 1.92),
        (1664, 4, 3.02),
        (1664, 8, 3.58),
    ],
)
def test_the_estimate_is_near_the_measured_peak(width: int, micro_batch: int, measured_gib: float) -> None:
    estimate = memory_bytes(
        released_topology(width), input_size=SIZE, micro_batch=micro_batch, precision=Precision.FLOAT32
    )
    assert estimate / GIB == pytest.approx(measured_gib, rel=0.25)


@pytest.mark.parametrize(
    ("kind", "free_gib", "expected"), [("cpu", 64, 2), ("cpu", 1.95, 1), ("gpu", 24, 32), ("gpu", 6, 8)]
)
def test_the_micro_batch_is_what_fits(kind: str, free_gib: float, expected: int) -> None:
    chosen = default_micro_batch(
        released_topology(1664),
        input_size=SIZE, precision=Precision.FLOAT32, kind=kind, free_bytes=int(free_gib * GIB),
    )  # fmt: skip
    assert chosen == expected


def test_a_machine_without_memory_for_one_image_is_unfit() -> None:
    with pytest.raises(MachineUnfit, match="for one image") as caught:
        default_micro_batch(
            released_topology(1664), input_size=SIZE, precision=Precision.FLOAT32, kind="cpu", free_bytes=GIB
        )
    assert caught.value.hint

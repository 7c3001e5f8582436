from __future__ import annotations

import pytest

from shardgen.depth.base import Network, NetworkPlan, Precision, Upsampling
from shardgen.depth.densedepth.family import DenseDepthNetwork
from shardgen.depth.densedepth.topology import released_topology
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.errors import MachineUnfit
from shardgen.recipes.network import fitting_micro_batch

GIB = 2**30


def network_of(width: int) -> tuple[Network, NetworkPlan]:
    """Of the released structure, without its tensors: they are not looked at."""
    file = WeightsFile(
        topology=released_topology(width), tensors={}, bytes=1, sha256="0" * 64, keras_version=""
    )
    network = DenseDepthNetwork("file", file)
    return network, NetworkPlan(
        model="densedepth",
        weights=network.weights,
        input=(640, 480),
        upsampling=Upsampling.ALIGNED,
        precision=Precision.FLOAT32,
    )


@pytest.mark.parametrize(
    ("width", "micro_batch", "measured_gib"),
    # as `python -m benchmarks.memory` printed it
    [
        (64, 1, 0.75),
        (64, 2, 0.94),
        (64, 8, 1.52),
        (1664, 1, 1.92),
        (1664, 2, 2.30),
        (1664, 4, 3.06),
        (1664, 8, 4.58),
    ],
)
def test_the_estimate_is_near_the_measured_peak(width: int, micro_batch: int, measured_gib: float) -> None:
    network, plan = network_of(width)
    assert network.memory_bytes(plan, micro_batch) / GIB == pytest.approx(measured_gib, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "free_gib", "expected"), [("cpu", 64, 2), ("cpu", 2.0, 1), ("gpu", 24, 32), ("gpu", 6, 8)]
)
def test_the_micro_batch_is_what_fits(kind: str, free_gib: float, expected: int) -> None:
    network, plan = network_of(1664)
    assert fitting_micro_batch(plan, network, kind=kind, free=int(free_gib * GIB)) == expected


def test_a_machine_without_memory_for_one_image_is_unfit() -> None:
    network, plan = network_of(1664)
    with pytest.raises(MachineUnfit, match="for one image") as caught:
        fitting_micro_batch(plan, network, kind="cpu", free=GIB)
    assert caught.value.hint

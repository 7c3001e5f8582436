from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardgen.depth import device
from shardgen.depth.base import Precision, Upsampling
from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.network import Arithmetic, GraphShape, build_network, depth_of
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.depth.device import Device
from shardgen.depth.estimator import DepthEstimator, Graph
from shardgen.domain.identifiers import SampleIndex
from shardgen.imaging.compose import Measured
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.maker import CompositesMaker
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.network import DepthStage
from tests.plans import changed, depth_in, make_plan

SIZE = (64, 64)


@pytest.fixture(scope="module")
def cpu() -> Device:
    return device.prepare("cpu")


@pytest.fixture(scope="module")
def small() -> WeightsFile:
    return read_weights(SHIPPED["small"])


def maker_of(small: WeightsFile, cpu: Device, micro_batch: int) -> tuple[CompositesMaker, list[int]]:
    """A maker that computes, and what it will have given to the network: the brightest value of each time."""
    seen: list[int] = []

    def build(micro_batch: int, _precision: Precision) -> Graph:
        shape = GraphShape(
            micro_batch=micro_batch,
            input_size=SIZE,
            upsampling=Upsampling.ALIGNED,
            arithmetic=Arithmetic.FLOAT32,
        )
        network = build_network(small, shape)

        def run(images: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
            seen.append(int(images.max()))
            return lambda: np.array(network(images))

        return run

    made = make_plan()
    depth = replace(depth_in(made), input=SIZE)
    plan = CompositesPlan(changed(made, depth=depth))
    estimator = DepthEstimator(build, depth_of, depth, micro_batch=micro_batch, on=cpu)
    stage = DepthStage(depth, estimator, agreed=None)
    maker = CompositesMaker(plan, Composer(plan, Path("none"), Path("none")), stage, cpu="")
    return maker, seen


def composed(number: int) -> ComposedSample:
    """A sample of noise, as if composed."""
    pixels = np.random.default_rng(number).integers(1, 256, (*SIZE, 3), dtype=np.uint8)
    seen = Measured(mask=pixels[..., 0], instances=None, boxes=())
    return ComposedSample(sample=SampleIndex(number), picture=pixels, measured=seen, network_input=pixels)


@pytest.mark.parametrize(
    "micro_batch", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_sample_has_the_same_depth_whichever_others_are_left_out(
    small: WeightsFile, cpu: Device, micro_batch: int
) -> None:
    maker, seen = maker_of(small, cpu, micro_batch)
    batch = [composed(number) for number in range(5)]
    finished: list[int] = []
    whole = maker.compute(batch, between=finished.append)
    assert finished == [*range(micro_batch, 5, micro_batch), 5]
    depths = [made.tobytes() for made in whole if isinstance(made, np.ndarray)]
    assert len(set(depths)) == 5
    for there in product([False, True], repeat=5):
        seen.clear()
        made = maker.compute(
            [sample if is_there else None for sample, is_there in zip(batch, there, strict=True)],
            between=lambda _done: None,
        )
        found = [depth.tobytes() if isinstance(depth, np.ndarray) else depth for depth in made]
        assert found == [depth if is_there else None for depth, is_there in zip(depths, there, strict=True)]
        parts = [there[start : start + micro_batch] for start in range(0, 5, micro_batch)]
        assert len(seen) == sum(map(any, parts))
        assert all(seen)


def test_a_check_computes_one_black_input(small: WeightsFile, cpu: Device) -> None:
    maker, seen = maker_of(small, cpu, 2)
    maker.check()
    assert seen == [0]

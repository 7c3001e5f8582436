from __future__ import annotations

import re

import numpy as np
import pytest

from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.weights_file import read_weights
from shardgen.depth.device import Device
from tests.training.test_shipped import CARD
from training.evaluate import baselines, estimator
from training.standing_out import CLEARLY, demo_composites, nearness_ratio, ratios

TOLERANCE = 0.08  # of a share of 96 composites: other versions of OpenCV cut the figures out otherwise


def test_a_figure_that_is_twice_as_near_as_what_is_around_it_stands_out() -> None:
    mask = np.zeros((240, 320), np.bool_)
    mask[80:200, 120:200] = True
    depth = np.where(mask, 0.3, 0.6).astype(np.float32)
    assert nearness_ratio(depth, mask) == pytest.approx(2.0)
    assert nearness_ratio(np.full_like(depth, 0.5), mask) == pytest.approx(1.0)
    assert nearness_ratio(np.where(mask, 0.6, 0.3).astype(np.float32), mask) == pytest.approx(0.5)


def told(name: str) -> list[float]:
    """A row of the card's table: two shares and the median."""
    section = CARD.partition("\n## Cut-outs in composites\n")[2].partition("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith(f"| {name} |"))
    shares = re.findall(r"(\d+)%", row)
    return [int(shares[0]) / 100, int(shares[1]) / 100, float(row.rstrip("| ").rpartition(" ")[2])]


@pytest.mark.slow
def test_pasted_figures_stand_out_in_the_shipped_network_as_the_card_says(cpu: Device) -> None:
    composites = demo_composites()
    found = ratios(estimator(read_weights(SHIPPED["small"])), composites)
    shares = [float((found > 1).mean()), float((found > CLEARLY).mean())]
    assert shares == pytest.approx(told("this network")[:2], abs=TOLERANCE)
    assert float(np.median(found)) == pytest.approx(told("this network")[2], abs=TOLERANCE)
    for name, baseline in baselines().items():
        assert (ratios(baseline, composites) > CLEARLY).mean() < shares[1] - 0.2, name

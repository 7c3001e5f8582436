from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from shardgen.depth.densedepth.family import SHIPPED
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.depth.device import Device
from training.evaluate import FEW, Measures, baselines, estimator, on_motorcycle, on_scenes
from training.network import SMALL, multiply_adds

CARD = (Path(__file__).parents[2] / "docs" / "small-network.md").read_text(encoding="utf-8")
NETWORK, FIRST = "this network", f"this network, the first {FEW}"
TOLERANCE = 0.03  # of each measure: other versions of OpenCV draw other edges


@cache
def shipped() -> WeightsFile:
    return read_weights(SHIPPED["small"])


def rows(heading: str) -> dict[str, Measures]:
    """The table of a section of the card."""
    section = CARD.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and re.fullmatch(r"\d\.\d+", cells[1]):
            found[cells[0]] = Measures(**dict(zip(Measures.__slots__, map(float, cells[1:]), strict=True)))
    return found


def is_better(one: Measures, other: Measures) -> bool:
    """In all six."""
    return (
        min(one.delta1 - other.delta1, one.delta2 - other.delta2, one.delta3 - other.delta3) > 0
        and max(one.rel - other.rel, one.rms - other.rms, one.log10 - other.log10) < 0
    )


def test_the_card_is_of_the_shipped_file() -> None:
    content = SHIPPED["small"].read_bytes()
    assert hashlib.sha256(content).hexdigest() in CARD
    assert f"{len(content):,} bytes" in CARD
    assert len(content) <= 4_000_000


def test_the_shipped_network_is_as_small_as_the_card_says() -> None:
    weights = shipped()
    assert weights.topology == SMALL
    assert 300_000 <= weights.parameters <= 1_000_000
    assert f"{weights.parameters:,} parameters" in CARD
    cost = multiply_adds(weights.topology, (640, 480))
    assert cost <= 5e9
    assert f"{cost / 1e9:.2f} GMAC" in CARD


def test_on_rendered_scenes_the_card_has_the_network_above_both_baselines() -> None:
    found = rows("Rendered scenes")
    assert set(found) == {NETWORK, FIRST, *baselines()}
    for name in baselines():
        assert is_better(found[NETWORK], found[name]), name


@pytest.mark.slow
def test_the_shipped_file_measures_what_the_card_says(cpu: Device) -> None:
    variants = {NETWORK: estimator(shipped()), **baselines()}
    scenes, real = on_scenes(variants, FEW), on_motorcycle(variants)
    for name in baselines():
        assert is_better(scenes[NETWORK], scenes[name]), name
    for found, told in (
        (scenes[NETWORK], rows("Rendered scenes")[FIRST]),
        (real[NETWORK], rows("A real pair")[NETWORK]),
    ):
        assert asdict(found) == pytest.approx(asdict(told), abs=TOLERANCE)

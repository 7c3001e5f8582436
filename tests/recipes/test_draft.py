"""What `plan` says of the pictures before hours are spent on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardgen.machine.cores import usable_cores
from shardgen.operations.plan import Planned, make_plan
from tests.photographs import colours, write_rgb
from tests.runs import make_run


def square(width: int, height: int, side: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A cut-out of a square of this side in the upper left, RGBA."""
    alpha = np.zeros((height, width), np.uint8)
    alpha[:side, :side] = 255
    return np.dstack([colours(np.random.default_rng(seed), width, height), alpha])


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """A canvas of 100x100, pictures of 50x50."""
    run = make_run(
        tmp_path,
        changes={"compose.canvas": "[100, 100]", "output.size": "[50, 50]"},
        foregrounds=0,
        backgrounds=0,
    )
    foregrounds, backgrounds = tmp_path / "sources/foregrounds", tmp_path / "sources/backgrounds"
    for number, side in enumerate((9, 50, 8, 20, 30)):
        write_rgb(foregrounds / f"{number}.png", square(60, 60, side, number))
    write_rgb(foregrounds / "large.png", square(150, 40, 30, 9))
    for width, height in ((49, 60), (50, 50), (200, 60), (200, 40)):
        write_rgb(backgrounds / f"{width}.{height}.jpg", colours(np.random.default_rng(width), width, height))
    return make_plan(run, {})


def test_facts_tell_what_foregrounds_cover_and_what_is_scaled(planned: Planned) -> None:
    facts = dict(planned.draft.facts)
    # 225 pixels of the one that is halved, else 81, 2500, 64, 400, 900: the middle is between 225 and 400.
    assert facts["foregrounds"] == "cover 3.1% of the picture (median), the smallest 0.6%: 2.png"
    assert facts["halved"] == "1 of 6 foregrounds, until they fit 100x100"
    assert facts["enlarged"] == "2 of 4 backgrounds, more than twice: 200.40.jpg, 49.60.jpg"


def test_specks_and_backgrounds_smaller_than_what_is_stored_are_warned_of(planned: Planned) -> None:
    assert [(one.folder, one.names, one.details) for one in planned.draft.warnings] == [
        ("foregrounds", ("2.png", "0.png"), ("0.6%", "0.8%")),
        ("backgrounds", ("200.40.jpg", "49.60.jpg"), ("200x40", "49x60")),
    ]
    assert planned.draft.warnings[0].reason == "under 1% of the picture: a speck"


def test_nothing_of_it_is_in_the_plan(planned: Planned, tmp_path: Path) -> None:
    document = (tmp_path / "run" / "plan.json").read_text(encoding="utf-8")
    assert "covered" not in document
    assert planned.draft.lacks is None


def test_with_a_range_of_heights_pictures_of_a_camera_are_warned_of(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        changes={
            "compose.canvas": "[100, 100]",
            "compose.placement": '"random"',
            "compose.grid": None,
            "compose.foreground_height": "[300, 600]",
            "depth.model": '"none"',
        },
    )
    write_rgb(
        tmp_path / "sources/foregrounds/camera.png",
        np.pad(square(60, 60, 60, 1), ((0, 2400), (0, 1600), (0, 0))),
    )
    planned = make_plan(run, {})
    warned = [one for one in planned.draft.warnings if "slow" in one.reason]
    assert [(one.names, one.hint) for one in warned] == [
        (("camera.png",), "use copies that are about 120 pixels high")
    ]
    recipe = run.recipe(planned.plan)
    cores = min(8, usable_cores())
    least = cores * 2460 * 1660 * 16
    assert recipe.demand(None).bytes_for(1) > least + (512 << 20)


def test_settings_that_can_hardly_be_meant_are_warned_of(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        changes={
            "compose.placement": '"random"',
            "compose.grid": None,
            "compose.foreground_height": "5000",
            "compose.foregrounds_per_sample": "[1, 9]",
            "compose.overhang": "1000",
            "depth.model": '"none"',
        },
    )
    hints = [one.hint for one in make_plan(run, {}).draft.warnings]
    for key in ("foregrounds_per_sample", "foreground_height", "overhang"):
        assert f"see {key} in [compose]" in hints

"""What a scan keeps, so that the estimate of sizes reads and decodes no photograph again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardgen.errors import InputMissing
from shardgen.operations.plan import draft_plan
from shardgen.recipes.base import SizeEstimate
from shardgen.recipes.composites import estimate as estimating
from shardgen.settings.run_directory import RunDirectory
from tests.runs import make_run

GRID: dict[str, str | None] = {}
AT_RANDOM: dict[str, str | None] = {
    "compose.grid": None,
    "compose.placement": '"random"',
    "compose.places": "3",
    "compose.seed": "7",
    "compose.foregrounds_per_sample": "[1, 3]",
    "compose.foreground_height": "[300, 800]",
}


@pytest.fixture(params=[GRID, AT_RANDOM], ids=["grid", "random"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path, changes=request.param, foregrounds=7, backgrounds=40)


def estimated(run: RunDirectory, **changes: Any) -> SizeEstimate:
    """With what the scan kept; the folders are gone by then."""
    folders = run.folders({})
    plan, draft = draft_plan(run, folders)
    draft = replace(draft, **changes)
    moved = {kind: folder.rename(folder.with_name(f"{kind}-gone")) for kind, folder in folders.items()}
    try:
        return run.settings.kind.estimate(run.recipe(plan), folders, at_hand=draft.at_hand)
    finally:
        for kind, folder in moved.items():
            folder.rename(folders[kind])


def test_the_estimate_reads_no_photograph_and_is_what_it_would_be(run: RunDirectory) -> None:
    folders = run.folders({})
    plan, _draft = draft_plan(run, folders)
    assert estimated(run) == run.settings.kind.estimate(run.recipe(plan), folders)


def test_without_room_it_reads_them_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_AT_HAND_BYTES", 0)
    with pytest.raises(InputMissing):
        estimated(run)
    with pytest.raises(InputMissing):
        estimated(run, at_hand=None)

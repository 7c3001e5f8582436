"""Rows of whole runs: of one sample, and of samples none of which can be made."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from tests.bad_input.case import BACKGROUNDS, FOREGROUNDS, RUN, Case, Outcome
from tests.poison import environment

EVERY_SAMPLE = range(48)
MADE_ANYWAY = (f"{RUN}/manifest.sqlite", f"{RUN}/plan.json", f"{RUN}/artifacts")


def _one_sample(box: Path) -> None:
    for folder in (FOREGROUNDS, BACKGROUNDS):
        for path in sorted((box / folder).iterdir())[1:]:
            path.unlink()
    path = box / RUN / "shardgen.toml"
    text = path.read_text(encoding="utf-8").replace("grid = [3, 2]", "grid = [1, 1]")
    path.write_text(text.replace('flips = "foregrounds"', 'flips = "none"'), encoding="utf-8")


def _holds_one_sample(outcome: Outcome) -> None:
    with zipfile.ZipFile(outcome.run / "dataset.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        assert [row["sample"] for row in rows] == ["0"]
        assert len([name for name in archive.namelist() if "/" in name]) == 3


CASES = [
    Case(
        name="a single sample",
        arguments=("run", RUN, "--device", "cpu"),
        code=0,
        arrange=_one_sample,
        check=_holds_one_sample,
    ),
    Case(
        name="everything dead",
        arguments=("run", RUN, "--device", "cpu"),
        code=15,
        environment=environment("raise", *EVERY_SAMPLE),
        says=("all 48", "dead letters"),
        hints=("shardgen dead-letters people", "shardgen requeue people --dead-letters"),
        allowed=MADE_ANYWAY,
    ),
    Case(
        name="everything dead, and allowed",
        arguments=("run", RUN, "--device", "cpu", "--allow-dead-letters"),
        code=15,
        environment=environment("raise", *EVERY_SAMPLE),
        says=("all 48", "nothing to merge"),
        hints=("shardgen dead-letters people", "shardgen requeue people --dead-letters"),
        allowed=MADE_ANYWAY,
    ),
]

"""Rows of whole runs: of one sample, and of samples none of which can be made."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from tests.bad_input import of_sources
from tests.bad_input.case import BACKGROUNDS, FOREGROUNDS, RUN, Case, Outcome
from tests.poison import environment

ODD_NAMES = ('two\nlines, "quoted".jpg', "n" * 251 + ".png", "--help.png", " Žluťoučký 人 🐈.png")
EVERY_SAMPLE = range(48)
MADE_ANYWAY = (f"{RUN}/manifest.sqlite", f"{RUN}/plan.json", f"{RUN}/artifacts")


def _one_sample(box: Path) -> None:
    for folder in (FOREGROUNDS, BACKGROUNDS):
        for path in sorted((box / folder).iterdir())[1:]:
            path.unlink()
    path = box / RUN / "shardgen.toml"
    text = path.read_text(encoding="utf-8").replace("grid = [3, 2]", "grid = [1, 1]")
    path.write_text(text.replace('flips = "foregrounds"', 'flips = "none"'), encoding="utf-8")


def _odd_names(box: Path) -> None:
    for folder, names in ((BACKGROUNDS, ODD_NAMES[:2]), (FOREGROUNDS, ODD_NAMES[2:])):
        for path, name in zip(sorted((box / folder).iterdir()), names, strict=True):
            path.rename(box / folder / name)


def _enormous(box: Path) -> None:
    for path in (box / BACKGROUNDS).iterdir():
        path.unlink()
    (box / BACKGROUNDS / "huge.png").write_bytes(of_sources.png(10_000, 10_000))


def _holds(samples: int, *names: str) -> Callable[[Outcome], object]:
    """All samples with three images each that decode, and labels that name these photographs as they are."""

    def check(outcome: Outcome) -> None:
        with zipfile.ZipFile(outcome.run / "dataset.zip") as archive:
            assert archive.testzip() is None
            rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode(), newline="")))
            assert [int(row["sample"]) for row in rows] == list(range(samples))
            images = [name for name in archive.namelist() if "/" in name]
            assert len(images) == 3 * samples
            for name in images:
                pixels = np.frombuffer(archive.read(name), np.uint8)
                assert cv2.imdecode(pixels, cv2.IMREAD_COLOR) is not None, name
            assert {*names} <= {value for row in rows for value in row.values()}

    return check


def _shared_folder(box: Path) -> None:
    path = box / RUN / "shardgen.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('url = "sqlite:///manifest.sqlite"', 'url = "folder:"'), encoding="utf-8")


def _holds_one_sample(outcome: Outcome) -> None:
    with zipfile.ZipFile(outcome.run / "dataset.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        assert [row["sample"] for row in rows] == ["0"]
        assert len([name for name in archive.namelist() if "/" in name]) == 3


CASES = [
    Case(
        name="a data set of photographs with odd names",
        arguments=("run", RUN, "--device", "cpu"),
        code=0,
        arrange=_odd_names,
        check=_holds(48, *ODD_NAMES),
    ),
    Case(
        name="a data set of single pixels",
        arguments=("run", RUN, "--device", "cpu"),
        code=0,
        arrange=of_sources.tiny,
        check=_holds(12, "dot.png"),
    ),
    Case(
        name="a data set of a hundred megapixels",
        arguments=("run", RUN, "--device", "cpu"),
        code=0,
        arrange=_enormous,
        check=_holds(24, "huge.png"),
        peak_bytes=1800 << 20,
    ),
    Case(
        name="a plan in a shared folder",
        arguments=("plan", RUN),
        code=0,
        arrange=_shared_folder,
        check=lambda outcome: outcome.box.joinpath(RUN, "plan.json").stat(),
    ),
    Case(
        name="a single sample",
        arguments=("run", RUN, "--device", "cpu"),
        code=0,
        arrange=_one_sample,
        check=_holds_one_sample,
    ),
    Case(
        name="everything dead",
        prints=True,
        arguments=("run", RUN, "--device", "cpu"),
        code=15,
        environment=environment("raise", *EVERY_SAMPLE),
        says=("all 48", "dead letters"),
        hints=("shardgen dead-letters people", "shardgen requeue people --dead-letters"),
        allowed=MADE_ANYWAY,
    ),
    Case(
        name="everything dead, and allowed",
        prints=True,
        arguments=("run", RUN, "--device", "cpu", "--allow-dead-letters"),
        code=15,
        environment=environment("raise", *EVERY_SAMPLE),
        says=("all 48", "nothing to merge"),
        hints=("shardgen dead-letters people", "shardgen requeue people --dead-letters"),
        allowed=MADE_ANYWAY,
    ),
]

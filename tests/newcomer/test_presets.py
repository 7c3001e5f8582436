from __future__ import annotations

import csv
import io
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from shardgen.recipes.registry import find_preset, presets
from shardgen.settings.template import setting_names, settings_text
from tests.newcomer.terminals import State, Terminal, Terminals

ROOT = Path(__file__).parents[2]
FOLDERS = {"foregrounds": "cut-outs", "backgrounds": "scenes", "pictures": "scenes"}
SMALL = {
    "compose.grid": "[2, 1]",
    "compose.places": "2",
    "depth.weights": '"small"',
    "depth.input": "[64, 64]",
    "depth.micro_batch": "2",
    "shards.batch": "4",
}
# Height and width of the images of each output; None: as the picture's.
SIZES: dict[str, dict[str, tuple[int, int] | None]] = {
    "grid600": {"fgbg": (200, 200), "mask": (200, 200), "depth": (200, 200)},
    "random224": {"fgbg": (224, 224), "mask": (224, 224), "depth": (112, 112)},
    "museum704": {"fgbg": (224, 224), "mask": (224, 224), "depth": (224, 224)},
    "masks-only": {"fgbg": (200, 200), "mask": (200, 200)},
    "depth-of-folder": {"image": None, "depth": None},
}
# 4 scenes; 2 cut-outs, both also mirrored, at 2 places.
SAMPLES = {preset: 4 if preset == "depth-of-folder" else 4 * 2 * 2 * 2 for preset in SIZES}


def without_tensorflow(terminal: Terminal) -> dict[str, str]:
    """What makes it impossible for a command and its workers to import TensorFlow."""
    folder = terminal.folder / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\nsys.modules['tensorflow'] = None\n", encoding="utf-8"
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_makes_what_it_says_and_a_contact_sheet(terminals: Terminals, preset: str) -> None:
    terminal = terminals.at(State.PHOTOGRAPHS)
    folders = {kind: FOLDERS[kind] for kind in find_preset(preset)[0].folders}
    options = " ".join(f"--{kind} {folder}" for kind, folder in folders.items())
    assert terminal.type(f"shardgen init set --preset {preset} {options}").code == 0
    changes = {key: value for key, value in SMALL.items() if key in setting_names(preset)}
    whole = {f"sources.{kind}": f'"{terminal.folder / folder}"' for kind, folder in folders.items()}
    settings = terminal.folder / "set" / "shardgen.toml"
    assert settings.read_text(encoding="utf-8") == settings_text(preset=preset, changes=whole)
    settings.write_text(settings_text(preset=preset, changes=whole | changes), encoding="utf-8")
    more = without_tensorflow(terminal) if preset == "masks-only" else {}
    if more:
        assert terminal.type("python -c 'import tensorflow'", more=more).code == 1
    for command in ("plan set", "preview set --samples 4", "run set", "verify set/dataset.zip"):
        said = terminal.type(f"exec shardgen {command}", more=more)
        assert said.code == 0, said.err
    assert f"read {SAMPLES[preset]} samples: no findings" in said.out
    with zipfile.ZipFile(terminal.folder / "set" / "dataset.zip") as archive:
        names = archive.namelist()
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        assert len(rows) == SAMPLES[preset]
        for output, size in SIZES[preset].items():
            images = [name for name in names if name.startswith(f"{output}/")]
            assert len(images) == SAMPLES[preset]
            for name, row in zip(sorted(images), rows, strict=True):
                shape = decoded(archive.read(name)).shape[:2]
                assert shape == (size or (int(row["height"]), int(row["width"])))
        assert {name.split("/")[0] for name in names if "/" in name} == set(SIZES[preset])
        sheet = decoded(archive.read("contact_sheet.png"))
    assert min(sheet.shape[:2]) > 100
    assert sheet.std() > 20  # somebody is there
    assert decoded((terminal.folder / "set" / "preview.png").read_bytes()).std() > 20


def decoded(data: bytes) -> np.ndarray:
    """The pixels of an image file."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels

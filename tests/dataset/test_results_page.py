"""The lines of docs/results.md and of examples/show_labels.py do what is said of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shardgen.domain.plan import Plan
from shardgen.recipes.composites.recipe import CompositesRecipe
from tests.dataset import made_runs
from tests.dataset.test_metadata import CROWD, ONE, picture, zipped

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# What the comments say of shapes.
SHOWN = """
for name, channels in (("fgbg", 3), ("mask", 1)):
    assert batch[name].shape[1:] == (200, 200, channels), batch[name].shape
    assert batch[name].dtype == "uint8"
"""


@pytest.mark.slow
def test_the_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_runs, "image", picture)
    zipped(ONE, tmp_path)
    opening, torch, tensorflow, hugging_face = BLOCKS
    compile(torch, "docs/results.md", "exec")  # PyTorch is in no extra: it is run by hand
    script = f"{opening}\n{tensorflow}\n{SHOWN}\n{hugging_face}\nassert len(images) == len(data) == 120"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("plan", [ONE, CROWD], ids=["one", "crowd"])
def test_labels_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    monkeypatch.setattr(made_runs, "image", picture)
    path = zipped(plan, tmp_path)
    drawn = tmp_path / "labels.png"
    script = [sys.executable, str(ROOT / "examples" / "show_labels.py"), str(path), str(drawn), "0", "7"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(drawn))
    assert pixels.shape == (800, 1200, 3)
    assert (pixels[:, :400] == (0xE6, 0x19, 0x4B)).all(axis=2).any()  # somebody's box


def test_every_column_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| `.*", PAGE, re.MULTILINE))))
    assert explained.issuperset(CompositesRecipe.label_columns)

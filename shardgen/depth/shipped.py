"""The weights that lie inside the package: `small`, trained on rendered scenes, to try the pipeline with."""

from __future__ import annotations

from pathlib import Path

SHIPPED = {"small": Path(__file__).with_name("small.h5")}

from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.manifest.place import Place
from tests.conformance.conftest import clock, lease, manifest, plan

__all__ = ["clock", "lease", "manifest", "plan"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(url="sqlite:///manifest.sqlite", run_dir=tmp_path)

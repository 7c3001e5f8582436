from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.manifest.database_url import DatabaseUrl
from tests.conformance.conftest import DatabasePlace, Place, clock, lease, manifest, plan

__all__ = ["clock", "lease", "manifest", "plan"]


@pytest.fixture
def database(tmp_path: Path) -> DatabaseUrl:
    return DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=tmp_path)


@pytest.fixture
def place(database: DatabaseUrl) -> Place:
    return DatabasePlace(database)

from __future__ import annotations

import pytest

from shardgen.settings.run_directory import RunDirectory


@pytest.fixture
def lost(run: RunDirectory) -> RunDirectory:
    """A planned run whose manifest is gone."""
    (run.path / "manifest.sqlite").unlink()
    return run

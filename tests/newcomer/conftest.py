from __future__ import annotations

from pathlib import Path

import pytest

from tests.newcomer.terminals import Terminals


@pytest.fixture(scope="session")
def terminals(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Terminals:
    """Where newcomers type."""
    return Terminals(
        tmp_path_factory.mktemp("newcomers"), u2netp=lambda: Path(request.getfixturevalue("u2netp"))
    )

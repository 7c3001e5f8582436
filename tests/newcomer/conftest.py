from __future__ import annotations

import pytest

from tests.newcomer.terminals import Terminals


@pytest.fixture(scope="session")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> Terminals:
    """Where newcomers type."""
    return Terminals(tmp_path_factory.mktemp("newcomers"))

from __future__ import annotations

import pytest

from tests.newcomer.desks import Desks


@pytest.fixture(scope="session")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Desks:
    """Where newcomers type."""
    return Desks(tmp_path_factory.mktemp("newcomers"))

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.dataset.export.made_samples import SEVERAL, Made, composites


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The real library, which asks no server for anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        import datasets  # noqa: PLC0415 - it reads the environment when it is imported

        datasets.disable_progress_bars()
        yield datasets


@pytest.fixture(scope="session")
def one_person(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Samples of one person each."""
    return composites(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Samples of several people."""
    return composites(tmp_path_factory.mktemp("several"), SEVERAL)

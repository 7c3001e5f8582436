from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.depth import device
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.depth.device import Device
from tests.legacy_weights import write_legacy_weights


@pytest.fixture(scope="session")
def cpu() -> Device:
    """TensorFlow, configured once for the whole test process."""
    return device.prepare("cpu")


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> WeightsFile:
    path: Path = tmp_path_factory.mktemp("weights") / "narrow.h5"
    return read_weights(write_legacy_weights(path))

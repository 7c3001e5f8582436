from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.depth import device
from shardgen.depth.densedepth.weights_file import WeightsFile, read_weights
from shardgen.depth.device import Device
from tests.legacy_weights import LegacyNetwork, write_legacy_weights


@pytest.fixture(scope="session")
def cpu() -> Device:
    """TensorFlow, configured once for the whole test process."""
    return device.prepare("cpu")


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> WeightsFile:
    path: Path = tmp_path_factory.mktemp("weights") / "narrow.h5"
    return read_weights(write_legacy_weights(path))


@pytest.fixture(scope="session")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose decoder goes all three ways: tiles, taps at the low resolution, rows last."""
    network = LegacyNetwork(width=640, blocks=(1, 2, 1, 3), growth=12, stem=24, seed=4)
    return network.write(tmp_path_factory.mktemp("wide") / "wide.h5")

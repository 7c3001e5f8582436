from __future__ import annotations

import pytest

from shardgen.depth import device
from shardgen.depth.device import Device


@pytest.fixture(scope="session")
def cpu() -> Device:
    """TensorFlow, configured once for the whole test process."""
    return device.prepare("cpu")

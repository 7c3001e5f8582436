from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardgen.storage import files as module
from shardgen.storage.files import DiskFiles


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_everything_is_written_whatever_the_size_of_a_turn(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_BYTES", 10)
    files, data = DiskFiles(), os.urandom(size)
    descriptor = files.create(tmp_path / "file")
    files.write(descriptor, data)
    files.write(descriptor, memoryview(data))
    files.close(descriptor)
    assert (tmp_path / "file").read_bytes() == 2 * data

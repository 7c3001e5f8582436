from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from shardgen.storage.atomic import abandoned_files, remove_abandoned, staged_beside
from shardgen.storage.files import DiskFiles


class SweptFiles(DiskFiles):
    """A sweep comes between the creation of the first file and its lock: it has gone, or is about to."""

    def __init__(self, *, is_gone: bool) -> None:
        self._is_gone = is_gone
        self._held: list[int] = []
        self.created: list[Path] = []

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self.created.append(path)
        if len(self.created) == 1:
            if self._is_gone:
                remove_abandoned(path)
                assert not path.exists()
            else:
                self._held.append(os.open(path, os.O_RDWR))
                fcntl.flock(self._held[0], fcntl.LOCK_EX)
        return descriptor

    def let_go(self) -> None:
        for descriptor in self._held:
            self.created[0].unlink(missing_ok=True)
            os.close(descriptor)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_sweep_takes_no_zip_that_a_merge_has_just_begun(tmp_path: Path, *, is_gone: bool) -> None:
    files = SweptFiles(is_gone=is_gone)
    with staged_beside(tmp_path / "out.zip", files=files) as (descriptor, staged):
        files.let_go()
        assert os.path.samestat(staged.stat(), os.fstat(descriptor))
        assert abandoned_files(tmp_path) == []
        remove_abandoned(staged)
        assert list(tmp_path.iterdir()) == [staged]
    assert list(tmp_path.iterdir()) == []


def test_a_merge_removes_what_killed_ones_of_its_own_name_left_and_nothing_else(tmp_path: Path) -> None:
    ours = tmp_path / ".data[1].01234567.part"
    ours.write_bytes(b"half")
    others = [".data1.01234567.part", ".data[1].ABCDEFGH.part", ".data[1].zip.01234567.part"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".data[1].abcdefgh.part").mkdir()
    with staged_beside(tmp_path / "data[1]", files=DiskFiles()):
        assert not ours.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".data[1].abcdefgh.part"])

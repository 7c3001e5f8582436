"""A file layer that writes down the order of its calls and can make one of them fail."""

from __future__ import annotations

import os
from pathlib import Path

from shardgen.storage.files import DiskFiles


class RecordedFiles(DiskFiles):
    def __init__(self, *, fail: str = "", errno: int = 0, after: int = 0) -> None:
        self.calls: list[str] = []
        self._names: dict[int, str] = {}
        self._fail = fail
        self._errno = errno
        self._after = after

    def _note(self, call: str, subject: object) -> None:
        name = self._names.get(subject, "?") if isinstance(subject, int) else Path(str(subject)).name
        self.calls.append(f"{call} {name}")
        if call == self._fail:
            if self._after == 0:
                raise OSError(self._errno, os.strerror(self._errno))
            self._after -= 1

    def create(self, path: Path) -> int:
        self._note("create", path)
        descriptor = super().create(path)
        self._names[descriptor] = path.name
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        if self._fail == "write" and self._after == 0:
            os.write(descriptor, memoryview(data)[: len(data) // 2])  # a full disk takes a part first
        self._note("write", descriptor)
        super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._note("fsync", descriptor)
        super().fsync(descriptor)

    def link(self, source: Path, target: Path) -> None:
        self._note("link", target)
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._note("rename", target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._note("unlink", path)
        super().unlink(path)

    def make_folder(self, path: Path) -> bool:
        self._note("make_folder", path)
        return super().make_folder(path)

    def fsync_folder(self, path: Path) -> None:
        self._note("fsync_folder", path)
        super().fsync_folder(path)

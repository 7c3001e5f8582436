"""A file layer that fails on command: the harness writes an order into a file, the next such call obeys."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from shardgen.storage.files import DiskFiles

CALLS = ("create", "write", "fsync", "link", "unlink", "fsync_folder")
FULL_DISK = "full-disk"  # the name of an order to all workers, obeyed until it is withdrawn
ONE_FAULT = "fault"  # the name of an order to one worker, obeyed once


def order_fault(folder: Path, *, call: str, error: int) -> None:
    """Let the next `call` of the worker of that folder fail; appears whole."""
    staged = folder / f".{ONE_FAULT}"
    staged.write_text(f"{call} {error}", encoding="ascii")
    staged.rename(folder / ONE_FAULT)


class FaultyFiles(DiskFiles):
    """The real file system, with faults; every one is told to `on_fault` before it is raised."""

    def __init__(self, worker_folder: Path, on_fault: Callable[[str, str], None]) -> None:
        self._order = worker_folder / ONE_FAULT
        self._full = worker_folder.parent / FULL_DISK
        self._on_fault = on_fault

    def _obey(self, call: str) -> None:
        if call in ("create", "write") and self._full.exists():
            self._fail(call, errno.ENOSPC)
        if self._order.exists():
            ordered, number = self._order.read_text(encoding="ascii").split()
            if ordered == call:
                self._order.unlink()
                self._fail(call, int(number))

    def _fail(self, call: str, number: int) -> None:
        self._on_fault(call, errno.errorcode[number])
        raise OSError(number, os.strerror(number))

    def create(self, path: Path) -> int:
        self._obey("create")
        return super().create(path)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        try:
            self._obey("write")
        except OSError:
            os.write(descriptor, memoryview(data)[: len(data) // 2])  # a full disk takes a part first
            raise
        super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._obey("fsync")
        super().fsync(descriptor)

    def link(self, source: Path, target: Path) -> None:
        self._obey("link")
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._obey("unlink")
        super().unlink(path)

    def fsync_folder(self, path: Path) -> None:
        self._obey("fsync_folder")
        super().fsync_folder(path)

"""A shared folder between real processes: a real one, whose files each machine sees late, in its own way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path

from shardgen.coordination.folder.files import DiskFolder
from tests.shared_folder.double import Cloud, Faults


class Records:
    """When every file was written, by which machine, and how long it takes to whom; beside the folder."""

    def __init__(self, folder: Path, *, seed: int, faults: Faults) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cloud = Cloud(now=time.time, seed=seed, faults=faults)

    def _record(self, path: str) -> Path:
        return self._folder / hashlib.sha256(path.encode()).hexdigest()

    def add(self, path: str, machine: str) -> None:
        """Before the file itself is written."""
        staged = self._folder / f"{self._record(path).name}.{os.getpid()}"
        staged.write_text(json.dumps({"path": path, "machine": machine, "at": time.time()}), encoding="utf-8")
        staged.replace(self._record(path))

    def is_visible(self, path: str, machine: str) -> bool:
        """Whether a machine sees a file that is there; one without a record came another way, and is seen."""
        try:
            record = json.loads(self._record(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return True
        if record["machine"] == machine:
            return True
        lag = max(self._upload_seconds(path), self._cloud.lag(path, machine))
        return bool(time.time() >= record["at"] + lag)

    def is_uploaded(self, path: str) -> bool:
        """Whether a file has left its machine."""
        record = json.loads(self._record(path).read_text(encoding="utf-8"))
        return bool(time.time() >= record["at"] + self._upload_seconds(path))

    def _upload_seconds(self, path: str) -> float:
        return self._cloud.faults.uploading * self._cloud.lag(path, "upload")

    def lose(self, machine: str, shared: Path) -> int:
        """The machine's disk is gone, and with it what was not uploaded yet; how many files."""
        count = 0
        for record in list(self._folder.iterdir()):
            found = json.loads(record.read_text(encoding="utf-8"))
            if found["machine"] == machine and not self.is_uploaded(found["path"]):
                (shared / found["path"]).unlink(missing_ok=True)
                count += 1
        return count


class LateFolder:
    """One machine's view of a real folder: a FolderFiles."""

    def __init__(self, shared: Path, records: Records, machine: str) -> None:
        self._disk = DiskFolder(shared)
        self._shared = shared
        self._records = records
        self._machine = machine

    def write(self, path: str, data: bytes) -> None:
        """Its own machine sees it at once."""
        self._records.add(path, self._machine)
        self._disk.write(path, data)

    def read(self, path: str) -> bytes:
        """As DiskFolder does, if it is visible yet."""
        if not self._records.is_visible(path, self._machine):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._disk.read(path)

    def names(self, folder: str) -> list[str]:
        """What is visible; a folder is as soon as it is there."""
        return [
            name
            for name in self._disk.names(folder)
            if (self._shared / folder / name).is_dir()
            or self._records.is_visible(f"{folder}/{name}", self._machine)
        ]

    def is_uploaded(self, path: str) -> bool | None:
        """By the record."""
        return self._records.is_uploaded(path)

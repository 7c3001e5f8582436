"""A shared folder as a cloud drive shows it: late, cut short, doubled, stale, or not at all.

One `Cloud` holds what was written; each machine looks through eyes of its own. Everything is drawn from the
seed, the path and the machine, so that a history can be played again.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Seconds = float


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How bad the drive is: delays in seconds, shares of files or of calls."""

    median_lag: Seconds = 0.0  # from the write until another machine sees it
    uploading: float = 0.25  # the part of a lag that a file needs to leave its machine
    longest_lag: Seconds = 1800.0
    spread: float = 1.0  # of the logarithm; 1.0 puts one file in a hundred at ten times the median
    stuck: float = 0.0  # files that take the longest lag
    lost: float = 0.0  # files that only their writer ever sees
    late_content: float = 0.0  # files whose first half is seen first
    cut: float = 0.0  # files of which others see a half for ever
    doubled: float = 0.0  # files that others see as `name (1)`, too, or instead
    failing_calls: float = 0.0
    stale_listings: float = 0.0  # listings of an earlier moment, or without one of their folders


@dataclass(slots=True, kw_only=True)
class _File:
    data: bytes
    writer: str
    written_at: Seconds
    uploaded_at: Seconds
    fate: float
    is_doomed: bool


@dataclass(slots=True)
class Cloud:
    """What was written by whom; `now` tells the true time, which no machine knows."""

    now: Callable[[], Seconds]
    seed: int
    faults: Faults
    files: dict[tuple[str, str], _File] = field(default_factory=dict)
    is_healed: bool = False
    calls: int = 0
    _inside: dict[str, dict[str, list[tuple[str, str]]]] = field(default_factory=dict)
    _lags: dict[tuple[str, str], Seconds] = field(default_factory=dict)

    def put(self, path: str, file: _File) -> None:
        """Keep a file, and know it under each folder that it lies in."""
        self.files[path, file.writer] = file
        parts = path.split("/")
        for depth in range(len(parts)):
            inside = self._inside.setdefault("/".join(parts[:depth]), {})
            inside.setdefault(parts[depth], []).append((path, file.writer))

    def inside(self, folder: str) -> Iterator[list[tuple[str, _File]]]:
        """For each entry of a folder: the file, or the files below it."""
        for keys in list(self._inside.get(folder, {}).values()):
            yield [(path, self.files[path, writer]) for path, writer in keys if (path, writer) in self.files]

    def named(self, path: str) -> list[_File]:
        """The files of a name: machines that do not see each other's may both write one."""
        folder, _, name = path.rpartition("/")
        keys = self._inside.get(folder, {}).get(name, [])
        return [self.files[key] for key in keys if key in self.files and key[0] == path]

    def draw(self, *words: object) -> float:
        """A number in [0, 1) that these words alone decide."""
        text = "/".join(map(str, (self.seed, *words)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64

    def lag(self, path: str, machine: str) -> Seconds:
        """How long after it was written this machine sees a file."""
        if (path, machine) not in self._lags:
            self._lags[path, machine] = self._lag(path, machine)
        return self._lags[path, machine]

    def _lag(self, path: str, machine: str) -> Seconds:
        faults = self.faults
        if self.draw("stuck", path, machine) < faults.stuck:
            return faults.longest_lag
        normal = random.Random(f"{self.seed}/{path}/{machine}").gauss(0, 1)  # noqa: S311
        return min(faults.longest_lag, faults.median_lag * math.exp(faults.spread * normal))

    def lose(self, machine: str) -> None:
        """The machine ends with its disk: what was not uploaded yet is gone, in no order."""
        for key in [
            key for key, file in self.files.items() if key[1] == machine and file.uploaded_at > self.now()
        ]:
            del self.files[key]

    def heal(self) -> None:
        """From now on nothing fails and nothing is late; what was lost or cut stays so."""
        self.is_healed = True


class Eyes:
    """One machine's view of a cloud: a FolderFiles."""

    def __init__(self, cloud: Cloud, machine: str) -> None:
        self._cloud = cloud
        self._machine = machine
        self._known: dict[tuple[str, str], tuple[Seconds, list[str]]] = {}

    def write(self, path: str, data: bytes) -> None:
        """A name that this machine sees is refused; one that it does not see yet is not."""
        self._may_fail("write", path)
        if self._seen(path) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        cloud, now = self._cloud, self._cloud.now()
        is_cut = not cloud.is_healed and cloud.draw("torn", path, cloud.calls) < cloud.faults.failing_calls
        delay = 0.0 if cloud.is_healed else cloud.lag(path, "upload") * cloud.faults.uploading
        cloud.put(
            path,
            _File(
                data=data[: len(data) // 2] if is_cut else data,
                writer=self._machine,
                written_at=now,
                uploaded_at=now + delay,
                fate=cloud.draw("fate", path),
                is_doomed=not cloud.is_healed and not path.startswith("requeue/"),
            ),
        )
        if is_cut:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def read(self, path: str) -> bytes:
        """What this machine sees of it now."""
        self._may_fail("read", path)
        file = self._seen(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._content(path, file)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, perhaps of an earlier moment."""
        self._may_fail("names", folder)
        cloud, below = self._cloud, folder.count("/") + 1
        late = 0.0
        if (
            not cloud.is_healed
            and cloud.draw("stale", folder, self._machine, cloud.calls) < cloud.faults.stale_listings
        ):
            late = 2 * cloud.faults.median_lag
            if cloud.draw("blind", folder, self._machine, cloud.calls) < 0.3:
                return []
        names: set[str] = set()
        for entry in cloud.inside(folder):
            for path, file in entry:
                shown = self._shown(path, file, late)
                parts = path.split("/")
                if shown and len(parts) > below + 1:
                    names.add(parts[below])
                    break
                names.update(one.rpartition("/")[2] for one in shown)
        return sorted(names)

    def is_uploaded(self, path: str) -> bool | None:
        """As Google Drive's mount tells it."""
        file = self._cloud.files.get((path, self._machine))
        return None if file is None else file.uploaded_at <= self._cloud.now()

    def _may_fail(self, *words: object) -> None:
        cloud = self._cloud
        cloud.calls += 1
        if not cloud.is_healed and cloud.draw("call", cloud.calls, *words) < cloud.faults.failing_calls:
            number = errno.EIO if cloud.calls % 2 else errno.ENOTCONN
            raise OSError(number, os.strerror(number), str(words[-1]))

    def _shown(self, path: str, file: _File, late: Seconds = 0.0) -> list[str]:
        """The paths under which this machine sees a file now."""
        if file.writer == self._machine:
            return [path]
        if self._cloud.is_healed:
            at, shown = file.uploaded_at, self._names_of(path, file)
        else:
            key = path, file.writer
            if key not in self._known:
                self._known[key] = self._visible_at(path, file), self._names_of(path, file)
            at, shown = self._known[key]
        return shown if at <= self._cloud.now() - late else []

    def _visible_at(self, path: str, file: _File) -> Seconds:
        return max(file.uploaded_at, file.written_at + self._cloud.lag(path, self._machine))

    def _names_of(self, path: str, file: _File) -> list[str]:
        faults = self._cloud.faults
        if not file.is_doomed:
            return [path]
        if file.fate < faults.lost:
            return []
        doubling = self._cloud.draw("doubled", path) if faults.doubled else 1.0
        if doubling >= faults.doubled:
            return [path]
        stem, _, suffix = path.rpartition(".")
        double = f"{stem} (1).{suffix}"
        return [double] if doubling < faults.doubled / 2 else [path, double]

    def _seen(self, path: str) -> _File | None:
        stored = path.replace(" (1).", ".")
        for file in self._cloud.named(stored):
            if path in self._shown(stored, file):
                return file
        return None

    def _content(self, path: str, file: _File) -> bytes:
        if file.writer == self._machine or not file.is_doomed:
            return file.data
        faults, half = self._cloud.faults, file.data[: len(file.data) // 2]
        stored = path.replace(" (1).", ".")
        if self._cloud.draw("cut", stored) < faults.cut:  # for all but its writer
            return half
        is_late = self._cloud.draw("late", stored, self._machine) < faults.late_content
        whole_at = 0.0 if self._cloud.is_healed else self._visible_at(stored, file) + 2 * faults.median_lag
        return half if is_late and self._cloud.now() < whole_at else file.data

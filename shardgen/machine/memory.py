"""How much memory this process may use: the machine's, within the container's limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from shardgen.machine import cores

_NO_LIMIT_V1 = 1 << 60  # without a limit the first version says almost 2^63, rounded to pages
_VMSTAT = Path("/proc/vmstat")
_SHORT_BYTES = 256 << 20
_SHORT_PART = 0.05
_LATELY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes; `limit` is the tightest control group's, None where the machine itself is the tightest."""

    free: int
    total: int
    limit: int | None = None

    @property
    def is_short(self) -> bool:
        """Whether so little is free that the kernel may be killing somebody."""
        return self.free < max(_SHORT_BYTES, _SHORT_PART * self.total)

    @property
    def shown_limit(self) -> str:
        """The limit in a parenthesis, or nothing."""
        return "" if self.limit is None else f" (limit of this container: {self.limit / 2**30:.1f} GiB)"


def available_memory() -> Memory:
    """What this process and those that it starts may still take; memory that holds files counts as free."""
    machine = psutil.virtual_memory()
    found = Memory(free=int(machine.available), total=int(machine.total))
    for group in _groups():
        free = min(found.free, max(0, group.limit - group.used))
        if group.limit < found.total:
            found = Memory(free=free, total=group.limit, limit=group.limit)
        else:
            found = Memory(free=free, total=found.total, limit=found.limit)
    return found


class KernelKills:
    """Counts the kernel's kills for lack of memory, and remembers how little was free."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counted = _kill_count()
        self._short_at = -math.inf

    def look(self) -> None:
        """To be called every second or so while processes work: what they held is free after their death."""
        if available_memory().is_short:
            self._short_at = self._monotonic()

    def explain(self) -> str:
        """Why a process that was just killed probably was; "" where nothing speaks for memory."""
        counted, before = _kill_count(), self._counted
        self._counted = counted
        if counted <= before and self._monotonic() - self._short_at > _LATELY_SECONDS:
            return ""
        memory = available_memory()
        return "likely out of memory" + (memory.shown_limit or f" ({memory.total / 2**30:.1f} GiB in all)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    limit: int
    used: int  # without what holds files, which the kernel gives back first

    @classmethod
    def v2(cls, folder: Path) -> Self | None:
        """None where there is no limit, or nothing to read."""
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is None or used is None:
            return None
        return cls(limit=limit, used=used - _reclaimable(folder, "inactive_file", "active_file"))

    @classmethod
    def v1(cls, folder: Path) -> Self | None:
        """None where there is no limit, or nothing to read."""
        limit = _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= _NO_LIMIT_V1:
            return None
        return cls(limit=limit, used=used - _reclaimable(folder, "total_inactive_file", "total_active_file"))


def _groups() -> Iterator[_Group]:
    for version, folder in cores.control_groups("memory"):
        found = _Group.v2(folder) if version == 2 else _Group.v1(folder)
        if found is not None:
            yield found


def _kill_count() -> int:
    """Of this process's own groups, and of the machine where that can be seen; it only ever rises."""
    count = _named(_VMSTAT, "oom_kill")
    for version, folder in cores.control_groups("memory"):
        count += _named(folder / ("memory.events" if version == 2 else "memory.oom_control"), "oom_kill")
    return count


def _reclaimable(folder: Path, *names: str) -> int:
    return sum(_named(folder / "memory.stat", name) for name in names)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no limit
        return None


def _named(path: Path, name: str) -> int:
    """The number behind a name in a file of such lines; 0 where there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def free_bytes() -> int:
    """Memory that this process may still take, with what it has taken already."""
    memory = available_memory()
    return min(memory.total, memory.free + int(psutil.Process().memory_info().rss))

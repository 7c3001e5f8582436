"""How many cores this process may use, and how workers share them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: it can be bound to some of them, and a container limits their time."""
    quota = cpu_quota(_CGROUPS, _MEMBERSHIP)
    return schedulable_cores() if quota is None else min(schedulable_cores(), max(1, math.ceil(quota)))


def schedulable_cores() -> int:
    """Cores that this process may run on: what libraries count, which know nothing of a container's quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(cores: int, workers: int) -> int:
    """Threads for each of these workers: the same for all, since their number decides a CPU's last bits.

    Rounded up, so that no core is left idle.
    """
    return math.ceil(cores / workers)


def cpu_quota(cgroups: Path, membership: Path) -> float | None:
    """The least CPU time per time that this process's control groups allow, as in `docker run --cpus 1.5`.

    None: no limit. Of both versions, `cgroups` is where they are mounted and `membership` /proc/self/cgroup.
    """
    quotas = [
        _quota_v2(folder) if version == 2 else _quota_v1(folder)
        for version, folder in control_groups("cpu", cgroups, membership)
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def control_groups(
    controller: str, cgroups: Path | None = None, membership: Path | None = None
) -> Iterator[tuple[int, Path]]:
    """The control groups (version, folder) that limit this process, from its own up to the root.

    Not all of them need be there: inside a container only its own group may be visible, as the root.
    """
    cgroups, membership = cgroups or _CGROUPS, membership or _MEMBERSHIP
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            for root in (cgroups, cgroups / "unified"):  # the latter where both versions are mounted
                yield from ((2, folder) for folder in _upwards(root, path))
        elif controller in controllers.split(","):
            for mount in sorted({controller, controllers}):
                yield from ((1, folder) for folder in _upwards(cgroups / mount, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    # Inside a container the path may be the host's while the mount's root is the container's own group.
    folder = mount / path.strip("/")
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, _, period = (folder / "cpu.max").read_text(encoding="ascii").partition(" ")
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max 100000" is no limit
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")
        )
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None

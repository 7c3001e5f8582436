from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.machine import cores
from shardgen.machine.cores import cpu_quota, schedulable_cores, threads_each, usable_cores
from shardgen.recipes.base import DeviceChoice, PlanEvents
from tests.runs import make_run


@given(cores=st.integers(1, 300), workers=st.integers(1, 300))
def test_no_core_is_left_over_and_no_worker_has_another_number_of_threads(cores: int, workers: int) -> None:
    each = threads_each(cores, workers)
    assert each * workers >= cores
    assert (each - 1) * workers < cores


def test_bound_processes_count_their_own_cores_only() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    try:
        os.sched_setaffinity(0, {one})
        assert schedulable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert schedulable_cores() == len(before)


def test_planning_reads_no_more_photographs_at_once_than_it_has_cores(tmp_path: Path) -> None:
    from shardgen.operations.plan import make_plan  # noqa: PLC0415 - OpenCV, for this test alone

    run = make_run(tmp_path, foregrounds=6, backgrounds=6)
    readers: list[str] = []
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        events = PlanEvents(on_file=lambda _name, _of: readers.append(threading.current_thread().name))
        make_plan(run, {}, events=events)
    finally:
        os.sched_setaffinity(0, before)
    assert readers == ["scan_0"] * 12


def groups(folder: Path, membership: str, files: dict[str, str]) -> float | None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "membership").write_text(membership)
    return cpu_quota(folder, folder / "membership")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000\n", "a/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/the/hosts/path\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {}, None),
        (
            "3:cpuset:/x\n2:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("1:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("1:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("1:name=systemd:/a\n", {"cpu/a/cpu.cfs_quota_us": "1\n", "cpu/a/cpu.cfs_period_us": "1\n"}, None),
    ],
)
def test_a_containers_quota_is_found(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    assert groups(tmp_path, membership, files) == expected


def test_a_quota_limits_the_usable_cores_and_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardgen.launch.allocation import _threads  # noqa: PLC0415

    monkeypatch.delenv("SHARDGEN_THREADS", raising=False)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    assert DeviceChoice.from_environment("cpu").threads == 0  # no quota: the libraries' own choice
    assert _threads(1, 0) == 0
    assert groups(tmp_path, "0::/\n", {"cpu.max": "30000 100000\n"}) == 0.3
    assert usable_cores() == 1
    assert groups(tmp_path, "0::/\n", {"cpu.max": f"{100000 * schedulable_cores() - 1} 100000\n"})
    assert usable_cores() == schedulable_cores()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(64))
    groups(tmp_path, "0::/\n", {"cpu.max": "250000 100000\n"})
    assert usable_cores() == 3
    assert DeviceChoice.from_environment("cpu").threads == 3
    assert _threads(1, 0) == 3
    assert _threads(2, 0) == 2
    assert _threads(2, 5) == 5
    monkeypatch.setenv("SHARDGEN_THREADS", "9")
    assert DeviceChoice.from_environment("cpu").threads == 9

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shardgen.machine import cores, memory
from shardgen.machine.memory import KernelKills, Memory, available_memory
from shardgen.operations.doctor import Line, diagnose
from shardgen.settings.run_directory import RunDirectory

ROOT = Path(__file__).parent.parent.parent
GIB, MIB = 1 << 30, 1 << 20
V1_NO_LIMIT = 9223372036854771712


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where made-up control groups lie; the machine has 16 GiB, 8 of them free."""
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "_VMSTAT", tmp_path / "vmstat")
    machine = psutil.virtual_memory()._replace(total=16 * GIB, available=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    return tmp_path


def put(folder: Path, membership: str, files: dict[str, object]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    (folder / "membership").write_text(membership)


def v2(folder: str, limit: object, used: int, stat: str = "") -> dict[str, object]:
    return {f"{folder}memory.max": limit, f"{folder}memory.current": used, f"{folder}memory.stat": stat}


def v1(folder: str, limit: int, used: int, stat: str = "") -> dict[str, object]:
    root = f"memory/{folder}"
    return {
        f"{root}memory.limit_in_bytes": limit,
        f"{root}memory.usage_in_bytes": used,
        f"{root}memory.stat": stat,
    }


FILES = f"inactive_file {100 * MIB}\nactive_file {50 * MIB}\nshmem {GIB}"
TOTAL_FILES = f"inactive_file 5\ntotal_inactive_file {100 * MIB}\ntotal_active_file {50 * MIB}"


@pytest.mark.parametrize(
    ("membership", "files", "free", "limit"),
    [
        ("0::/a\n", v2("a/", GIB, 400 * MIB), GIB - 400 * MIB, GIB),
        ("0::/a\n", v2("a/", GIB, 400 * MIB, FILES), GIB - 250 * MIB, GIB),
        ("0::/a/b\n", v2("a/b/", "max", 400 * MIB) | v2("a/", 2 * GIB, GIB), GIB, 2 * GIB),
        # The outer group is the larger one, and nearly full of others.
        ("0::/a/b\n", v2("a/b/", GIB, 0) | v2("a/", 2 * GIB, 2 * GIB - 5), 5, GIB),
        ("0::/the/hosts/path\n", v2("", GIB, 0), GIB, GIB),
        ("0::/\n", {}, 8 * GIB, None),
        ("0::/a\n", v2("a/", "max", 0), 8 * GIB, None),
        ("0::/a\n", v2("a/", 32 * GIB, GIB), 8 * GIB, None),
        ("0::/a\n", v2("a/", 12 * GIB, 0), 8 * GIB, 12 * GIB),
        ("0::/a\n", v2("a/", GIB, 2 * GIB), 0, GIB),
        ("4:memory:/a\n0::/\n", v1("a/", GIB, 400 * MIB, TOTAL_FILES), GIB - 250 * MIB, GIB),
        ("4:memory:/a/b\n", v1("a/b/", V1_NO_LIMIT, GIB) | v1("a/", 2 * GIB, GIB), GIB, 2 * GIB),
        ("4:memory:/docker/abc\n", v1("", GIB, 0), GIB, GIB),
        ("4:memory:/a\n", v1("a/", V1_NO_LIMIT, GIB), 8 * GIB, None),
        ("4:cpu:/a\n", v1("a/", GIB, 0), 8 * GIB, None),
    ],
)
def test_the_tightest_group_decides_how_much_memory_is_free(
    groups: Path, membership: str, files: dict[str, object], free: int, limit: int | None
) -> None:
    put(groups, membership, files)
    assert available_memory() == Memory(free=free, total=limit or 16 * GIB, limit=limit)


def test_without_proc_the_machine_alone_counts(groups: Path) -> None:
    assert available_memory() == Memory(free=8 * GIB, total=16 * GIB)


def test_doctor_shows_the_limit(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardgen.operations.doctor._device", lambda: Line(subject="device", fact=""))
    put(groups, "0::/a\n", v2("a/", 2_000_000_000, 500_000_000))
    line = next(line for line in diagnose(None) if line.subject == "memory")
    assert line.fact == "1.5 of 2.0 GB free, the limit of this container"


@pytest.mark.parametrize(
    ("membership", "counter"),
    [("0::/a\n", "a/memory.events"), ("4:memory:/a\n", "memory/a/memory.oom_control")],
)
def test_a_kill_that_the_kernel_counted_is_explained_once(
    groups: Path, membership: str, counter: str
) -> None:
    files = v2("a/", GIB, 0) | v1("a/", GIB, 0)
    put(groups, membership, files | {counter: "oom 3\noom_kill 2"})
    kernel = KernelKills()
    assert kernel.explain() == ""
    put(groups, membership, files | {counter: "oom 3\noom_kill 3"})
    assert kernel.explain() == "likely out of memory (limit of this container: 1.0 GiB)"
    assert kernel.explain() == ""


def test_where_nothing_counts_kills_little_free_memory_before_it_explains_one(groups: Path) -> None:
    put(groups, "0::/a\n", v2("a/", GIB, GIB - 100 * MIB))
    now = [100.0]
    kernel = KernelKills(lambda: now[0])
    kernel.look()
    put(groups, "0::/a\n", v2("a/", GIB, 10 * MIB))  # what the killed process held is free
    kernel.look()
    assert "out of memory" in kernel.explain()
    now[0] += 11
    assert kernel.explain() == ""


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A real control group inside this process's own, with 450 MiB; every limit above it stays in force."""
    version, own = next(iter(cores.control_groups("memory")), (0, Path()))
    group = own / f"shardgen-test-{os.getpid()}"
    limit = group / ("memory.max" if version == 2 else "memory.limit_in_bytes")
    try:
        group.mkdir()
        try:
            limit.write_text(str(450 * MIB))
        except OSError:
            group.rmdir()
            raise
    except OSError as error:
        pytest.skip(f"this machine allows no control group of one's own: {error}")
    yield group
    deadline = time.monotonic() + 30
    while True:  # the kernel takes a moment to let go of the last process
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_workers_that_a_real_limit_kills_are_explained_and_the_run_ends_with_what_to_change(
    run: RunDirectory, limited_group: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(limited_group), str(run.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(450 * MIB)
    killed = [line for line in lines if "was killed by signal 9" in line]
    assert killed, lines
    assert all("likely out of memory (limit of this container: 0.2 GiB)" in line for line in killed)
    assert lines[-2].startswith("34 48 of 48 samples are pending"), lines
    assert "killed, likely out of memory" in lines[-2]
    assert "[depth] micro_batch" in lines[-1]
    refused = next(line for line in lines if line.startswith("18 "))
    assert "(limit of this container: 0.4 GiB)" in refused


UNDER_A_LIMIT = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from shardgen.errors import ShardgenError
from shardgen.machine.memory import available_memory
from shardgen.settings.run_directory import RunDirectory
from shardgen.launch.local import LocalLauncher
from shardgen.launch.supervisor import RunOptions, run_workers
from shardgen.launch.allocation import Share, Wanted, settle_workers

found = available_memory()
assert found.free < found.limit
print(found.limit)
run = RunDirectory.open(Path(sys.argv[2]))
plan = run.plan()
try:
    settle_workers(run, plan, Wanted(workers=1, device="cpu"), (), say=print)
except ShardgenError as error:
    print(error.exit_code, error)
for name in ("memory.max", "memory.limit_in_bytes"):
    if Path(sys.argv[1], name).exists():
        Path(sys.argv[1], name).write_text(str(200 << 20))  # less than a worker needs
began = time.monotonic()
fast = lambda: began + 100 * (time.monotonic() - began)
shares = (Share(device="cpu"),)  # as if there were room for one
try:
    launcher = LocalLauncher(run, shares, say=print)
    run_workers(run, plan, launcher, RunOptions(monotonic=fast), say=print)
except ShardgenError as error:
    print(error.exit_code, error)
    print(error.hint)
"""

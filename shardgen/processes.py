"""Which process this is, and which of this host's processes have ended."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.worker import WorkerIdentity

_START_TOLERANCE_SECONDS = 2.0  # start times are counted from a boot time that clock corrections shift


def host_id() -> str:
    """Boot id, pid namespace and host name: containers share host names and pids, reboots reuse pids."""
    return f"{_boot_id()}/{_pid_namespace()}/{socket.gethostname()}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "pid"


def new_identity(name: str | None = None) -> WorkerIdentity:
    """The identity of this process as a worker; a given name is kept in front of the random part."""
    pid = os.getpid()
    prefix = name or f"{socket.gethostname()}-{pid}"
    return WorkerIdentity(
        id=WorkerId(f"{prefix}-{secrets.token_hex(4)}"),
        host=host_id(),
        pid=pid,
        process_started=psutil.Process(pid).create_time(),
    )


def gone(identities: Iterable[WorkerIdentity]) -> list[WorkerId]:
    """Those of this host's workers whose process has ended (a stopped one has not). Others' are left out."""
    host = host_id()
    return [one.id for one in identities if one.host == host and not is_running(one.pid, one.process_started)]


def is_running(pid: int, started: float) -> bool:
    """Whether the process of that pid and start time (seconds since 1970) is there and no zombie."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) <= _START_TOLERANCE_SECONDS
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def usable_cores() -> int:
    """Cores that this process may run on: it can be bound to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

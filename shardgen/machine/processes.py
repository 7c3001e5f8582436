"""Which process this is, and which of this host's processes have ended."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.worker import WorkerIdentity

_START_FIELD = 19  # of /proc/PID/stat behind the name: clock ticks from boot to the process's start
_START_TOLERANCE_SECONDS = 2.0  # without /proc, start times are counted from a boot time that may be shifted
_ENDED = ("Z", "X", "x")  # states: a zombie, and dead

_PROC = Path("/proc/self")


def host_id() -> str:
    """Boot id, pid namespace and host name: containers share host names and pids, reboots reuse pids."""
    return f"{_boot_id()}/{_pid_namespace()}/{host_name()}"


def host_name() -> str:
    r"""The machine's name; bytes that are no UTF-8, which no record takes, are written out as `\xff`."""
    return socket.gethostname().encode(errors="surrogateescape").decode(errors="backslashreplace")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return f"boot-{psutil.boot_time():.0f}"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "pid"


def new_identity(name: str | None = None) -> WorkerIdentity:
    """The identity of this process as a worker; a given name is kept in front of the random part."""
    pid = os.getpid()
    prefix = name or f"{host_name()}-{pid}"
    return WorkerIdentity(
        id=WorkerId(f"{prefix}-{secrets.token_hex(4)}"),
        host=host_id(),
        pid=pid,
        process_started=process_start(pid),
    )


def gone(identities: Iterable[WorkerIdentity]) -> list[WorkerId]:
    """Those of this host's workers whose process has ended (a stopped one has not). Others' are left out."""
    host = host_id()
    return [one.id for one in identities if one.host == host and not is_running(one.pid, one.process_started)]


def is_running(pid: int, started: float) -> bool:
    """Whether the process of that pid and `process_start` is there and no zombie."""
    if _PROC.is_dir():
        fields = _fields_of(pid)
        return fields is not None and float(fields[_START_FIELD]) == started and fields[0] not in _ENDED
    import psutil

    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) <= _START_TOLERANCE_SECONDS
        return is_same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def process_start(pid: int) -> float:
    """When a process started: ticks since boot where /proc tells, which no clock correction shifts.

    Raises ProcessLookupError.
    """
    if _PROC.is_dir():
        fields = _fields_of(pid)
        if fields is None:
            raise ProcessLookupError(pid)
        return float(fields[_START_FIELD])
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None


def _fields_of(pid: int) -> list[str] | None:
    """What /proc/PID/stat says behind the name, from the state on; None where there is no such process."""
    try:
        text = (_PROC.parent / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()

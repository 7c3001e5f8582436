"""Runs the real command under a condition (a full disk, …) and says what it did to a folder.

`python -m tests.bad_input.stage` answers one JSON line for each JSON line that it is asked. A request runs
in a process of its own, with mounts of its own, so that nothing of it is left; the command runs in a child
of that: either forked from here, where most of shardgen is imported already, or as `python -m shardgen`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_DROP_FROM_BOUNDING_SET, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2
_PAGE = 4096

Snapshot = dict[str, list[Any]]


class ImpossibleHereError(Exception):
    """This machine does not allow a test to make the condition."""


def snapshot(folder: Path) -> Snapshot:
    """Every name below a folder: its type and rights, size, time of change, and digest or target."""
    return dict(_entries(folder, folder))


def _entries(root: Path, folder: Path) -> Iterator[tuple[str, list[Any]]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        path = Path(entry.path)
        name = os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")
        status = entry.stat(follow_symlinks=False)
        mode = stat.filemode(status.st_mode)
        if entry.is_dir(follow_symlinks=False):
            # A folder's own time changes with every temporary file in it, which is no change that stays.
            yield name, [mode]
            yield from _entries(root, path)
        elif entry.is_symlink():
            yield name, [mode, str(path.readlink())]
        elif stat.S_ISREG(status.st_mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield name, [mode, status.st_size, status.st_mtime_ns, digest]
        else:
            yield name, [mode, status.st_mtime_ns]


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())
    if _LIBC.mount(*arguments) != 0:
        raise ImpossibleHereError(f"no mount on {target}: {os.strerror(ctypes.get_errno())}")


def _own_mounts() -> None:
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_MOUNTS if user == 0 else _NEW_MOUNTS | _NEW_USERS
    if _LIBC.unshare(flags) != 0:
        raise ImpossibleHereError(f"no mounts of one's own: {os.strerror(ctypes.get_errno())}")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    _mount("none", Path("/"), "", _RECURSIVE | _PRIVATE)


def _read_only(folder: Path) -> None:
    _own_mounts()
    _mount(str(folder), folder, "", _BIND)
    _mount("none", folder, "", _REMOUNT | _BIND | _READ_ONLY)


def _full(folder: Path, free_bytes: int) -> None:
    """Put a disk with that much free space in the place of a folder, with the folder's content on it."""
    _own_mounts()
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name) / "kept"
        shutil.copytree(folder, kept, symlinks=True)
        files = [path for path in kept.rglob("*") if path.is_file()]
        used = sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in files)
        _mount("none", folder, "tmpfs", 0, f"size={used + free_bytes + _PAGE}")
        shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
    free = shutil.disk_usage(folder).free - free_bytes
    (folder / ".filler").write_bytes(bytes(max(free, 0)))


def _powerless() -> None:
    """Take root's right to pass over permissions; it is gone once another program is executed."""
    if os.geteuid() != 0:
        return
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        if _LIBC.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0) != 0:
            raise ImpossibleHereError("root keeps its rights")


def _small_files(limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


_CONDITIONS: dict[str, Callable[..., None]] = {
    "read-only": _read_only,
    "full": _full,
    "powerless": _powerless,
    "small-files": _small_files,
}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Make the condition, look, run the command, look again."""
    folder = Path(request["folder"])
    kind, arguments = request["condition"], request["condition_arguments"]
    try:
        if kind and kind != "small-files":
            _CONDITIONS[kind](*[Path(one) if isinstance(one, str) else one for one in arguments])
    except ImpossibleHereError as error:
        return {"impossible": str(error)}
    before = snapshot(folder)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            _become_the_command(request, stdout, stderr)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(request["timeout_seconds"])
        _, status, usage = os.wait4(child, 0)
        signal.alarm(0)
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "backslashreplace"))
    return {
        "code": os.waitstatus_to_exitcode(status),
        "stdout": texts[0],
        "stderr": texts[1],
        "before": before,
        "after": snapshot(folder),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def _become_the_command(request: dict[str, Any], stdout: IO[bytes], stderr: IO[bytes]) -> None:
    code = 99
    try:
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        if request["condition"] == "small-files":
            _small_files(*request["condition_arguments"])
        if request["from_the_start"]:
            os.execv(sys.executable, [sys.executable, "-m", "shardgen", *request["arguments"]])  # noqa: S606
        from shardgen.cli.app import main  # noqa: PLC0415 - this module also serves tests that only look

        sys.argv = ["shardgen", *request["arguments"]]
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:  # noqa: BLE001 - main() lets nothing through: the test must see it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    # Imported here once, so that each forked command does not do it again. None of them starts threads.
    import shardgen.cli.app  # noqa: PLC0415
    import shardgen.operations.merge  # noqa: PLC0415
    import shardgen.operations.plan  # noqa: PLC0415, F401

    for line in sys.stdin:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            try:
                reply = json.dumps(_answer(json.loads(line)))
            except BaseException:  # noqa: BLE001 - told to the test
                reply = json.dumps({"broken": traceback.format_exc()})
            with os.fdopen(writing, "w") as pipe:
                pipe.write(reply)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        os.waitpid(process, 0)
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()

"""Real commands without their seconds of imports: forks of a process that has imported all and run nothing.

Each command is a process of its own, with its own environment, folder, streams and exit code, as `python -m`
would start it; the workers that `run` starts are forks of that `run`. What is about the start itself (which
modules are imported, the size of OpenBLAS's pool, memory) is for a fresh interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from shardgen.cli.commands import LINES

ROOT = Path(__file__).parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tensorflow", "cv2", "alembic.command", "psycopg", "typer._adapters", "rich.live", "rich.table",
        "shardgen.cli.app", *(f"shardgen.cli.{name.replace('-', '_')}" for name in LINES),
        "shardgen.recipes.composites.maker", "shardgen.recipes.pictures.maker",
        "shardgen.coordination.database", "shardgen.operations.forecast",
        "shardgen.depth.densedepth.network",
        "shardgen.operations.merge", "shardgen.operations.verify", "shardgen.operations.plan",
        "shardgen.operations.rebuild", "shardgen.launch.local", "shardgen.launch.supervisor",
        "shardgen.worker.worker",
        "tests.chaos.worker", "tests.halted_worker", "tests.kill_at",
    ]
)  # fmt: skip
_POPEN = subprocess.Popen
_PYTHONPATH = os.environ.get("PYTHONPATH", "")
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # read while TensorFlow is imported; shardgen sets the same


def context() -> multiprocessing.context.ForkServerContext:
    """Starts processes in which everything is imported; there is one server for all tests of this process."""
    # A test may have set what its own processes are to start with; the server is everybody's.
    before = dict(os.environ)
    os.environ.update({_LOG_LEVEL: "2", "PYTHONPATH": _PYTHONPATH})
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return _CONTEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    stdout: str
    stderr: str | Connection


def _become(part: _Part) -> None:
    os.chdir(part.folder)
    for descriptor, stream in ((1, part.stdout), (2, part.stderr)):
        if isinstance(stream, Connection):
            os.dup2(stream.fileno(), descriptor)
            stream.close()
        else:
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    subprocess.Popen = _Popen  # type: ignore[assignment,misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests are a background job
    _run_and_exit(part.module, part.arguments, part.environment)


def _run_and_exit(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Be `python -m module arguments` in that environment, to the end of this process."""
    code = 1
    # Those of the server remember that they wrote to files, and its other threads may have held them.
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(  # type: ignore[misc]
        2, "w", 1, errors="backslashreplace", closefd=False
    )
    try:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        sys.orig_argv = [sys.executable, "-m", *sys.argv]
        if (path := os.environ.get("PYTHONPATH", "")) != _PYTHONPATH:
            for folder in path.split(os.pathsep):
                if (customize := Path(folder, "sitecustomize.py")).is_file():
                    runpy.run_path(str(customize))
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Popen(_POPEN):  # type: ignore[type-arg]
    """A class, as Ray makes one of its own from it when it is imported."""

    def __new__(cls, command: Sequence[str], **options: Any) -> Any:
        return _popen(command, **options)


def _popen(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """In the place of `subprocess.Popen`, in a process that is thrown away: its workers are forks of it."""
    if list(command[:4]) != [sys.executable, "-P", "-m", "shardgen"]:
        return _POPEN(command, **options)

    def become() -> None:
        # Nobody waits for the ends of pipes that this process would keep open.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.modules["shardgen.cli.render"].ABOVE.clear()  # a line that `run` draws is not its workers'
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGPIPE, signal.SIG_IGN),
        ):
            signal.signal(number, handler)
        _run_and_exit("shardgen", command[4:], options["env"])

    return _POPEN(command, preexec_fn=become, **options)


class Command:
    """A command that runs; it has what tests need of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess, stderr: IO[str] | None) -> None:
        self._process = process
        self.pid = process.pid or 0
        self.name = process.name
        self.stderr = stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stderr is not None:
            self.stderr.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        """Negative: the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _begin(part: _Part, stderr: IO[str] | None = None) -> Command:
    process = context().Process(target=_become, args=(part,), daemon=True, name=" ".join(part.arguments[:2]))
    process.start()
    return Command(process, stderr)


def start(
    module: str,
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    said: Path | None = None,
) -> Command:
    """Start `python -m module arguments` and leave it running.

    Both its streams go to `said`; without, stdout is lost and stderr can be read line by line.
    """
    reader, writer = _CONTEXT.Pipe(duplex=False)
    with reader, writer:
        part = _Part(
            module=module,
            arguments=[str(argument) for argument in arguments],
            environment={**os.environ, **(environment or {})},
            folder=str(Path.cwd()),
            stdout=str(said or os.devnull),
            stderr=str(said) if said else writer,
        )
        if said is not None:
            return _begin(part)
        return _begin(part, os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace"))


def run(
    module: str,
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float = 240.0,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` to its end; stdout and stderr are captured."""
    words = [str(argument) for argument in arguments]
    with ExitStack() as stack:
        streams = [stack.enter_context(tempfile.NamedTemporaryFile()) for _ in range(2)]
        part = _Part(
            module=module,
            arguments=words,
            environment={**os.environ, **(environment or {})},
            folder=str(folder or Path.cwd()),
            stdout=streams[0].name,
            stderr=streams[1].name,
        )
        command = _begin(part)
        try:
            code = command.wait(timeout)
        finally:
            command.kill()
            command.wait()
        texts = [stream.read().decode("utf-8") for stream in streams]
    return subprocess.CompletedProcess([module, *words], code, *texts)

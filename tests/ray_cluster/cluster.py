"""A Ray cluster of several raylets on this machine, all of whose ports are of loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.bucket.servers import free_port
from tests.warm import ROOT

BEGUN = "SHARDGEN_TEST_BEGUN"  # the file in which workers note each batch that they begin
_SITE = Path(__file__).parent / "site"
_NODES = 2
_TRIES = 3
_WAIT_SECONDS = 120.0
_OBJECT_STORE_BYTES = 80 << 20
# As `Cluster` starts one; `ray start` would look for the head at this machine's other address.
_NODE = """
import json, signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
Node(RayParams(**json.loads(sys.argv[1]), node_manager_port=0, include_log_monitor=False), head=False)
signal.pause()
"""
_LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


class LocalCluster:
    """A head without CPUs and two nodes of one CPU each; tests change the nodes and put them back."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie in it: its path must be short
        (self.folder / "ray").mkdir()
        self.environment = {
            "PYTHONPATH": f"{_SITE}{os.pathsep}{ROOT}",
            "RAY_AUTH_MODE": "disabled",
            # Else Ray takes 127.0.0.1 for this machine's other address, where nobody listens.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with self._set({}):
            self._cluster: Any = Cluster()
        self._head = self._add(num_cpus=0)
        self.restore()

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    @property
    def nodes(self) -> list[Any]:
        """Those that give CPUs."""
        return sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)

    @property
    def raylet_port(self) -> int:
        """Where its raylet on the head listens, which  is not an address  of a cluster."""
        return int(self._head.node_manager_port)

    def add(self, *, cpus: int = 1, environment: Mapping[str, str] | None = None) -> Any:
        """One more node, when it has joined; its processes find the variables in their environment."""
        return self._add(environment, num_cpus=cpus)

    @contextmanager
    def elsewhere(self, *, hidden: Path) -> Iterator[None]:
        """With a node more, which sees an empty folder in the place of one."""
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        options = {"gcs_address": self.address, "num_cpus": 1, **self._options()}
        command = [sys.executable, "-c", _NODE, json.dumps(options)]
        before = self._alive()
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, str(hidden), *command],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: self._alive() > before or process.poll() is not None, lambda: "it never joined"
            )
            assert process.poll() is None, "a mount namespace needs root"
            yield
        finally:
            with suppress(psutil.NoSuchProcess):
                kill_all(psutil.Process(process.pid))
            process.wait()

    def _alive(self) -> int:
        return len(self._cluster.global_state._live_node_ids())

    def remove(self, node: Any, *, graceful: bool = True) -> None:
        """End a node's processes; without grace all of them at once, as if the machine were gone."""
        if not graceful:
            kill_all(psutil.Process(raylet_of(node)))
        self._cluster.remove_node(node)

    def restore(self) -> None:
        """As many nodes as in the beginning."""
        for node in self.nodes[_NODES:]:
            self.remove(node)
        while len(self.nodes) < _NODES:
            self.add()
        wait_until(lambda: self._alive() == 1 + _NODES, lambda: "a node that was killed counts as alive")

    def shutdown(self) -> None:
        """End it."""
        self._cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def strangers(self) -> list[str]:
        """The ports of its processes that others than this machine reach."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if not any(word in " ".join(process.cmdline()) for word in ("ray::", "/ray/")):
                    continue
                found += [
                    f"{process.name()} {one.laddr.ip}:{one.laddr.port}"
                    for one in process.net_connections("inet")
                    if one.status == psutil.CONN_LISTEN and one.laddr.ip not in _LOOPBACK
                ]
        return found

    def actors(self) -> list[psutil.Process]:
        """The processes of its actors."""
        return [
            process
            for process in psutil.process_iter()
            if name_of(process).startswith("ray::WorkerHost") and self._is_ours(process)
        ]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return any(one.path.startswith(str(self.folder)) for one in process.open_files())
        return False

    def _add(self, environment: Mapping[str, str] | None = None, **options: Any) -> Any:
        for left in reversed(range(_TRIES)):
            before = set(psutil.Process().children())
            try:
                return self._start(environment or {}, options)
            except Exception:  # on a busy machine it takes longer than the half minute that Ray gives it
                for process in set(psutil.Process().children()) - before:
                    kill_all(process)
                if not left:
                    raise
        raise AssertionError

    def _start(self, environment: Mapping[str, str], options: Mapping[str, Any]) -> Any:
        with self._set(environment):
            return self._cluster.add_node(**self._options(), **options)

    def _options(self) -> dict[str, Any]:
        return {
            "node_ip_address": "127.0.0.1",
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "dashboard_port": free_port(),
            "dashboard_agent_listen_port": 0,
            "temp_dir": str(self.folder / "ray"),
        }

    @contextmanager
    def _set(self, more: Mapping[str, str]) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (self.environment | dict(more)).items():
                patch.setenv(name, value)
            yield


def raylet_of(node: Any) -> int:
    """The pid of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def kill_all(process: psutil.Process) -> None:
    """SIGKILL for a process and what it has started, so that none of them notices the end of another."""
    lost = [process, *process.children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for one in lost:
            with suppress(psutil.Error):
                one.send_signal(number)


def name_of(process: psutil.Process) -> str:
    """What it is called now; empty when it is gone."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@dataclass(slots=True)
class Driver:
    """A `shardgen ray` in a process of its own; what it says is read from a file."""

    process: subprocess.Popen[bytes]
    said_in: Path
    since: float = field(default_factory=time.monotonic)

    @property
    def said(self) -> str:
        """So far, stdout and stderr."""
        return self.said_in.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> re.Match[str]:
        """Until it has said this."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found.extend(re.finditer(words, self.said))
            assert found or self.process.poll() is None, self.said
            return bool(found)

        wait_until(look, lambda: f"never said {words}:\n{self.said}")
        return found[0]

    def wait(self, timeout: float = 240.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def begin(
    arguments: list[str | Path], said_in: Path, environment: Mapping[str, str], *, folder: Path | None = None
) -> Driver:
    """Start `shardgen` anew, as a shell would: what Ray has started in a process does not survive a fork."""
    with said_in.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "shardgen", *map(str, arguments)],
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Driver(process, said_in)


def wait_until(is_so: Callable[[], bool], shown: Callable[[], str], seconds: float = _WAIT_SECONDS) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.1)

"""Worker processes on a Ray cluster: Ray places and restarts, the manifest decides."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeVar, cast

import psutil
import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shardgen.domain.wording import Say, counted
from shardgen.errors import InputMissing, InvalidSettings, MachineUnfit
from shardgen.launch.allocation import Share
from shardgen.launch.launcher import Ended, LastWords, Order, ProcessId, Relay, WorkerCommand
from shardgen.launch.local import LocalProcess, said_by, start_process
from shardgen.launch.rooms import ClusterWanted, Node, Room, rooms
from shardgen.machine.memory import KernelKills
from shardgen.machine.processes import host_id, host_name

_LOOK_SECONDS = 5.0  # between two looks at the nodes
_PATIENCE_SECONDS = 15.0  # for a place, before it is said what is waited for
_RETRY_SECONDS = 1.0  # while Ray starts an actor again
_TICK_SECONDS = 1.0
_ANSWERS_SECONDS = 5.0  # that a cluster may take to answer at its address
_CONNECT_SECONDS = 60.0
_ANSWER_SECONDS = 120.0  # a node starts a process and imports the program first

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class WorkerHost:
    """The actor: on its node it starts a worker, one at a time, and tells what becomes of it."""

    def __init__(self) -> None:
        self._process: LocalProcess | None = None

    def where(self) -> tuple[str, str]:
        """The name of the node, and the version of shardgen there."""
        return host_name(), version("shardgen")

    def work(
        self, arguments: list[str], share: Share, passed_on: dict[str, str]
    ) -> Iterator[ProcessId | str | Ended]:
        """Start a worker; yields which process it is, each line that it says, and how it ended."""
        if self._process is not None and self._process.ended() is None:
            self._process.send(signal.SIGKILL)  # the one who listened to it is gone
        kernel = KernelKills()
        child = start_process(arguments, share.environment(os.environ | passed_on))
        self._process = process = LocalProcess(child, kernel)
        threading.Thread(target=_watch_memory, args=(child, kernel), daemon=True).start()
        yield ProcessId(host_id(), child.pid)
        yield from said_by(child)
        child.wait()
        yield process.ended() or Ended(code=None)

    def send(self, number: int) -> None:
        """Send its worker a signal, if that runs."""
        if self._process is not None and self._process.ended() is None:
            self._process.send(signal.Signals(number))


def _watch_memory(child: subprocess.Popen[str], kernel: KernelKills) -> None:
    while child.returncode is None:
        kernel.look()
        time.sleep(_TICK_SECONDS)


class RayProcess:
    """A worker that an actor starts, or is to start as soon as it has a place."""

    def __init__(self, actor: Any, order: Order, relay: Relay, call: tuple[Any, ...]) -> None:
        self.id: ProcessId | None = None
        self.last_words = LastWords()
        self.since = time.monotonic()
        self.is_gone = False  # the actor, for good
        self._actor = actor
        self._name = order.name
        self._relay = relay
        self._call = call
        self._ended: Ended | None = None
        self._is_killed = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def ended(self) -> Ended | None:
        """How it ended; None while it runs, or waits for a place."""
        return self._ended

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; what has no place yet ends at once."""
        if self.id is not None:
            with contextlib.suppress(RayError):
                self._actor.send.remote(int(number))
        elif self._ended is None:
            self._is_killed.set()
            self.is_gone = True
            self._ended = Ended(code=128 + number)
            ray.kill(self._actor)

    def hear_out(self) -> None:
        """Nothing: its lines come before its end."""

    def _follow(self) -> None:
        ended = Ended(code=None, how="was lost")
        try:
            ended = self._listen()
        except RayError as error:
            self.is_gone = not isinstance(error, ActorUnavailableError)
            ended = self._lost(error)
        finally:
            if not self._is_killed.is_set():
                self._ended = ended

    def _listen(self) -> Ended:
        node, there = self._wait_for_place()
        if there != (here := version("shardgen")):
            return self._unfit(
                f"a node has shardgen {there}, and this machine has {here}",
                hint="install the same version on every node",
                node=node,
            )
        for reference in self._actor.work.remote(*self._call):
            match ray.get(reference):
                case ProcessId() as process:
                    self.id = process
                    self._relay.say(f"[{self._name}] starts on {node}")
                case Ended() as ended:
                    return _on_node(ended, node)
                case line:
                    self._relay.hear(self._name, str(line), self.last_words)
        return Ended(code=None, how="was lost")

    def _wait_for_place(self) -> tuple[str, str]:
        while True:
            try:
                found: tuple[str, str] = ray.get(self._actor.where.remote())
            except ActorUnavailableError:  # Ray is starting it again
                if self._is_killed.wait(_RETRY_SECONDS):
                    raise
            else:
                return found

    def _lost(self, error: RayError) -> Ended:
        text = str(error)
        if "shardgen" in text and ("ModuleNotFoundError" in text or "failed to import" in text):
            return self._unfit(
                "a node of the cluster has no shardgen, or a version that does not match this one",
                hint="install the same version on every node",
            )
        _LOG.debug("%s: %s", self._name, text)
        return Ended(code=None, how=f"was lost with its node or its actor ({type(error).__name__})")

    def _unfit(self, what: str, *, hint: str, node: str = "") -> Ended:
        for line in (f"[{self._name}] error: {what}", f"[{self._name}] hint: {hint}"):
            self._relay.hear(self._name, line, self.last_words)
        return _on_node(Ended(code=MachineUnfit.exit_code), node)


def _on_node(ended: Ended, node: str) -> Ended:
    """The same, also saying where, if it was no end in peace."""
    return replace(ended, how=f"{ended.shown} on {node}") if ended.code and node else ended


class RayLauncher:
    """Starts workers on the cluster that this process is connected to, each by an actor of its own."""

    def __init__(
        self,
        command: WorkerCommand,
        wanted: ClusterWanted,
        *,
        say: Say,
        passed_on: Mapping[str, str],
        only_here: bool = False,
    ) -> None:
        self._command = command
        self._say = say
        self._passed_on = dict(passed_on)
        self._relay = Relay(say)
        self._here = ray.get_runtime_context().get_node_id() if only_here else None
        self._host: Any = ray.remote(max_restarts=-1, max_task_retries=0)(WorkerHost)
        self._nodes = self._usable_nodes()
        self._wanted = wanted.on(self._nodes)
        self._rooms = rooms(self._nodes, self._wanted)
        self._taken: dict[int, tuple[Room, Any]] = {}  # room and actor by number
        self._processes: dict[int, RayProcess] = {}
        self._looked = time.monotonic()
        self._asked: Future[list[Node]] | None = None
        self._is_waiting = False
        least = self._rooms[0] if self._rooms else self._wanted.least
        if not self._rooms or (only_here and not any(map(least.fits, self._nodes))):
            more = (
                "this run cannot go to another node"
                if only_here
                else "if nodes start on demand, say how many workers you want: --workers N"
            )
            raise MachineUnfit(
                f"no node of the cluster has room for a worker with {least.shown}",
                hint=f"ray status shows what there is; {more}",
            )
        on = {room.node for room in self._rooms}
        where = f" on {counted(len(on), 'node')}" if wanted.workers is None else ""
        self._say(f"{counted(len(self._rooms), 'worker')}{where}, each with {self._rooms[0].shown}")

    @property
    def seats(self) -> int:
        """As many as there is room for, and those that a lost node has left without."""
        taken = Counter(room for room, _ in self._taken.values())
        return len(self._rooms) + (taken - Counter(self._rooms)).total()

    def look(self) -> None:
        """See which nodes have come and gone, and who waits for a place."""
        now = time.monotonic()
        if self._asked is None and now - self._looked >= _LOOK_SECONDS:
            self._asked = _aside(self._usable_nodes)
        if self._asked is None or not self._asked.done():
            return
        asked, self._asked, self._looked = self._asked, None, now
        try:
            found = asked.result()
        except RayError as error:
            _LOG.debug("%s", error)
            return
        before, self._nodes = self._nodes, found
        for word, ones, others in (("joined", self._nodes, before), ("is gone", before, self._nodes)):
            for name in sorted(node.name for node in set(ones) - set(others)):
                self._say(f"node {name} {word}")
        if self._wanted.workers is None:
            self._rooms = rooms(self._nodes, self._wanted)
        without = {
            number: one for number, one in self._processes.items() if one.id is None and one.ended() is None
        }
        waiting = [
            self._taken[number][0].shown
            for number, one in without.items()
            if now - one.since > _PATIENCE_SECONDS
        ]
        if waiting and not self._is_waiting:
            self._say(
                f"{counted(len(without), 'worker')} waiting for room on the cluster, each for {waiting[0]}; "
                "ray status shows what there is"
            )
        elif not self._rooms and not self._is_waiting:
            self._say("no node of the cluster has room for a worker; waiting for more nodes")
        self._is_waiting = bool(waiting) or not self._rooms

    def start(self, order: Order) -> RayProcess | None:
        """Let the actor of this seat start a worker; a new actor where there is none, or it is gone."""
        placed = self._actor(order.number)
        if placed is None:
            return None
        room, actor = placed
        share = Share(device="gpu" if room.gpus else "cpu", threads=max(1, room.cpus))
        call = (self._command.arguments(order, share.device), share, self._passed_on)
        process = RayProcess(actor, order, self._relay, call)
        self._processes[order.number] = process
        return process

    def _actor(self, number: int) -> tuple[Room, Any] | None:
        held, last = self._taken.get(number), self._processes.get(number)
        if held is not None:
            is_gone = last is not None and last.is_gone
            if not is_gone and (held[0].node is None or held[0].node in self._nodes):
                return held
            del self._taken[number]
            ray.kill(held[1])
        free = Counter(self._rooms) - Counter(room for room, _ in self._taken.values())
        if not free:
            return None
        room = next(iter(free))
        self._taken[number] = (room, self._placed(room))
        return self._taken[number]

    def _placed(self, room: Room) -> Any:
        node = self._here if room.node is None else room.node.id
        return self._host.options(
            num_cpus=room.cpus,
            num_gpus=room.gpus,
            memory=room.memory or None,
            max_concurrency=3,  # its worker's lines, a signal for it, and a question
            scheduling_strategy="SPREAD" if node is None else _on(node),
        ).remote()

    def _usable_nodes(self) -> list[Node]:
        return [node for node in alive_nodes() if self._here in (None, node.id)]


def alive_nodes() -> list[Node]:
    """The nodes of the cluster, in a fixed order."""
    found = [
        Node(
            id=one["NodeID"],
            name=one["NodeManagerHostname"],
            cpus=int(one["Resources"].get("CPU", 0)),
            gpus=float(one["Resources"].get("GPU", 0)),
            memory=int(one["Resources"].get("memory", 0)),
        )
        for one in ray.nodes()  # type: ignore[no-untyped-call]
        if one["Alive"]
    ]
    return sorted(found, key=lambda node: (node.name, node.id))


def ask_nodes(
    nodes: Sequence[Node], question: Callable[..., _Answer], *arguments: object
) -> list[tuple[Node, _Answer | None]]:
    """What a function answers on each of the nodes; None where it cannot, or takes too long."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(cast("Any", question))
    asked = [(node, task.options(scheduling_strategy=_on(node.id)).remote(*arguments)) for node in nodes]
    ray.wait([reference for _, reference in asked], num_returns=len(asked), timeout=_ANSWER_SECONDS)
    found = []
    for node, reference in asked:
        answer: _Answer | None = None
        with contextlib.suppress(RayError):
            answer = ray.get(reference, timeout=0)
        found.append((node, answer))
    return found


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Join a Ray cluster for the length of a `with`; what this process has started there ends with it.

    Raises InvalidSettings for what is no HOST:PORT, such as an address of Ray Client, InputMissing where no
    cluster answers or this machine is no node of one, and MachineUnfit where it does not take this machine,
    such as for another version of Ray or Python.
    """
    named = f"--address {address}"
    if address == "auto" and (given := os.environ.get("RAY_ADDRESS")):
        address, named = given, f"--address auto, RAY_ADDRESS={given}"
    _refuse_unanswered(address, named)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        _init(address)
    except (ConnectionError, TimeoutError) as error:
        _LOG.debug("%s", error)
        raise _no_cluster(named) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise MachineUnfit(
            f"{named}: {str(error).strip().splitlines()[0]}",
            hint="every node needs the same Ray and the same Python: ray --version",
        ) from error
    with contextlib.redirect_stdout(_IntoLog()):
        try:
            yield
        finally:
            ray.shutdown()  # it prints what it has held back


def _refuse_unanswered(address: str, named: str) -> None:
    """Raise what Ray itself finds out after many minutes."""
    as_job = "submit it as a job: ray job submit -- shardgen ray RUN_DIR"
    if address.startswith("ray://"):
        raise InvalidSettings(
            f"{named}: a client's connection is lost when its machine sleeps",
            hint=f"type this on a node of the cluster, or {as_job}",
        )
    if "://" in address:
        raise InvalidSettings(
            f"{named}: is not HOST:PORT", hint=f"type this on a node of the cluster, or {as_job}"
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise InvalidSettings(
                f"{named}: is not HOST:PORT", hint="ray start prints it, for example 10.0.0.1:6379"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(named) from error
    if not any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        raise InputMissing(
            f"{named}: this machine is not a node of a Ray cluster",
            hint=f"type this on a node, or {as_job}; or let this machine join: "
            "ray start --address HOST:PORT --num-cpus 0",
        )


def _no_cluster(named: str) -> InputMissing:
    return InputMissing(
        f"{named}: no Ray cluster answers there",
        hint="ray status says whether there is one; ray start --head makes this machine its first node",
    )


def _init(address: str) -> None:
    """Connect. Ray does not put its own handlers of signals in the place of ours in a thread."""
    joined = _aside(lambda: ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR))
    joined.result(timeout=_CONNECT_SECONDS)


def _aside(call: Callable[[], _Answer]) -> Future[_Answer]:
    """Call it in a thread, since Ray's code hears no signal, and may wait for a minute and more."""
    answer = Future[_Answer]()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer


class _IntoLog(io.TextIOBase):
    """Takes what Ray prints for people who write Ray programs; our own lines go to stderr meanwhile."""

    def write(self, text: str) -> int:
        if text.strip():
            _LOG.debug("%s", text.rstrip())
        return len(text)

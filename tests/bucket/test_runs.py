"""Real workers that share nothing but a bucket: each has a cache and a wire of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.protocol import RECEIPTS, ReceiptKey, VersionKey
from shardgen.coordination.bucket.view import BucketView
from shardgen.domain.identifiers import BatchIndex
from shardgen.recipes import registry
from shardgen.settings.plan_file import parse_plan
from shardgen.storage.cache import CACHE_VARIABLE
from tests import warm
from tests.bucket import proxy
from tests.bucket.proxy import Cut, Proxy
from tests.bucket.servers import Store
from tests.runs import sha256_of
from tests.text_recipe import Text

pytestmark = pytest.mark.slow

SAMPLES, BATCHES = 96, 24
SETTINGS = """
[recipe]
kind = "text"
[text]
lines = {lines}
times = 4
[shards]
size = 40
slice_batches = 3
batch = 4
[lease]
seconds = {seconds}
heartbeat_seconds = 0.5
[manifest]
url = "{url}"
"""
NEVER = 600  # seconds of a lease that ends by a look at its process, or not at all
PATIENCE_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class Machine:
    """What one machine has: a cache, and a wire to the bucket."""

    name: str
    folder: Path
    url: str
    wire: Proxy
    environment: dict[str, str]
    workers: list[warm.Command] = field(default_factory=list)

    def start_worker(self) -> warm.Command:
        """Start a worker with the url and nothing else."""
        said = self.folder / f"{self.name}.said"
        name = f"{self.name}-{len(self.workers)}"
        words = ["worker", self.url, "--id", name]
        worker = warm.start("tests.text_recipe", words, environment=self.environment, said=said)
        self.workers.append(worker)
        return worker

    def kill_at(self, what: str, nth: int, how: Cut) -> None:
        """Kill the first worker around its n-th PUT of a key that has `what` in it."""
        counted = itertools.count(1)

        def cuts(_number: int, path: str) -> Cut | None:
            if f"/{what}/" not in path or next(counted) != nth:
                return None
            self.workers[0].kill()
            return how

        self.wire.cuts = cuts

    def said(self) -> str:
        return (self.folder / f"{self.name}.said").read_text(encoding="utf-8")

    def finish(self) -> None:
        """Work until nothing is left."""
        assert self.start_worker().wait(PATIENCE_SECONDS) == 0, self.said()

    def run(self, *words: str | Path) -> str:
        """A command to its end; what it printed."""
        done = warm.run("tests.text_recipe", words, environment=self.environment, folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def merged(self) -> str:
        """The sha256 of the zip that this machine makes of the bucket, verified."""
        zip_file = self.folder / f"{self.name}.zip"
        self.run("merge", self.url, "-o", zip_file)
        self.run("verify", self.url)
        return sha256_of(zip_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A planned run in a bucket, and whoever works on it."""

    folder: Path
    store: Store
    url: str
    objects: Objects
    machines: list[Machine] = field(default_factory=list)

    def machine(self, name: str) -> Machine:
        wire = Proxy(self.store.port)
        environment = {CACHE_VARIABLE: str(self.folder / f"cache-{name}")}
        environment |= self.store.environment(wire.port)
        made = Machine(name=name, folder=self.folder, url=self.url, wire=wire, environment=environment)
        self.machines.append(made)
        return made

    def receipts(self) -> list[ReceiptKey]:
        found = [ReceiptKey.parse(one.key) for one in self.objects.listed(RECEIPTS)]
        return [one for one in found if one is not None]

    def winners(self) -> dict[BatchIndex, ReceiptKey]:
        """Which receipts count, as a process sees it that has just come."""
        registry.register(Text())
        try:
            plan = parse_plan(self.objects.read("plan/0001.json") or b"", where=self.url)
        finally:
            del registry._KINDS["text"]
        view = BucketView(plan, self.objects)
        view.look()
        return dict(view.winners)

    def grants(self) -> int:
        """How many versions all slices have in all."""
        found = [VersionKey.parse(one.key) for one in self.objects.listed("claims")]
        return len([one for one in found if one is not None and not one.is_note])


Plan = Callable[[float], Shared]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    text = "\n".join(f"line {number}" for number in range(SAMPLES // 4))
    (folder / "lines.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def undisturbed(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the same plan's zip, made by one process on this computer."""
    run = tmp_path_factory.mktemp("undisturbed")
    settings = SETTINGS.format(lines=f'"{lines}"', seconds=NEVER, url="sqlite:///manifest.sqlite")
    (run / "shardgen.toml").write_text(settings, encoding="utf-8")
    for verb in ("plan", "worker", "merge"):
        done = warm.run("tests.text_recipe", [verb, run])
        assert done.returncode == 0, done.stderr
    return sha256_of(run / "dataset.zip")


@pytest.fixture
def plan(store: Store, lines: Path, tmp_path: Path) -> Iterator[Plan]:
    with contextlib.ExitStack() as stack:

        def planned(lease_seconds: float) -> Shared:
            url = store.new_url()
            folder = tmp_path / "planner"
            folder.mkdir()
            settings = SETTINGS.format(lines=f'"{lines}"', seconds=lease_seconds, url=url)
            (folder / "shardgen.toml").write_text(settings, encoding="utf-8")
            done = warm.run("tests.text_recipe", ["plan", folder])
            assert done.returncode == 0, done.stderr
            made = Shared(folder=tmp_path, store=store, url=url, objects=Objects.open(url))
            stack.callback(_end, made)
            return made

        yield planned


def _end(shared: Shared) -> None:
    for machine in shared.machines:
        for worker in machine.workers:
            worker.kill()
            worker.wait()
        machine.wire.disconnect()


def at(what: str, nth: int, then: Callable[[], None]) -> Callable[[str], None]:
    """Calls `then` before the n-th PUT of a key that has `what` in it."""
    counted = itertools.count(1)
    return lambda path: then() if f"/{what}/" in path and next(counted) == nth else None


@pytest.mark.parametrize("store", ["ministack"], indirect=True)
def test_two_machines_whose_every_answer_is_lost_once_make_what_one_makes(
    plan: Plan, undisturbed: str
) -> None:
    shared = plan(NEVER)
    machines = [shared.machine(name) for name in ("a", "b")]
    for machine, how in zip(machines, Cut, strict=True):
        machine.wire.cuts = proxy.once_each(how)
    workers = [machine.start_worker() for machine in machines]
    for worker, machine in zip(workers, machines, strict=True):
        assert worker.wait(PATIENCE_SECONDS) == 0, machine.said()
    receipts = shared.receipts()
    assert len(receipts) == len({one.batch for one in receipts}) == BATCHES  # nothing was made twice
    assert sum(machine.wire.cut for machine in machines) > 3 * BATCHES
    assert shared.machine("c").merged() == undisturbed


@pytest.mark.parametrize("store", ["ministack"], indirect=True)
def test_a_worker_killed_around_any_kind_of_write_loses_nothing(plan: Plan, undisturbed: str) -> None:
    shared = plan(NEVER)
    for what, nth in [("claims", 1), ("artifacts", 2), ("receipts", 2)]:
        for how in Cut:
            machine = shared.machine(f"{what}-{how.name}")
            machine.kill_at(what, nth, how)
            assert machine.start_worker().wait(PATIENCE_SECONDS) == -signal.SIGKILL, machine.said()
    shared.machine("heir").finish()
    assert shared.machine("c").merged() == undisturbed


@pytest.mark.parametrize("store", ["ministack"], indirect=True)
def test_a_zombie_that_wakes_after_its_lease_never_outranks_its_successor(
    plan: Plan, undisturbed: str
) -> None:
    shared = plan(2)
    zombie = shared.machine("zombie")
    is_frozen, go = threading.Event(), threading.Event()

    def freeze() -> None:
        os.kill(zombie.workers[0].pid, signal.SIGSTOP)
        is_frozen.set()
        go.wait(PATIENCE_SECONDS)  # its receipt is on its way meanwhile

    zombie.wire.before_put = at("receipts", 2, freeze)
    worker = zombie.start_worker()
    assert is_frozen.wait(PATIENCE_SECONDS), zombie.said()
    shared.machine("heir").finish()
    before = {one.batch: one for one in shared.receipts()}
    assert len(before) == BATCHES
    go.set()
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(PATIENCE_SECONDS) == 0, zombie.said()
    outranked = [one for one in shared.receipts() if one not in before.values()]
    assert all(one.fence < before[one.batch].fence for one in outranked)
    # The one that was on its way; and perhaps the next, if it was made before the loss was noticed.
    late = {one.batch for one in outranked}
    assert late in ({1}, {1, 2})
    assert shared.winners() == before
    if late == {1}:  # else it was through with its slice before it looked again, and had nothing to lose
        assert "lease with fence 1 was taken over" in zombie.said()
    assert shared.machine("c").merged() == undisturbed


@pytest.mark.parametrize("store", ["ministack"], indirect=True)
def test_a_worker_waits_for_a_store_that_refuses_for_ten_seconds(plan: Plan, undisturbed: str) -> None:
    shared = plan(NEVER)
    machine = shared.machine("a")
    refused = threading.Event()

    def refuse() -> None:
        machine.wire.refuse(proxy.SLOW_DOWN)
        refused.set()

    machine.wire.before_put = at("receipts", 3, refuse)
    worker = machine.start_worker()
    assert refused.wait(PATIENCE_SECONDS), machine.said()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert worker.poll() is None, machine.said()
        time.sleep(0.2)
    machine.wire.refuse(None)
    assert worker.wait(PATIENCE_SECONDS) == 0, machine.said()
    assert len(shared.receipts()) == BATCHES
    assert machine.merged() == undisturbed

"""Histories of a shared folder on a simulated clock: the real protocol, made-up images, lost machines."""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path

from shardgen.artifacts.archive import BatchContent
from shardgen.coordination.folder import notices
from shardgen.coordination.folder.records import SegmentReader
from shardgen.coordination.folder.view import FolderView
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.domain.claims import FolderPolicy, next_generation, undone_up_to
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.recipes.registry import recipe_of
from shardgen.storage.atomic import random_part
from tests.dataset.made_runs import batch_content
from tests.plans import make_plan
from tests.runs import sha256_of
from tests.shared_folder.double import Cloud, Eyes, Faults
from tests.shared_folder.machines import Machine, Worker

POLICY = FolderPolicy(
    segment=timedelta(seconds=300),
    segment_batches=32,
    settle=timedelta(seconds=180),
    silent=timedelta(seconds=3600),
    scan=timedelta(seconds=60),
)
SMALL = make_plan(backgrounds=2, foregrounds=2, grid=(4, 2), shard_size=16, slice_batches=4, batch=2)
_LONGEST = 3 * 86400.0


@dataclass(kw_only=True)
class World:
    """One history. `play` until it is over; then look at what is left."""

    seed: int
    faults: Faults
    folder: Path
    plan: Plan = SMALL
    policy: FolderPolicy = POLICY
    batch_seconds: float = 60.0
    start_seconds: float = 60.0
    skew: float = 3600.0
    is_salted: bool = False
    make_view: type[FolderView] = FolderView
    longest: float = _LONGEST
    now: float = 0.0
    made: dict[int, int] = field(default_factory=dict)
    last_new_at: float = 0.0
    requeued: dict[BatchIndex, int] = field(default_factory=dict)
    machines: list[Machine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cloud = Cloud(now=lambda: self.now, seed=self.seed, faults=self.faults)
        self._numbers = count(1)
        self._order = count()
        self._queue: list[tuple[float, int, str, Worker | Event]] = []

    def eyes_of(self, machine: str) -> Eyes:
        return Eyes(self.cloud, machine)

    def add_machine(self) -> Machine:
        machine = Machine(self, len(self.machines))
        self.machines.append(machine)
        return machine

    def start_worker(self, machine: Machine) -> Worker:
        machine.worker = worker = Worker(machine, next(self._numbers))
        self._push(0.0, "step", worker)
        self._push(self.policy.scan.total_seconds(), "tick", worker)
        return worker

    def _push(self, seconds: float, what: str, whom: Worker | Event) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), what, whom))

    def look_soon(self, worker: Worker) -> None:
        """As the thread that looks does between its rounds, when it is woken."""
        self._push(0.0, "look", worker)

    def seconds_for(self, worker: Worker, batch: BatchIndex) -> float:
        """How long a worker takes for a batch."""
        del worker, batch
        return self.batch_seconds

    def content(self, batch: BatchIndex) -> BatchContent:
        """What is made of a batch."""
        return batch_content(self.plan, batch)

    def plan_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._push(event.after, "event", event)

    def play(self) -> None:
        """Until nothing more happens."""
        while self._queue:
            self.now, _, what, whom = heapq.heappop(self._queue)
            assert self.now < self.longest, "this run never ends"
            if isinstance(whom, Event):
                whom.happen(self)
            elif whom.is_alive and what != "step":
                whom.tick()
                if what == "tick":
                    self._push(self.policy.scan.total_seconds(), "tick", whom)
            elif whom.is_alive:
                try:
                    self._push(next(whom.life), "step", whom)
                except StopIteration:
                    whom.close()

    def live(self) -> list[Machine]:
        return [one for one in self.machines if one.worker is not None and one.worker.is_alive]

    def kill(self, machine: Machine, *, disk: bool) -> None:
        if machine.worker is not None and machine.worker.is_alive:
            machine.ended.append(machine.worker.identity.id)
            machine.worker.close()
        if disk:
            machine.is_lost = True
            self.cloud.lose(machine.name)
            shutil.rmtree(machine.disk)

    def finish(self) -> None:
        """The drive behaves from now on; play on, with a new machine when all have ended too early."""
        self.cloud.heal()
        for _ in range(4):
            self.play()
            if self.is_whole():
                return
            self.start_worker(self.add_machine())
        raise AssertionError("the run does not become whole")

    def is_whole(self) -> bool:
        view, index = self.add_machine().view()
        view.gather()
        index.close()
        return len(view.winners) == self.plan.layout.batch_count

    def merged(self, machine: Machine | None = None) -> tuple[str, FolderView]:
        """The sha256 of the zip that a machine merges, and what it sees."""
        view, index = (machine or self.add_machine()).view()
        view.gather()
        inputs = MergeInputs(
            recipe=recipe_of(self.plan),
            source=view,
            store=SegmentReader(view.files),
            contact_sheet=False,
        )
        output = self.folder / f"{next(self._order)}.zip"
        merge(inputs, output)
        digest = sha256_of(output)
        output.unlink()
        index.close()
        return digest, view

    def undone_winners(self, view: FolderView) -> list[BatchIndex]:
        """Winners from before a requeue whose mark has not gone with its machine."""
        marks = [
            notices.decoded(notices.Requeue, file.data)
            for (path, _), file in self.cloud.files.items()
            if path.startswith(notices.REQUEUE)
        ]
        return [
            batch
            for mark in marks
            if mark is not None
            for batch in mark.undone
            if view.winners[batch].fence <= undone_up_to(mark.generation)
        ]

    def disagreeing(self) -> list[str]:
        """The machines whose views, which saw attempts in an order of their own, have others' winners not."""
        self.now += self.faults.longest_lag + self.policy.silent.total_seconds()  # all has arrived
        fresh, index = self.add_machine().view()
        fresh.gather()
        index.close()
        wrong = []
        for machine in self.machines:
            if machine.worker is not None and not machine.is_lost:
                machine.worker.view.gather()
                if _attempts(machine.worker.view) != _attempts(fresh):
                    wrong.append(machine.name)
        return wrong

    @property
    def duplicated(self) -> int:
        """Batches that were made more often than once, each time counted."""
        return sum(self.made.values()) - len(self.made)


def _attempts(view: FolderView) -> dict[BatchIndex, str]:
    return {batch: notices.original_name(receipt.artifact.name) for batch, receipt in view.winners.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something from outside, `after` so many seconds; `which` chooses among those whom it may hit."""

    after: float
    kind: str
    which: int = 0

    def happen(self, world: World) -> None:
        live = world.live()
        if self.kind == "join":
            world.start_worker(world.add_machine())
        elif self.kind == "restart":
            ended = [one for one in world.machines if not one.is_lost and one not in live and one.worker]
            if ended:
                world.start_worker(ended[self.which % len(ended)])
        elif live and self.kind in ("kill", "lose"):
            world.kill(live[self.which % len(live)], disk=self.kind == "lose")
        elif live and self.kind == "requeue":
            self._requeue(world, live[self.which % len(live)])

    def _requeue(self, world: World, machine: Machine) -> None:
        worker = machine.worker
        if worker is None or not worker.view.winners:
            return
        batches = sorted(worker.view.winners)
        chosen = tuple(batches[(self.which + step) % len(batches)] for step in (0, 1))
        generation = next_generation(worker.view.fences.values(), worker.view.generation)
        mark = notices.Requeue(
            fingerprint=world.plan.fingerprint, generation=generation, batches=tuple(sorted(set(chosen)))
        )
        with suppress(OSError):
            machine.eyes.write(notices.requeue_path(generation, random_part()), notices.encoded(mark))
            for batch in mark.undone:
                world.requeued[batch] = max(generation, world.requeued.get(batch, 0))

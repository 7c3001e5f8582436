"""Histories of a shared folder on a simulated clock: the real protocol, made-up images, lost machines."""

from __future__ import annotations

import heapq
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path

from shardgen.artifacts.archive import ArtifactHeader, BatchContent, build_artifact
from shardgen.artifacts.names import ArtifactName, random_part
from shardgen.artifacts.store import ArtifactStore
from shardgen.claiming import Clocks, FolderWork
from shardgen.domain.claims import FolderPolicy, next_generation, undone_up_to
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.worker import WorkerIdentity
from shardgen.errors import LeaseLost
from shardgen.folder import notices
from shardgen.gathering import FolderView
from shardgen.manifest.leases import NoLease
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.manifest.place import Place
from shardgen.manifest.segments import SegmentIndex
from shardgen.merging import MergeInputs, merge
from shardgen.publishing import Desk
from shardgen.recorded import SegmentStore
from tests.artifacts.made_runs import batch_content
from tests.plans import make_plan
from tests.shared_folder.double import Cloud, Eyes, Faults

LEASES = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=6,
)
POLICY = FolderPolicy(
    segment=timedelta(seconds=300),
    segment_batches=32,
    settle=timedelta(seconds=180),
    silent=timedelta(seconds=3600),
    scan=timedelta(seconds=60),
)
SMALL = make_plan(backgrounds=2, foregrounds=2, grid=(4, 2), shard_size=16, slice_batches=4, batch=2)
MEMORY = Path("/dev/shm")  # noqa: S108 - these tests are not about fsync
_LONGEST = 3 * 86400.0


@cache
def _template(plan: Plan) -> bytes:
    """An empty manifest of a plan: migrating one for each machine would take most of the time."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        create_manifest(_place(Path(folder)), plan)
        return (Path(folder) / "manifest.sqlite").read_bytes()


def _place(folder: Path) -> Place:
    return Place(url="folder:", run_dir=folder, index=folder)


class Machine:
    """A machine with a disk and clocks of its own, and at most one worker."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"machine-{number}"
        self.disk = Path(tempfile.mkdtemp(dir=world.folder))
        self.is_lost = False
        self.eyes = world.eyes_of(self.name)
        draw = world.cloud.draw
        self._ahead = world.skew * (2 * draw("skew", number) - 1)
        self._booted = -1000 * draw("boot", number)
        self.worker: Worker | None = None
        self.ended: list[WorkerId] = []
        self.finished_at = 0.0
        (self.disk / "manifest.sqlite").write_bytes(_template(world.plan))

    def monotonic(self) -> float:
        """Seconds since its boot."""
        return self.world.now - self._booted

    def wall(self) -> float:
        """What its clock says."""
        return 1.7e9 + self.world.now + self._ahead

    def view(self) -> tuple[FolderView, SegmentIndex]:
        """What it knows and sees."""
        index = SegmentIndex(self.disk / "segments.sqlite")
        return self.world.make_view(
            self.world.plan, self.eyes, index, monotonic=self.monotonic, wall=self.wall
        ), index


class Worker:
    """One worker process: the real claims, leases and segments; a batch is made by waiting for it."""

    def __init__(self, machine: Machine, number: int) -> None:
        world = machine.world
        self.machine = machine
        self.identity = WorkerIdentity(
            id=WorkerId(f"worker-{number}-{number:08x}"), host=machine.name, pid=number, process_started=1.0
        )
        self.manifest = Manifest(
            _place(machine.disk), world.plan, clock=lambda: datetime.fromtimestamp(1.7e9 + world.now, UTC)
        )
        self.view, self._index = machine.view()
        self._store = ArtifactStore(machine.disk / "artifacts")
        self.work = FolderWork(
            Desk(
                view=self.view,
                manifest=self.manifest,
                checkpoints=self._store,
                own_folder=notices.worker_folder(self.identity.id),
                policy=world.policy,
                monotonic=machine.monotonic,
            ),
            self.identity,
            clocks=Clocks(monotonic=machine.monotonic, wall=machine.wall),
        )
        self.manifest.register(self.identity)
        self.is_alive = True
        self.made = 0
        self.busy_seconds = 0.0
        self.life = self._live()

    def close(self) -> None:
        self.is_alive = False
        self.manifest.close()
        self._index.close()

    def tick(self) -> None:
        self.work.tick()

    def _live(self) -> Iterator[float]:
        """Yields how long until its next step."""
        world = self.machine.world
        self.tick()
        yield world.start_seconds
        while True:
            granted = self.work.lease(self.identity.id, LEASES, ended=self.machine.ended)
            world.look_soon(self)
            if isinstance(granted, NoLease):
                if not granted.leased:
                    break
                yield LEASES.heartbeat.total_seconds()
                continue
            yield from self._make_slice(granted)
        self.machine.finished_at = world.now
        while self.work.leave():
            yield 60.0
        self._check_finished()

    def _make_slice(self, lease: Lease) -> Iterator[float]:
        world = self.machine.world
        with suppress(LeaseLost):
            while batches := self._portion(lease):
                for batch in batches:
                    seconds = world.seconds_for(self, batch)
                    yield seconds
                    self._make(lease, batch)
                    self.busy_seconds += seconds
            self.work.ended(is_complete=batches is not None)
        self.manifest.release(lease)

    def _portion(self, lease: Lease) -> list[BatchIndex] | None:
        self.machine.world.look_soon(self)
        return self.work.portion(lease, batch_seconds=self.busy_seconds / self.made if self.made else 0.0)

    def _make(self, lease: Lease, batch: BatchIndex) -> None:
        world = self.machine.world
        content = world.content(batch)
        if world.is_salted:  # attempts that can be told apart, as on other devices
            members = [(name, data + self.identity.id.encode()) for name, data in content.members]
            content = replace(content, members=members)
        header = ArtifactHeader(
            fingerprint=world.plan.fingerprint,
            shard=lease.shard,
            slice=lease.slice,
            fence=lease.fence,
            worker=lease.worker,
        )
        data, inside = build_artifact(header, [content])
        name = ArtifactName(
            shard=lease.shard,
            batches=range(batch, batch + 1),
            fence=lease.fence,
            worker=lease.worker[-8:],
            random=random_part(),
        )
        ref = self._store.publish(name, data)
        receipt = Receipt(
            shard=lease.shard,
            slice=lease.slice,
            fence=lease.fence,
            worker=lease.worker,
            artifact=ref,
            record=inside.batches[0],
        )
        self.manifest.record(lease, receipt)
        self.made += 1
        world.made[batch] = world.made.get(batch, 0) + 1
        if world.made[batch] == 1:
            world.last_new_at = world.now

    def _check_finished(self) -> None:
        """Nobody ends content while a batch is nowhere, as far as it sees; one just undone may be."""
        here = {receipt.record.batch for receipt in self.manifest.receipts()}
        nowhere = [
            batch
            for place in self.view.slices()
            for batch in self.view.missing(place)
            if batch not in here and batch not in self.view.undone
        ]
        assert not nowhere, nowhere


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
            plan=self.plan,
            source=view,
            store=SegmentStore(view.files),
            make_contact_sheet=None,
            digest=True,
        )
        output = self.folder / f"{next(self._order)}.zip"
        digest = merge(inputs, output).sha256
        output.unlink()
        index.close()
        assert digest is not None
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

    @property
    def duplicated(self) -> int:
        """Batches that were made more often than once, each time counted."""
        return sum(self.made.values()) - len(self.made)


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

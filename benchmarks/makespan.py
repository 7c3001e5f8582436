"""How close workers that come and go get to the shortest possible run: the real leases on a simulated clock.

    python -m benchmarks.makespan [--batch-seconds 5,60] [--slice-batches 16,64] [--seeds 1,2,3]
    python -m benchmarks.makespan --workers 40 --batch-seconds 5 --lease-seconds 60 --heartbeat-seconds 20

The plan has the size of the real one: 408,040 samples in 5 shards, 12,752 batches of 32. A batch has a size,
drawn once per seed: what a worker takes for it, log-normal with the given mean and a spread of a quarter.
Everything that a worker asks of the manifest is asked of the real one (SQLite, in memory where there is
/dev/shm): leases, pending batches, notes, renewals, receipts. Only time is simulated, so a seed always gives
the same figures. The workers sit on hosts of their own, so that a dead one's lease has to expire.

The makespan is the instant of the last receipt. The ideal is the instant at which the workers that were there
could have done all the work, had not one of their seconds been idle or lost: the T at which the sum, over the
workers, of the seconds from their arrival to the earlier of T and their death equals the sum of the batches'
sizes. A worker arrives when it is ready to lease; deaths are drawn evenly over the whole ideal makespan, its
last minutes included. The work in a dying worker's hands is lost. After a death a slice is made without
overlap, each batch after a note; those batches take a quarter longer here.

Not simulated: the two moments of a slice in which a worker's stages do not overlap (see benchmarks.worker),
and the time of the manifest itself (see benchmarks.manifest_scale).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.status import simulated_receipt
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerIdentity
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from tests.plans import make_plan

GOAL = 1.05
SPREAD = 0.25
SUSPECT_SLOWDOWN = 1.25
JOINS_AT = 0.9
_PATIENCE = 10  # times the longest batch and a lease: longer without a receipt, and the run is stranded
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Who is there: a crew from the beginning, of which some die; perhaps one more towards the end."""

    crew: int
    dying: int = 0
    one_joins: bool = False

    def __str__(self) -> str:
        parts = [f"{self.dying} die"] * (self.dying > 0) + ["1 joins at 90 %"] * self.one_joins
        return ", ".join(parts) or "undisturbed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the scene is played with."""

    plan: Plan
    policy: LeasePolicy
    batch_seconds: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Simulated seconds; `lost` is work that died in a worker's hands."""

    makespan: float
    ideal: float
    lost: float

    @property
    def ratio(self) -> float:
        """How many times the ideal it took."""
        return self.makespan / self.ideal


@dataclass(slots=True, kw_only=True)
class _Worker:
    identity: WorkerIdentity
    arrives: float
    dies: float = math.inf
    lease: Lease | None = None
    is_suspect: bool = False
    batches: list[BatchIndex] = field(default_factory=list)
    began: float = 0.0
    is_gone: bool = False


class Simulation:
    """A heap of events; each moves the manifest's clock and lets one worker do what the real one would."""

    def __init__(self, folder: Path, setting: Setting, scene: Scene) -> None:
        self._setting = setting
        self._scene = scene
        draw = random.Random(f"{setting.seed} {scene} {scene.crew}")  # noqa: S311 - a simulation
        mu = math.log(setting.batch_seconds) - SPREAD**2 / 2
        sizes = random.Random(setting.seed)  # noqa: S311 - the same work for every scene
        self._size = [sizes.lognormvariate(mu, SPREAD) for _ in range(setting.plan.layout.batch_count)]
        self._work = sum(self._size)
        self._now = 0.0
        self._longest_pause = max(self._size) + setting.policy.duration.total_seconds()
        self._done = 0.0
        self._lost = self._last_receipt = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._workers: list[_Worker] = []
        database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=folder)
        create_manifest(database, setting.plan)
        self._manifest = Manifest(database, setting.plan, clock=lambda: _BEGIN + timedelta(seconds=self._now))
        moments = [draw.random() for _ in range(scene.dying)]
        # The ideal makespan when the dying ones die at these fractions of it.
        end = self._work / (scene.crew - scene.dying + sum(moments))
        for number in range(scene.crew):
            self._arrive(moments[number] * end if number < scene.dying else math.inf)

    def run(self) -> Outcome:
        """Play it to the last receipt."""
        with self._manifest:
            while self._events:
                self._now, _, event = heapq.heappop(self._events)
                event()
                if self._now - self._last_receipt > _PATIENCE * self._longest_pause:
                    raise RuntimeError(f"no receipt since second {self._last_receipt:,.0f}")
            overview = self._manifest.overview()
        if overview.stored != self._setting.plan.samples:
            raise RuntimeError(f"{overview.stored:,} samples are stored, not {self._setting.plan.samples:,}")
        intervals = [(worker.arrives, worker.dies) for worker in self._workers]
        return Outcome(
            makespan=self._last_receipt,
            ideal=ideal_makespan(intervals, self._work),
            lost=self._lost,
        )

    def _at(self, instant: float, worker: _Worker, event: Callable[[_Worker], None]) -> None:
        """Let it happen then, unless the worker is dead by then."""

        def happen() -> None:
            if not worker.is_gone:
                event(worker)

        heapq.heappush(self._events, (instant, next(self._order), happen))

    def _arrive(self, dies: float = math.inf) -> None:
        number = len(self._workers)
        identity = WorkerIdentity(
            id=WorkerId(f"host-{number}-1-{number:08x}"), host=f"host-{number}", pid=1, process_started=0.0
        )
        worker = _Worker(identity=identity, arrives=self._now, dies=dies)
        self._workers.append(worker)
        self._manifest.workers.register(identity)
        self._ask(worker)
        self._at(self._now + self._setting.policy.heartbeat.total_seconds(), worker, self._beat)
        if dies < math.inf:
            self._at(dies, worker, self._die)

    def _die(self, worker: _Worker) -> None:
        worker.is_gone = True
        if worker.lease is not None:
            self._lost += self._now - worker.began

    def _beat(self, worker: _Worker) -> None:
        if worker.lease is not None:
            self._manifest.leases.renew(worker.lease, self._setting.policy)
        self._at(self._now + self._setting.policy.heartbeat.total_seconds(), worker, self._beat)

    def _ask(self, worker: _Worker) -> None:
        policy = self._setting.policy
        granted = self._manifest.leases.lease(worker.identity.id, policy)
        if isinstance(granted, NoLease):
            if granted.blocked:
                raise RuntimeError("a slice is blocked")
            if granted.leased:
                self._at(self._now + policy.heartbeat.total_seconds(), worker, self._ask)
            else:
                worker.is_gone = True  # it ends; it was there, and idle, as far as the ideal is concerned
            return
        worker.lease = granted
        worker.batches = self._manifest.receipts.pending_batches(granted)
        worker.is_suspect = self._manifest.suspicion.read(granted).is_suspect
        self._begin_batch(worker, granted)

    def _begin_batch(self, worker: _Worker, lease: Lease) -> None:
        batch = worker.batches[0]
        worker.began = self._now
        if worker.is_suspect:
            self._manifest.suspicion.note_batch(lease, batch)
        seconds = self._size[batch] * (SUSPECT_SLOWDOWN if worker.is_suspect else 1.0)
        self._at(self._now + seconds, worker, self._end_batch)

    def _end_batch(self, worker: _Worker) -> None:
        lease = worker.lease
        if lease is None:
            raise RuntimeError("a batch without a lease")
        batch = worker.batches.pop(0)
        self._manifest.receipts.record(lease, simulated_receipt(self._setting.plan, lease, batch))
        self._last_receipt = self._now
        before, self._done = self._done, self._done + self._size[batch]
        if self._scene.one_joins and before < JOINS_AT * self._work <= self._done:
            self._arrive()
        if worker.batches:
            self._begin_batch(worker, lease)
            return
        self._manifest.leases.release(lease)
        worker.lease = None
        self._ask(worker)


def ideal_makespan(intervals: Sequence[tuple[float, float]], work: float) -> float:
    """The T at which the workers' seconds up to T, each from its arrival to its death, add up to the work."""
    left, before, present = work, 0.0, 0
    changes = sorted([(arrives, 1) for arrives, _ in intervals] + [(dies, -1) for _, dies in intervals])
    for instant, change in changes:
        if present and left <= present * (instant - before):
            break
        if present:
            left -= present * (instant - before)
        before, present = instant, present + change
    return before + left / present


def policy_of(lease_seconds: float, heartbeat_seconds: float) -> LeasePolicy:
    """A policy that differs from the default in its times."""
    return LeasePolicy(
        duration=timedelta(seconds=lease_seconds),
        heartbeat=timedelta(seconds=heartbeat_seconds),
        stall=timedelta(seconds=600),
        max_attempts=6,
    )


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A temporary folder, in memory where the system offers that: nothing here has to survive."""
    memory = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def simulate(scene: Scene, setting: Setting) -> Outcome:
    """One run from its plan to its last receipt."""
    with memory_folder() as folder:
        return Simulation(folder, setting, scene).run()


def _scenes(crews: Sequence[int]) -> Iterator[Scene]:
    for crew in crews:
        yield Scene(crew=crew)
        yield Scene(crew=crew, one_joins=True)
        if crew >= 3:
            yield Scene(crew=crew, dying=crew // 3)
            yield Scene(crew=crew, dying=crew // 3, one_joins=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _line(scene: Scene, outcomes: Sequence[Outcome]) -> str:
    """Means over the seeds; the ratios one by one."""
    ideal, makespan, lost = (
        statistics.mean(getattr(outcome, name) for outcome in outcomes)
        for name in ("ideal", "makespan", "lost")
    )
    ratios = " ".join(f"{outcome.ratio:.3f}" for outcome in outcomes)
    return f"{scene.crew:>7} {scene!s:<24} {ideal:>9,.0f} {makespan:>9,.0f} {lost:>7,.0f}  {ratios}"


def _table(settings: Sequence[Setting], scenes: Sequence[Scene], processes: Executor) -> float:
    """Play every scene with every setting and print a line for each scene. Returns the worst ratio."""
    plan, policy = settings[0].plan, settings[0].policy
    print(
        f"\n{plan.samples:,} samples, {plan.layout.batch_count:,} batches of about "
        f"{settings[0].batch_seconds} s, slices of {plan.shards.slice_batches}, "
        f"leases of {policy.duration.total_seconds():g} s"
    )
    print(
        f"{'workers':>7} {'what happens':<24} {'ideal s':>9} {'made in s':>9} {'lost s':>7}  times the ideal"
    )
    played = processes.map(simulate, *zip(*itertools.product(scenes, settings), strict=True))
    worst = 0.0
    for scene in scenes:
        outcomes = list(itertools.islice(played, len(settings)))
        print(_line(scene, outcomes), flush=True)
        worst = max(worst, *(outcome.ratio for outcome in outcomes))
    return worst


def main() -> None:
    """Print a table for each mean size of a batch and each size of a slice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=_numbers, default=[1, 5, 12, 40])
    parser.add_argument("--batch-seconds", type=_numbers, default=[20], help="mean; one table each")
    parser.add_argument("--slice-batches", type=_numbers, default=[16], help="16 is the default of a plan")
    parser.add_argument("--seeds", type=_numbers, default=[1, 2])
    parser.add_argument("--lease-seconds", type=float, default=120)
    parser.add_argument("--heartbeat-seconds", type=float, default=30)
    options = parser.parse_args()
    policy = policy_of(options.lease_seconds, options.heartbeat_seconds)
    began = time.perf_counter()
    worst = []
    # Fresh processes: a manifest's connections must not be carried over a fork.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        for batch_seconds, slice_batches in itertools.product(options.batch_seconds, options.slice_batches):
            plan = make_plan(backgrounds=202, foregrounds=101, slice_batches=slice_batches)
            settings = [
                Setting(plan=plan, policy=policy, batch_seconds=batch_seconds, seed=seed)
                for seed in options.seeds
            ]
            worst.append(_table(settings, list(_scenes(options.workers)), processes))
    seconds = time.perf_counter() - began
    print(f"\nworst: {max(worst):.3f} times the ideal (goal: at most {GOAL}); {seconds:.0f} s")


if __name__ == "__main__":
    main()

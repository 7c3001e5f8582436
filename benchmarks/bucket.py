"""What a run in a bucket asks of it, and how close its workers get to the shortest possible run.

    python -m benchmarks.bucket [--workers 1,40] [--batch-seconds 2.5] [--artifact-bytes 180000]
    python -m benchmarks.bucket --makespan [--workers 1,5,12,40] [--batch-seconds 80] [--seeds 1]

The plan has the size of the real one: 408,040 samples in 5 shards, 12,752 batches of 32 in 797 slices. Every
request is made by the program's own code (the manifest, the artifact store, the probe, the plan) to a store
in memory; only images and time are made up. An artifact is a few bytes there and counts as many as it would
have. A request takes 50 ms, which lets claims meet as they do in a bucket; publishing does not delay the
next batch, since a worker does both at once. Every worker is on a machine of its own, and writes a sign of
life at every heartbeat. So hours pass in minutes.

Without `--makespan`: requests by kind and by what they are for, bytes, and a price. What the store's own
answers weigh (listings, errors) is not counted, and no request is lost here.

With it: slices are as long, but of 4 batches of 128 samples, which is quicker to play. Workers differ in
speed by a tenth, batches in size by a quarter, and in every other line a third of the workers die at random
moments. `ideal s` is how long it takes if no second of a worker is idle or lost
(as in benchmarks.makespan). `lost claims`: another worker was quicker. `again`: batches that were recorded
twice. `lost s`: work that died in a worker's hands.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from obstore.store import MemoryStore

from benchmarks.makespan import SPREAD, SUSPECT_SLOWDOWN, memory_folder, policy_of
from benchmarks.status import simulated_receipt
from shardgen.coordination.artifact_folder import claim_folder
from shardgen.coordination.bucket import plan as planning
from shardgen.coordination.bucket.artifacts import BucketStore
from shardgen.coordination.bucket.manifest import BucketManifest
from shardgen.coordination.bucket.objects import ObjectMeta, Objects, Requests
from shardgen.coordination.bucket.probe import probe
from shardgen.coordination.bucket.protocol import ARTIFACTS, CLAIMS
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from tests.plans import make_plan

REQUEST_SECONDS = 0.05
SPEED_SPREAD = 0.1
DOLLARS = {"created": 5e-6, "written": 5e-6, "listed": 5e-6, "read": 4e-7, "looked": 4e-7, "removed": 0.0}
"""Of one request, by Amazon's public price list for S3 Standard as known in November 2026; storage and
traffic are priced by themselves."""
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_PIECE = b"an artifact"


class Dead(Exception):
    """The worker's process is gone, in the middle of what it does."""


class World:
    """Simulated time for threads of which one runs at a time: whoever waits lets the next one go on.

    `sleep` counts in threads that were started here; in others, such as a pool's, no time passes.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, threading.Semaphore]] = []
        self._order = itertools.count()
        self._own = threading.local()
        self._ended = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def clock(self) -> datetime:
        """For a manifest."""
        return _BEGIN + timedelta(seconds=self.now)

    def start(self, work: Callable[[], None], *, at: float = 0.0) -> None:
        """Let this happen then, in a thread of its own."""
        turn = threading.Semaphore(0)

        def run() -> None:
            turn.acquire()
            self._own.turn, self._own.pause = turn, 0
            try:
                work()
            except Dead:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again where `run` was called
                self._failure = error
                self._ended.release()
                return
            self._next()

        threading.Thread(target=run, daemon=True).start()
        heapq.heappush(self._waiting, (at, next(self._order), turn))

    def run(self) -> None:
        """Until nobody waits for anything."""
        self._next()
        self._ended.acquire()
        if self._failure is not None:
            raise self._failure

    def _next(self) -> None:
        if not self._waiting:
            self._ended.release()
            return
        self.now, _, turn = heapq.heappop(self._waiting)
        turn.release()

    def sleep(self, seconds: float) -> None:
        """Let time pass for this thread."""
        turn = getattr(self._own, "turn", None)
        if turn is None or self._own.pause:
            return
        heapq.heappush(self._waiting, (self.now + seconds, next(self._order), turn))
        self._next()
        turn.acquire()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is done here is done beside this thread's work, and takes none of its time."""
        self._own.pause += 1
        try:
            yield
        finally:
            self._own.pause -= 1


class Counted(Requests):
    """Requests by what they are for, too: `places[kind, folder]`."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = ""
        self.places: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, *, requests: int = 1, up: int = 0, down: int = 0) -> None:
        """Count one more."""
        super().add(kind, requests=requests, up=up, down=down)
        self.places[kind, self.folder] += requests


class SlowObjects(Objects):
    """Objects each of whose requests takes a while, and whose artifacts count as large as real ones."""

    requests: Counted

    def __init__(self, store: MemoryStore, world: World, *, artifact_bytes: int) -> None:
        super().__init__(store, "memory")
        self.requests = Counted()
        self.lost_claims = 0
        self.again = 0
        self._world = world
        self._artifact_bytes = artifact_bytes

    def _ask(self, key: str) -> None:
        self.requests.folder = key.partition("/")[0]
        self._world.sleep(REQUEST_SECONDS)
        self.requests.folder = key.partition("/")[0]

    def create(self, key: str, data: bytes) -> bool:
        """As asked; artifacts are heavier."""
        self._ask(key)
        is_made = super().create(key, data)
        if data is _PIECE:
            self.requests.add("created", requests=0, up=self._artifact_bytes - len(data))
        self.lost_claims += not is_made and key.startswith(CLAIMS)
        return is_made

    def write(self, key: str, data: bytes) -> str:
        """As asked."""
        self._ask(key)
        return super().write(key, data)

    def read(self, key: str, *, limit: int | None = None) -> bytes | None:
        """As asked; artifacts are heavier."""
        self._ask(key)
        data = super().read(key, limit=limit)
        if data == _PIECE:
            self.requests.add("read", requests=0, down=self._artifact_bytes - len(data))
        return data

    def size(self, key: str) -> int | None:
        """As asked."""
        self._ask(key)
        return super().size(key)

    def pages(self, prefix: str, *, after: str = "") -> Iterator[list[ObjectMeta]]:
        """As asked, a page a request."""
        pages = super().pages(prefix, after=after)
        while True:
            self._ask(prefix)
            page = next(pages, None)
            if page is None:
                return
            yield page


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is played with; `dying` of the `crew` die at a random moment."""

    plan: Plan
    policy: LeasePolicy
    crew: int
    dying: int = 0
    batch_seconds: float = 20.0
    artifact_bytes: int = 180_000
    seed: int = 1


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Simulated seconds, and what was asked of the store: by all workers, and by a `status` half-way."""

    makespan: float = 0.0
    ideal: float = 0.0
    lost: float = 0.0
    lost_claims: int = 0
    again: int = 0
    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    status: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times the ideal it took."""
        return self.makespan / self.ideal

    def add(self, objects: SlowObjects) -> None:
        """Count what was asked of these."""
        self.places.update(objects.requests.places)
        self.counts.update(objects.requests.counted())
        self.lost_claims += objects.lost_claims


class Simulation:
    """A run from its first request to its last receipt, and past it what commands ask of the bucket."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.plan = setting.plan
        self.world = World()
        self.outcome = Outcome()
        self.store = MemoryStore()
        self._made: set[BatchIndex] = set()
        random.seed(setting.seed)  # the program draws from it, too
        draw = random.Random(f"{setting.seed} {setting.crew}")  # noqa: S311 - a simulation
        sizes = random.Random(setting.seed)  # noqa: S311 - the same work for every crew
        mu = math.log(setting.batch_seconds) - SPREAD**2 / 2
        self._sizes = [sizes.lognormvariate(mu, SPREAD) for _ in range(self.plan.layout.batch_count)]
        self._speeds = [draw.uniform(1 - SPEED_SPREAD, 1 + SPEED_SPREAD) for _ in range(setting.crew)]
        moments = [draw.random() for _ in range(setting.dying)]
        living = sum(self._speeds[setting.dying :])
        dying = sum(moment * speed for moment, speed in zip(moments, self._speeds, strict=False))
        self._end = sum(self._sizes) / (living + dying)
        self._dies = [moment * self._end for moment in moments]
        self._dies += [math.inf] * (setting.crew - setting.dying)

    def objects(self) -> SlowObjects:
        """The bucket, as one more process sees it."""
        return SlowObjects(self.store, self.world, artifact_bytes=self.setting.artifact_bytes)

    @contextmanager
    def manifest(self, objects: Objects) -> Iterator[BucketManifest]:
        """The run's, as one more process opens it."""
        with BucketManifest(
            objects, self.plan, clock=self.world.clock, policy=self.setting.policy
        ) as manifest:
            yield manifest

    def play(self) -> Outcome:
        """All of it."""
        planner = self.objects()
        probe(planner)
        planner.create(f"{planning.PLAN}/0001.json", self.plan.canonical_json)
        self.outcome.add(planner)
        for number in range(self.setting.crew):
            self.world.start(lambda number=number: self._live(number))  # type: ignore[misc]
        self.world.start(self._look, at=self._end / 2)
        self.world.run()
        if len(self._made) != self.plan.layout.batch_count:
            raise RuntimeError(f"{len(self._made):,} batches are recorded")
        self.outcome.ideal = self._end
        return self.outcome

    def _look(self) -> None:
        self.outcome.status = status(self).counts

    def _live(self, number: int) -> None:
        objects = self.objects()
        try:
            with self.manifest(objects) as manifest:
                _Worker(self, number, objects, manifest).work()
        finally:
            self.outcome.add(objects)

    def seconds_for(self, number: int, batch: BatchIndex) -> float:
        """A batch's size at a worker's speed."""
        return self._sizes[batch] / self._speeds[number]

    def dies(self, number: int) -> float:
        """When, if ever."""
        return self._dies[number]

    def recorded(self, batch: BatchIndex) -> None:
        """A receipt was acknowledged."""
        self.outcome.again += batch in self._made
        self._made.add(batch)
        self.outcome.makespan = self.world.now


class _Worker:
    def __init__(self, run: Simulation, number: int, objects: SlowObjects, manifest: BucketManifest) -> None:
        self._run = run
        self._world = run.world
        self._policy = run.setting.policy
        self._number = number
        self._objects = objects
        self._manifest = manifest
        self._store = BucketStore(objects, f"{ARTIFACTS}/")
        self._identity = WorkerIdentity(
            id=WorkerId(f"host-{number}-1-{number:08x}"), host=f"host-{number}", pid=1, process_started=0.0
        )
        self._lease: Lease | None = None
        self._beat_at = 0.0
        self._working_since: float | None = None

    def work(self) -> None:
        """As `worker` does."""
        manifest, me = self._manifest, self._identity.id
        probe(self._objects, is_short=True)
        claim_folder(self._store, manifest.folder)
        manifest.workers.register(self._identity)
        manifest.micro_batches.agreed("simulated", 2)
        planning.begin(self._objects, self._run.plan)
        while True:
            self._wait(0.0)
            manifest.workers.alive_on_host(self._identity.host)
            granted = manifest.leases.lease(me, self._policy)
            if isinstance(granted, Lease):
                self._lease = granted
                self._make(granted)
                manifest.leases.release(granted)
                self._lease = None
            elif granted.blocked:
                raise RuntimeError("a slice is blocked")
            elif granted.leased:
                self._wait(self._policy.heartbeat.total_seconds())
            else:
                break
        manifest.workers.beat(me, WorkerReport(state=WorkerState.STOPPED))

    def _make(self, lease: Lease) -> None:
        manifest = self._manifest
        is_suspect = manifest.suspicion.read(lease).is_suspect
        for batch in manifest.receipts.pending_batches(lease):
            seconds = self._run.seconds_for(self._number, batch)
            with self._world.beside():
                if is_suspect:
                    manifest.suspicion.note_batch(lease, batch)
            self._working_since = self._world.now
            self._wait(seconds * (SUSPECT_SLOWDOWN if is_suspect else 1.0))
            self._working_since = None
            receipt = simulated_receipt(self._run.plan, lease, batch)
            with self._world.beside():
                self._objects.create(f"{ARTIFACTS}/{receipt.artifact.name}", _PIECE)
                manifest.receipts.record(lease, receipt)
            self._run.recorded(batch)

    def _wait(self, seconds: float) -> None:
        """Let time pass, with a sign of life at every heartbeat; die if it is time."""
        until = self._world.now + seconds
        while True:
            dies = self._run.dies(self._number)
            stop = min(until, dies, max(self._beat_at, self._world.now))
            self._world.sleep(max(0.0, stop - self._world.now))
            if self._world.now >= dies:
                if self._working_since is not None:
                    self._run.outcome.lost += self._world.now - self._working_since
                raise Dead
            if self._world.now >= self._beat_at:
                with self._world.beside():
                    self._beat()
                self._beat_at = self._world.now + self._policy.heartbeat.total_seconds()
            if self._world.now >= until:
                return

    def _beat(self) -> None:
        state = WorkerState.WAITING if self._lease is None else WorkerState.WORKING
        if self._lease is not None:
            self._manifest.leases.renew(self._lease, self._policy)
        self._manifest.workers.beat(self._identity.id, WorkerReport(state=state, progressed=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one command, or an hour of one worker, asks of the store."""

    what: str
    counts: dict[str, int]

    @property
    def dollars(self) -> float:
        """The price of the requests."""
        return sum(price * self.counts.get(kind, 0) for kind, price in DOLLARS.items())


def status(run: Simulation) -> Asked:
    """What the command asks of the bucket as it is now, in a process of its own."""
    objects = run.objects()
    with run.manifest(objects) as manifest:
        manifest.overview()
    return Asked(what="status", counts=objects.requests.counted())


def reading(run: Simulation) -> tuple[Asked, Asked]:
    """What a verification asks of it, every receipt and artifact once; and a merge, which first surveys."""
    objects = run.objects()
    with run.manifest(objects) as manifest:
        names = list(manifest.receipts.artifacts())
        survey = Counter(objects.requests.counted())
        for _, name in names:
            objects.read(f"{ARTIFACTS}/{name}")
        verify = Counter(objects.requests.counted())
        looked = Counter(objects.requests.counted())
        list(manifest.receipts.dead_letters())
        looked = Counter(objects.requests.counted()) - looked
    return (
        Asked(what="verify", counts=dict(verify)),
        Asked(what="merge", counts=dict(verify + survey + looked)),
    )


def of_waiting(policy: LeasePolicy) -> Asked:
    """What a worker asks in an hour in which another holds the only slice that is left."""
    plan = make_plan(backgrounds=1, foregrounds=1)
    run = Simulation(Setting(plan=plan, policy=policy, crew=1))
    workers = [
        WorkerIdentity(id=WorkerId(f"{name}-1-00000000"), host=name, pid=1, process_started=0.0)
        for name in ("holds", "waits")
    ]
    theirs, objects = run.objects(), run.objects()
    with run.manifest(theirs) as holding, run.manifest(objects) as waiting:
        for manifest, worker in zip((holding, waiting), workers, strict=True):
            manifest.workers.register(worker)
            granted = manifest.leases.lease(worker.id, policy)
        before = Counter(objects.requests.counted())
        for _ in range(round(3600 / policy.heartbeat.total_seconds())):
            run.world.now += policy.heartbeat.total_seconds()
            holding.workers.beat(workers[0].id, WorkerReport(state=WorkerState.WORKING))
            waiting.workers.alive_on_host(workers[1].host)
            granted = waiting.leases.lease(workers[1].id, policy)
            waiting.workers.beat(workers[1].id, WorkerReport(state=WorkerState.WAITING))
        if granted != NoLease(leased=1, blocked=0):
            raise RuntimeError(f"{granted}: it was to wait")
        counts = Counter(objects.requests.counted())
    counts.subtract(before)
    return Asked(what="a waiting worker, an hour", counts=dict(counts))


def of_probe(run: Simulation, *, is_short: bool) -> Asked:
    """What is asked before a store is trusted."""
    objects = run.objects()
    probe(objects, is_short=is_short)
    what = "the probe at a worker's start" if is_short else "the probe of plan and doctor"
    return Asked(what=what, counts=objects.requests.counted())


_KINDS = tuple(DOLLARS)


def _cells(counts: Counter[str] | dict[str, int]) -> str:
    shown = "".join(f"{counts.get(kind, 0):>9,}" for kind in _KINDS)
    up, down = counts.get("bytes_up", 0) / 1e6, counts.get("bytes_down", 0) / 1e6
    return f"{shown} {up:>9,.1f} {down:>9,.1f}"


def print_requests(crews: Sequence[int], setting: Callable[[int], Setting]) -> None:
    """A table of the workers' requests for each crew, then one of the commands'."""
    heads = "".join(f"{kind:>9}" for kind in _KINDS) + f" {'MB up':>9} {'MB down':>9} {'dollars':>8}"
    played = None
    for crew in crews:
        run = Simulation(setting(crew))
        outcome = run.play()
        played = played or run
        hours = outcome.makespan / 3600
        print(f"\n{crew} workers, {hours:.2f} hours; {outcome.lost_claims} claims lost", flush=True)
        print(f"{'what it is for':<30}{heads}")
        for folder in sorted({place for _, place in outcome.places}):
            counts = Counter({kind: outcome.places[kind, folder] for kind in _KINDS})
            shown = "".join(f"{counts[kind]:>9,}" for kind in _KINDS)
            print(f"{folder:<30}{shown}")
        total = Asked(what="all", counts=dict(outcome.counts))
        print(f"{'all':<30}{_cells(outcome.counts)} {total.dollars:>8.2f}")
        half = Asked(what="status", counts=outcome.status)
        print(f"{'a status half-way':<30}{_cells(half.counts)} {half.dollars:>8.4f}", flush=True)
    if played is None:
        return
    print(f"\n{'when all is recorded':<30}{heads}")
    asked = [
        status(played),
        *reading(played),
        of_probe(played, is_short=False),
        of_probe(played, is_short=True),
    ]
    for one in [*asked, of_waiting(setting(1).policy)]:
        print(f"{one.what:<30}{_cells(one.counts)} {one.dollars:>8.4f}", flush=True)


def print_makespans(crews: Sequence[int], seeds: Sequence[int], setting: Callable[[int], Setting]) -> None:
    """A line for each crew, undisturbed and with a third of it dying, and for each seed."""
    print(
        f"{'workers':>7} {'of these die':>12} {'seed':>5} {'ideal s':>9} {'made in s':>10} {'times':>6} "
        f"{'lost claims':>12} {'again':>6} {'lost s':>7}"
    )
    for crew, seed in itertools.product(crews, seeds):
        for dying in sorted({0, crew // 3}):
            outcome = Simulation(replace(setting(crew), dying=dying, seed=seed)).play()
            print(
                f"{crew:>7} {dying:>12} {seed:>5} {outcome.ideal:>9,.0f} {outcome.makespan:>10,.0f} "
                f"{outcome.ratio:>6.3f} {outcome.lost_claims:>12,} {outcome.again:>6,} {outcome.lost:>7,.0f}",
                flush=True,
            )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--makespan", action="store_true")
    parser.add_argument("--workers", type=_numbers, help="1,40; of the makespan 1,5,12,40")
    parser.add_argument("--batch-seconds", type=float, help="2.5, so that one worker takes nine hours; or 80")
    parser.add_argument("--artifact-bytes", type=int, default=180_000)
    parser.add_argument("--lease-seconds", type=float, default=120)
    parser.add_argument("--heartbeat-seconds", type=float, default=30)
    parser.add_argument("--seeds", type=_numbers, default=[1])
    options = parser.parse_args()
    batch, slice_batches = (128, 4) if options.makespan else (32, 16)
    plan = make_plan(backgrounds=202, foregrounds=101, batch=batch, slice_batches=slice_batches)
    seconds = options.batch_seconds or (80.0 if options.makespan else 2.5)

    def setting(crew: int) -> Setting:
        return Setting(
            plan=plan,
            policy=policy_of(options.lease_seconds, options.heartbeat_seconds),
            crew=crew,
            batch_seconds=seconds,
            artifact_bytes=options.artifact_bytes,
        )

    print(f"{plan.samples:,} samples, {plan.layout.batch_count:,} batches of about {seconds:g} s")
    with memory_folder() as folder:
        tempfile.tempdir = str(folder)  # the scratch files of manifests
        if options.makespan:
            print_makespans(options.workers or [1, 5, 12, 40], options.seeds, setting)
        else:
            print_requests(options.workers or [1, 40], setting)


if __name__ == "__main__":
    main()

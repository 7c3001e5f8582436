"""A chaos run: workers, a schedule of misfortunes, looks at the counters, and the judgement at the end."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from shardgen.artifacts.folder_store import FolderStore
from shardgen.domain.plan import Plan
from shardgen.errors import ManifestBusy, ShardgenError
from shardgen.operations.status import report
from shardgen.settings.run_directory import RunDirectory
from tests.chaos.backdoors import Backdoor, SqliteBackdoor
from tests.chaos.bucket_backdoor import Bucket, BucketBackdoor, WireFaults
from tests.chaos.crew import Crew, Member
from tests.chaos.faults import CALLS, FULL_DISK, order_fault
from tests.chaos.figures import Figures
from tests.chaos.operating import Operator, batches_to_requeue
from tests.chaos.postgres_backdoor import PostgresBackdoor
from tests.chaos.schedule import (
    IN_A_BUCKET,
    ON_A_FILE,
    WITH_A_SERVER,
    WITH_SESSIONS,
    Event,
    EventKind,
    make_schedule,
    micro_batch_of,
)
from tests.chaos.server_faults import ServerFaults
from tests.chaos.worker import VARIABLE
from tests.invariants import counter_faults, zip_faults
from tests.postgres import Server
from tests.runs import make_run, sha256_of, shardgen

LEASE_SECONDS = 3.0
SQLITE = "sqlite:///manifest.sqlite"
_LOOK_SECONDS = 1.0
_TICK_SECONDS = 0.05
_FULL_DISK_SECONDS = 3.0
_STORED_AT_LEAST = 80  # samples, at the last look of the chaos
_PATIENCE = 10  # times as long as was asked for, until then
_TO_WORKERS = (EventKind.KILL, EventKind.STALL, EventKind.FAULT, EventKind.LEAVE)
_TO_THE_SERVER = (EventKind.CUT, EventKind.RESTART)
_WHILE_STARTING = 0.1  # of the misfortunes of workers
_PURSUED = 0.5  # of them happen to a worker in suspect mode, if there is one
_MADE_BEFORE = 10  # batches at most, that a worker is left to record before one of the others
_ALMOST_DONE = 0.08  # of the plan pending: then a third of it is put back


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """`broken` names a promise that the workers break on purpose: see tests/chaos/worker.py.

    `server` is the one of the manifest, if it is the harness's own: then it is restarted, too. `bucket` is
    that of the manifest, if it is one.
    """

    seconds: float
    seed: int
    workers: int = 3
    samples: int = 4800
    manifest: str = SQLITE
    server: Server | None = None
    bucket: Bucket | None = None
    verbose: bool = False
    broken: str = ""


class Chaos:
    """One chaos run in a folder of its own."""

    def __init__(self, folder: Path, options: ChaosOptions, *, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._options = options
        self._began = time.monotonic()
        self._stored = 0
        self._write = say
        self.figures = Figures(
            seed=options.seed, seconds=options.seconds, micro_batch=micro_batch_of(options.seed)
        )
        self._undisturbed = self._make_undisturbed()
        self._run = self._plan_run()
        self._plan: Plan = self._run.plan()
        self.figures.planned = self._plan.samples
        self._backdoor = self._make_backdoor()
        workers = folder / "workers"
        workers.mkdir()
        self._crew = Crew(
            run=self._run,
            backdoor=self._backdoor,
            plan=self._plan,
            folder=workers,
            figures=self.figures,
            say=self._say,
            pace=self._pace(),
            broken=options.broken,
            size=options.workers,
            environment={VARIABLE: options.manifest}
            | ({} if options.bucket is None else options.bucket.environment),
        )
        self._server: ServerFaults | WireFaults | None = None
        if isinstance(self._backdoor, BucketBackdoor):
            self._server = WireFaults(self._backdoor, self._crew, self.figures)
        if isinstance(self._backdoor, PostgresBackdoor):
            self._crew.away = self._backdoor.away
            self._server = ServerFaults(self._backdoor, self._crew, self.figures)
        self._operator = Operator(
            run=self._run,
            plan=self._plan,
            backdoor=self._backdoor,
            figures=self.figures,
            crew=self._crew,
            say=self._say,
        )

    def _make_backdoor(self) -> Backdoor:
        if self._options.manifest.startswith("postgresql"):
            return PostgresBackdoor(self._options.manifest, self._options.server)
        if self._options.bucket is not None:
            return BucketBackdoor(self._options.bucket, self._plan)
        return SqliteBackdoor(self._run.database.path)

    def _say(self, line: str) -> None:
        if self._options.verbose:
            self._write(f"{time.monotonic() - self._began:7.1f}  {line}")

    def _make_undisturbed(self) -> str:
        """The sha256 of the zip of the same plan when nothing goes wrong."""
        rows = max(1, self._options.samples // 160)
        run = make_run(
            self._folder,
            changes={
                "compose.grid": f"[20, {rows}]",
                "depth.micro_batch": str(self.figures.micro_batch),
                "shards.size": "1000",
                "shards.slice_batches": "4",
                "shards.batch": "8",
                "lease.seconds": f"{LEASE_SECONDS:g}",
                "lease.heartbeat_seconds": "0.3",
                "lease.stall_seconds": "600",
            },
        )
        done = shardgen("run", run.path, timeout=1200)
        if done.returncode:
            raise RuntimeError(f"the undisturbed run failed: {done.stderr}")
        sha256 = sha256_of(run.path / "dataset.zip")
        shutil.rmtree(run.artifacts)
        self._say(f"the undisturbed zip is {sha256[:16]}")
        return sha256

    def _plan_run(self) -> RunDirectory:
        """The same plan in a new run directory, with the manifest that was asked for."""
        path = self._folder / "chaos"
        path.mkdir()
        text = (self._folder / "run" / "shardgen.toml").read_text(encoding="utf-8")
        text = text.replace(SQLITE, f"${{{VARIABLE}}}")
        os.environ[VARIABLE] = self._options.manifest
        os.environ.update({} if self._options.bucket is None else self._options.bucket.environment)
        (path / "shardgen.toml").write_text(text, encoding="utf-8")
        done = shardgen("plan", path)
        if done.returncode:
            raise RuntimeError(f"planning failed: {done.stderr}")
        return RunDirectory.open(path)

    def _pace(self) -> float:
        """Seconds that a batch takes longer than it must, so that the plan lasts a while."""
        batches = self._plan.layout.batch_count
        return min(1.0, 0.3 * self._options.seconds / batches)

    def run(self, schedule: list[Event] | None = None) -> Figures:
        """Let it go wrong (by the seed's schedule, if no other is given), then finish in peace and judge."""
        if schedule is None:
            kinds: Collection[EventKind] = ON_A_FILE
            if self._backdoor.has_sessions:
                kinds = WITH_A_SERVER if self._backdoor.has_server else WITH_SESSIONS
            if isinstance(self._backdoor, BucketBackdoor):
                kinds = IN_A_BUCKET
            schedule = make_schedule(self._options.seed, self._options.seconds, kinds)
        for event in schedule:
            self._say(f"planned: {event.at:6.1f} {event.kind.value} {event.seed}")
        try:
            self._disturb(schedule)
            self._end_the_chaos()
            self._finish()
            self._judge()
        except ShardgenError as error:
            self.figures.violations.append(f"the end of the run: {error!r}")
        finally:
            self._crew.kill_all()
        return self.figures

    def _disturb(self, schedule: list[Event]) -> None:
        start, events, looked = time.monotonic(), list(schedule), 0.0
        while (now := time.monotonic() - start) < self._options.seconds or self._is_too_early(now):
            if self._operator.has_manifest.is_set():
                self._crew.fill()
            elif self._operator.wants_nobody.is_set():
                self._crew.kill_all()
            self._crew.reap()
            for event in [event for event in events if now >= event.at]:
                if self._happen(event):
                    events.remove(event)
            if now - looked >= _LOOK_SECONDS:
                looked = now
                self._look(random.Random(int(now)))  # noqa: S311
            time.sleep(_TICK_SECONDS)

    def _is_too_early(self, now: float) -> bool:
        """A run in which hardly anything was made proves nothing, however slow the machine is."""
        return self._stored < _STORED_AT_LEAST and now < _PATIENCE * self._options.seconds

    def _happen(self, event: Event) -> bool:
        """False: nobody is there whom it could happen to; try again."""
        source = event.random
        if event.kind in _TO_WORKERS:
            # Somebody who starts up has little to lose, and most of a short life is starting up.
            after = None if source.random() < _WHILE_STARTING else source.randint(0, _MADE_BEFORE)
            victims = self._crew.victims(after=after)
            if not victims or not self._operator.has_manifest.is_set():
                return False
            self._say(event.kind.value)
            if source.random() < _PURSUED:
                victims = self._crew.suspected(victims) or victims
            self._happen_to(source.choice(victims), event.kind, source)
            return True
        if event.kind in _TO_THE_SERVER and self._server is not None:
            happened = self._server.cut if event.kind is EventKind.CUT else self._server.restart
            if not happened(source):
                return False
            self._say(event.kind.value)
            return True
        self._say(event.kind.value)
        self._happen_to_all(event.kind, source)
        return True

    def _happen_to_all(self, kind: EventKind, source: random.Random) -> None:
        match kind:
            case EventKind.FULL_DISK:
                marker = self._crew.folder / FULL_DISK
                marker.touch()
                threading.Timer(_FULL_DISK_SECONDS, marker.unlink, [True]).start()
            case EventKind.JOIN:
                self._crew.size = min(self._options.workers + 1, self._crew.size + 1)
                self.figures.counts["joins"] += 1
            case EventKind.CORRUPT:
                self._operator.order(lambda: self._operator.damage(source))
            case EventKind.REQUEUE:
                self._operator.order(lambda: self._requeue(source, share=0.0))
            case EventKind.REBUILD:
                self._operator.order(lambda: self._operator.rebuild(source))

    def _happen_to(self, victim: Member, kind: EventKind, source: random.Random) -> None:
        match kind:
            case EventKind.KILL:
                self._crew.kill(victim)
            case EventKind.STALL:
                self._crew.stall(victim, LEASE_SECONDS * source.uniform(1.2, 2.5))
            case EventKind.FAULT:
                error = source.choice([errno.ENOSPC, errno.EIO])
                order_fault(victim.folder, call=source.choice(CALLS), error=error)
            case EventKind.LEAVE:
                self._crew.leave(victim)
                self._crew.size = max(1, self._crew.size - 1)
                self.figures.counts["leaves"] += 1

    def _requeue(self, source: random.Random, *, share: float) -> None:
        batches = batches_to_requeue(self._run, self._plan, source, share)
        if batches:
            self._operator.requeue(batches)

    def _look(self, source: random.Random) -> None:
        """Look at the state as `status` does, and compare its counters with the rows."""
        if not self._operator.has_manifest.is_set():
            return
        try:
            found = report(self._run)
            faults = self._counter_faults()
        except ShardgenError as error:
            if self._operator.has_manifest.is_set() and not isinstance(error, ManifestBusy):
                self.figures.violations.append(f"a look failed: {error!r}")
            return
        self.figures.looks += 1
        self._stored = found.stored
        faults += [f"{found.pending} are pending"] if found.pending < 0 else []
        self.figures.violations += [f"after {time.monotonic() - self._began:.1f} s: {one}" for one in faults]
        if not self._operator.is_idle:
            return
        if found.overview.blocked_total:
            self._say(f"blocked: {found.overview.blocked}")
            self._operator.order(self._operator.unblock)
        elif found.pending < _ALMOST_DONE * self._plan.samples:
            self._operator.order(lambda: self._requeue(source, share=1 / 3))

    def _counter_faults(self) -> list[str]:
        """In a bucket there are no counters, and every receipt that was acknowledged must be there."""
        if not isinstance(self._backdoor, BucketBackdoor):
            return counter_faults(self._run.database, self._plan)
        said = {one for member in self._crew.members for one in member.history.receipts}
        said |= self._crew.receipts
        return [
            f"batch {batch}: a receipt with fence {fence} was acknowledged, and is not there"
            for batch, fence in sorted(said - self._backdoor.receipts())
        ]

    def _end_the_chaos(self) -> None:
        self._operator.dismiss()
        if self._server is not None:
            self._server.join()
        while self._operator.is_at_work:
            if self._operator.wants_nobody.is_set():
                self._crew.kill_all()
            self._crew.reap()
            time.sleep(_TICK_SECONDS)
        (self._crew.folder / FULL_DISK).unlink(missing_ok=True)
        self._crew.size = 0
        self._crew.dismiss()

    def _finish(self) -> None:
        """Plain workers, `verify` and `merge`, as an operator would in the end."""
        self._say("the chaos is over")
        operator = self._operator
        for _ in range(5):
            operator.unblock()
            worked = operator.shardgen("worker", self._run.path, "--device", "cpu", timeout=1800)
            if worked.returncode not in (0, 14):
                self.figures.violations.append(f"a plain worker: {worked.returncode}: {worked.stderr}")
            if worked.returncode == 0 and operator.verify() == 0:
                break
        else:
            self.figures.violations.append("five workers and verifications do not finish it")
        merged = operator.shardgen("merge", self._run.path)
        if merged.returncode:
            self.figures.violations.append(f"merge: {merged.returncode}: {merged.stderr}")
            return
        for subject in (self._run.path, self._run.path / "dataset.zip"):
            verified = operator.shardgen("verify", subject)
            if verified.returncode:
                self.figures.violations.append(f"verify {subject}: {verified.stdout[-1000:]}")

    def _judge(self) -> None:
        figures, path = self.figures, self._run.path / "dataset.zip"
        figures.violations += self._counter_faults()
        overview = report(self._run).overview
        figures.stored, figures.dead = overview.stored, overview.dead
        with self._run.manifest(self._plan, read_only=True) as manifest:
            letters = list(manifest.receipts.dead_letters())
        for letter in letters:
            figures.violations.append(
                f"sample {letter.sample} is a dead letter ({letter.reason}: {letter.detail[:300]}); "
                f"deaths by the harness while it was noted: {self._crew.deaths_of[letter.sample]}"
            )
        if max(self._crew.deaths_of.values(), default=0) > 2:
            figures.violations.append("the harness killed three times on one noted sample")
        figures.violations += self._recorded_too_often()
        if not path.exists():
            figures.lost = figures.planned - figures.stored - figures.dead
            return
        faults = zip_faults(path, self._plan, {int(letter.sample) for letter in letters})
        figures.lost = sum(fault.endswith("lost") for fault in faults)
        figures.violations += faults
        figures.sha256_equal = sha256_of(path) == self._undisturbed
        if not figures.sha256_equal:
            figures.violations.append("the zip is not the undisturbed one")

    def _recorded_too_often(self) -> list[str]:
        """A batch may be recorded once, and once more for every time that it was put back or forgotten.

        In a bucket more often: whoever lost a slice may finish what was on its way.
        """
        if self._options.bucket is not None:
            return []
        allowed = Counter[int]()
        for _fence, data in FolderStore(self._run.artifacts).requeued():
            allowed.update(json.loads(data)["batches"])
        rebuilds = self.figures.counts["rebuilds"]
        return [
            f"batch {batch}: recorded {count} times, put back {allowed[batch]} times"
            for batch, count in sorted(self._crew.recorded.items())
            if count > 1 + allowed[batch] + rebuilds
        ]

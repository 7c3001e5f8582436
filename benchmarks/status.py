"""`shardgen status` from the shell on a half-done plan of 408,040 samples with simulated receipts.

python -m benchmarks.status [--repeat 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactRef, BatchRecord, OutputSums, Provenance, Receipt
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.machine.processes import new_identity
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.settings.run_directory import RunDirectory
from tests.plans import make_plan


def simulated_receipt(plan: Plan, lease: Lease, batch: BatchIndex) -> Receipt:
    """A receipt of the usual size."""
    count = len(plan.layout.batch_samples(batch))
    sums = {
        output.name: OutputSums(
            images=count,
            pixels=count * 40_000,
            sum=(count * 5_000_000,) * output.channels,
            squares=(count * 900_000_000,) * output.channels,
        )
        for output in plan.outputs
    }
    return Receipt(
        shard=lease.shard,
        slice=lease.slice,
        fence=lease.fence,
        worker=lease.worker,
        artifact=ArtifactRef(
            name=f"shard-{lease.shard:05d}/batch-{batch:08d}.f{lease.fence:04d}.00000000.00000000.zip",
            size_bytes=180_000,
            sha256=f"{batch:064x}",
        ),
        record=BatchRecord(
            batch=batch,
            members_start=0,
            members_stop=3 * count,
            members_sha256=f"{batch:064x}",
            sums=sums,
            dead_letters=(),
            provenance=Provenance.of(
                {
                    "device_model": "simulated",
                    "micro_batch": 2,
                    "opencv": "-",
                    "precision": "float32",
                    "tensorflow": "-",
                }
            ),
        ),
    )


def half_done(run_dir: Path) -> None:
    """Plan 202 x 101 x 20 samples, record every batch of half the slices; two workers hold slices."""
    plan = make_plan(backgrounds=202, foregrounds=101)
    (run_dir / "shardgen.toml").write_text('[compose]\nflips = "none"\n', encoding="utf-8")
    (run_dir / "plan.json").write_bytes(plan.canonical_json)
    database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=run_dir)
    create_manifest(database, plan)
    policy = RunDirectory.open(run_dir).settings.lease_policy
    with Manifest(database, plan) as manifest:
        workers = [new_identity(f"simulated-{number}") for number in range(2)]
        for worker in workers:
            manifest.workers.register(worker)
        while 2 * manifest.overview().stored < plan.samples:
            lease = manifest.leases.lease(workers[0].id, policy)
            if isinstance(lease, NoLease):
                raise TypeError("nothing is left to lease")
            for batch in manifest.receipts.pending_batches(lease):
                manifest.receipts.record(lease, simulated_receipt(plan, lease, batch))
        for worker in workers:
            manifest.leases.lease(worker.id, policy)
            manifest.workers.beat(worker.id, WorkerReport(state=WorkerState.WORKING, samples_per_second=6.4))


def main() -> None:
    """Build it, then time the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        half_done(run_dir)
        command = [sys.executable, "-m", "shardgen", "status", str(run_dir)]
        seconds = []
        for _ in range(options.repeat):
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ours
            seconds.append(time.perf_counter() - began)
        print(done.stdout)
        run = RunDirectory.open(run_dir)
        with run.manifest(run.plan(), read_only=True) as manifest:
            began = time.perf_counter()
            manifest.operator.refuse_contradictions()
            print(f"audit, half done: {time.perf_counter() - began:.2f} s")
            began = time.perf_counter()
            slices = manifest.details(newest=12).slices
            print(f"details of {len(slices)} slices: {1000 * (time.perf_counter() - began):.0f} ms")
        size = (run_dir / "manifest.sqlite").stat().st_size
        print(f"manifest: {size / 1e6:.1f} MB")
        median, worst = statistics.median(seconds), max(seconds)
        print(f"shardgen status: median {median:.2f} s, worst {worst:.2f} s of {options.repeat}")


if __name__ == "__main__":
    main()

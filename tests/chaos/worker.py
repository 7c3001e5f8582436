"""The real `shardgen worker` with a faulty file layer, a diary and a pace; the rest is the command's own."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardgen.artifacts import folder_store
from shardgen.artifacts.names import ArtifactName
from shardgen.cli.app import main as shardgen_main
from shardgen.coordination.bucket.leases import BucketLeases
from shardgen.coordination.bucket.records import BucketReceipts
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.receipt import ArtifactRef, Receipt
from shardgen.domain.steps import BatchStep, OnStep, Step, ignore_step
from shardgen.manifest.leases import Leases
from shardgen.manifest.receipts import Receipts
from shardgen.manifest.urls import is_bucket
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker import worker
from shardgen.worker.batch import BatchMaker, Prepared
from tests.broken import take_the_fence_away
from tests.chaos.faults import FaultyFiles
from tests.logged import logged

DIARY = "diary"
VARIABLE = "SHARDGEN_MANIFEST"  # of the environment: what the settings of the run name
UNPUBLISHED, UNFENCED = "unpublished", "unfenced"


class Diary:
    """Lines that survive the process: one `write` each, with the machine's monotonic time in front."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / DIARY, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, event: str, *values: object) -> None:
        line = " ".join([f"{time.monotonic():.3f}", event, *map(str, values)])
        os.write(self._descriptor, (line.replace("\n", " ") + "\n").encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one worker process is told."""

    run_dir: Path
    folder: Path
    pace: float
    seed: int
    broken: str
    environment: dict[str, str]


def main(part: Part) -> None:
    """Be a worker until the command ends this process."""
    stderr = os.open(part.folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    os.environ.update(part.environment)
    diary = Diary(part.folder)
    source = random.Random(part.seed)  # noqa: S311
    folder_store.DiskFiles = lambda: FaultyFiles(  # type: ignore[assignment, attr-defined]
        part.folder, lambda call, name: diary.note("fault", call, name)
    )
    _note_compositions(diary)
    _note_receipts(diary)
    _break_on_purpose(part.broken)
    pause = 2 * part.pace / len(BatchStep)

    def on_step(step: Step) -> None:
        diary.note("step", step.value)
        if isinstance(step, BatchStep):
            time.sleep(pause * source.random())

    real = worker.work

    def work(
        run: RunDirectory,
        options: worker.WorkerOptions,
        *,
        on_step: OnStep = ignore_step,
        end_process: Callable[[int], None] = os._exit,
    ) -> worker.WorkOutcome:
        with logged(lambda line: diary.note("said", line)):
            outcome = real(run, options, on_step=chosen, end_process=end_process)
        pending = run.plan().samples - outcome.overview.stored - outcome.overview.dead
        diary.note("outcome", outcome.ending.value, pending)
        return outcome

    chosen = on_step
    worker.work = work
    sys.argv = ["shardgen", "worker", str(part.run_dir), "--id", part.folder.name, "--device", "cpu"]
    shardgen_main()


def _note_compositions(diary: Diary) -> None:
    real = BatchMaker.prepare

    def prepare(self: BatchMaker, batch: BatchIndex) -> Prepared:
        found = real(self, batch)
        diary.note("prepared", batch)
        return found

    BatchMaker.prepare = prepare  # type: ignore[method-assign]


def _note_receipts(diary: Diary) -> None:
    leases: Any
    receipts: Any
    leases, receipts, shared = Leases, Receipts, "session"
    if is_bucket(os.environ[VARIABLE]):
        leases, receipts, shared = BucketLeases, BucketReceipts, "_session"
    real_lease, real_record = leases.lease, receipts.record

    def lease(self: object, *arguments: object, **options: object) -> Lease | NoLease:
        granted: Lease | NoLease = real_lease(self, *arguments, **options)
        if isinstance(granted, Lease):
            batches = getattr(self, shared).layout.slice_batch_range(granted.shard, granted.slice)
            diary.note("lease", batches.start, batches.stop, granted.fence)
        return granted

    def record(self: object, lease: Lease, receipt: Receipt) -> bool:
        is_last: bool = real_record(self, lease, receipt)
        diary.note("recorded", receipt.record.batch, receipt.fence)
        return is_last

    leases.lease = lease
    receipts.record = record


def _break_on_purpose(broken: str) -> None:
    """A worker that breaks a promise: the harness must notice it."""
    if broken == UNPUBLISHED:
        real = folder_store.FolderStore.publish

        def publish(
            self: folder_store.FolderStore, name: ArtifactName, data: bytes, *, on_step: OnStep = ignore_step
        ) -> ArtifactRef:
            ref = real(self, name, data, on_step=on_step)
            if name.batches.start % 2:
                (self.root / ref.name).unlink()
            return ref

        folder_store.FolderStore.publish = publish  # type: ignore[method-assign]
    elif broken == UNFENCED:
        take_the_fence_away()

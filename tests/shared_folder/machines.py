"""Machines of a shared folder on a simulated clock: a disk, clocks and eyes each, and the real protocol."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shardgen.artifacts.archive import build_artifact
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.coordination.folder.claims import Clocks, FolderWork
from shardgen.coordination.folder.index import SegmentIndex
from shardgen.coordination.folder.segments import Desk
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.worker import WorkerIdentity, file_name
from shardgen.errors import LeaseLost
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.storage.atomic import random_part

if TYPE_CHECKING:
    from tests.shared_folder.playing import World

LEASES = LeasePolicy(
    duration=timedelta(seconds=120),
    heartbeat=timedelta(seconds=30),
    stall=timedelta(seconds=600),
    max_attempts=6,
)
MEMORY = Path("/dev/shm")  # noqa: S108 - these tests are not about fsync


@cache
def _template(plan: Plan) -> bytes:
    """An empty manifest of a plan: migrating one for each machine would take most of the time."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        create_manifest(_place(Path(folder)), plan)
        return (Path(folder) / "manifest.sqlite").read_bytes()


def _place(folder: Path) -> DatabaseUrl:
    return DatabaseUrl(url="folder:", run_dir=folder, index=folder)


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
        self._store = FolderStore(machine.disk / "artifacts")
        self._store.make_identity()
        self.work = FolderWork(
            Desk(
                view=self.view,
                manifest=self.manifest,
                checkpoints=self._store,
                own_folder=file_name(self.identity.id),
                policy=world.policy,
                monotonic=machine.monotonic,
            ),
            self.identity,
            clocks=Clocks(monotonic=machine.monotonic, wall=machine.wall),
        )
        self.manifest.workers.register(self.identity)
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
        self.manifest.leases.release(lease)

    def _portion(self, lease: Lease) -> list[BatchIndex] | None:
        self.machine.world.look_soon(self)
        return self.work.portion(lease, batch_seconds=self.busy_seconds / self.made if self.made else 0.0)

    def _make(self, lease: Lease, batch: BatchIndex) -> None:
        world = self.machine.world
        content = world.content(batch)
        if world.is_salted:  # attempts that can be told apart, as on other devices
            members = [(name, data + self.identity.id.encode()) for name, data in content.members]
            content = replace(content, members=members)
        data, inside = build_artifact(world.plan.fingerprint, lease, [content])
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
        self.manifest.receipts.record(lease, receipt)
        self.made += 1
        world.made[batch] = world.made.get(batch, 0) + 1
        if world.made[batch] == 1:
            world.last_new_at = world.now

    def _check_finished(self) -> None:
        """Nobody ends content while a batch is nowhere, as far as it sees; one just undone may be."""
        here = {receipt.record.batch for receipt in self.manifest.receipts.receipts()}
        nowhere = [
            batch
            for slice_id in self.view.slices()
            for batch in self.view.missing(slice_id)
            if batch not in here and batch not in self.view.undone
        ]
        assert not nowhere, nowhere

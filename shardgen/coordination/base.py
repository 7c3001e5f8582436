"""The port: what workers and commands need from a run, whatever hands out slices and keeps the record."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from shardgen.artifacts.store import ArtifactReader, ArtifactStore
from shardgen.coordination.artifact_folder import open_store
from shardgen.coordination.folder.files import FolderFiles
from shardgen.coordination.report import Report
from shardgen.domain.identifiers import BatchIndex, ShardIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.overview import NO_DETAILS, Details, Overview
from shardgen.domain.plan import Plan
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.domain.worker import WorkerIdentity, WorkerReport, WorkerState
from shardgen.errors import ManifestMismatch, PlanConflict, TransientError
from shardgen.machine.processes import gone
from shardgen.manifest.backend import Backend, StillAlone
from shardgen.manifest.manifest import create_manifest
from shardgen.manifest.port import Manifest
from shardgen.manifest.urls import has_own_index
from shardgen.settings.plan_file import FILE_NAME, NEXT, read_plan
from shardgen.settings.run_directory import OTHER_DIRECTORY, RunDirectory
from shardgen.storage.atomic import publish_file, rename_durably
from shardgen.storage.files import DiskFiles, storing

if TYPE_CHECKING:  # it brings numpy, which `status` does without
    from shardgen.artifacts.check import ReceiptSource

_LOG = logging.getLogger(__name__)
_SHOWN = 20  # lines
OnLook = Callable[[str], None]
"""Called with each step of something slow."""


def unheard(_what: str) -> None:
    """Ignore it: for callers without an audience."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Who works, on which shard (None: any), and the event that stops the worker.

    `files` is how it reads a shared folder, if not directly from the disk.
    """

    identity: WorkerIdentity
    shard: ShardIndex | None = None
    files: FolderFiles | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


class Coordinator(ABC):
    """What one worker needs from its run. Use it as a context manager: it closes what was opened for it.

    With its lease a worker records, notes and fails in `manifest`: the run's, or this machine's own if
    the record is elsewhere. `store` holds its artifacts. `beat` may be called from any thread.
    """

    def __init__(self, manifest: Manifest, store: ArtifactStore, seat: Seat) -> None:
        self.manifest = manifest
        self.store = store
        self.seat = seat

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ended(self) -> list[WorkerId]:
        """The workers of this host whose processes ended without saying so."""
        return gone(self.manifest.workers.alive_on_host(self.seat.identity.host))

    @abstractmethod
    def join(self, on_look: OnLook) -> None:
        """Join the run; from now on `on_look` is told, at every step, what the worker's thread waits for.

        Raises PlanConflict, StorageFailed or InputMissing if the worker must not write its artifacts there.
        """

    @abstractmethod
    def lease(self, policy: LeasePolicy) -> Lease | NoLease:
        """Grant a slice; slices of ended processes on this host are freed first."""

    @abstractmethod
    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex]:
        """The batches of a leased slice to make next, once the previous portion is made; [] to release it.

        `batch_seconds` is the time for a batch, 0.0 if not known yet. Raises LeaseLost.
        """

    @abstractmethod
    def release(self, lease: Lease) -> bool:
        """Give the slice back, done or not; this is no death. Returns False if it was already lost."""

    @abstractmethod
    def seconds_for_another(self, batch_seconds: float) -> float:
        """The least time in which leasing another slice is still useful."""

    @abstractmethod
    def seconds_to_ask_again(self, policy: LeasePolicy) -> float:
        """How long to wait before asking again while others hold everything that is left."""

    def overview(self) -> Overview:
        """The state of the whole run as seen from here, perhaps a little old. From any thread."""
        return self.manifest.overview()

    def seconds_between_overviews(self, policy: LeasePolicy) -> float:
        """The least time between two overviews, so that they slow nobody down."""
        return policy.heartbeat.total_seconds()

    @abstractmethod
    def beat(self, report: WorkerReport) -> None:
        """Report the worker's state; does nothing after its last report."""

    @property
    @abstractmethod
    def is_missed(self) -> bool:
        """Whether others would have to wait if this worker ended without saying so."""

    @property
    def may_plan_anew(self) -> bool:
        """Whether `plan` would accept other photographs, since nothing is made from these yet."""
        return False

    @abstractmethod
    def leave(self, last: WorkerReport) -> None:
        """Report for the last time, without a lease; everything made is then visible to all.

        Raises StorageFailed if it is not.
        """

    def say_last(self, last: WorkerReport) -> None:
        """Report for the last time; an unreachable manifest must not hide why the worker ends."""
        try:
            self.manifest.workers.beat(self.seat.identity.id, last)
        except TransientError as error:
            _LOG.warning("heartbeat: %s", error)

    def close(self) -> None:
        """Close connections and files."""
        self.manifest.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Receipts in batch order, and the reader of the artifacts that they name.

    `manifest` is where they are kept, if in one: then it can be asked why some are missing.
    """

    source: ReceiptSource
    store: ArtifactReader
    manifest: Manifest | None = None


class Watcher(Protocol):
    """Reads a run repeatedly, without reading the same thing twice. Use it from one thread.

    Slow records are read less often than asked; in between, the last state is returned: for a
    bucket at most every ten seconds, for a shared folder as seldom as its workers do.
    """

    def report(self) -> Report:
        """The state of the run, of the plan that it has now.

        Raises TransientError if it cannot be read right now; you may call it again after any error.
        """
        ...

    def details(self, *, newest: int) -> Details:
        """More about the last report: slices, pace, dead letters, and the `newest` receipts.

        Raises the errors of `report`; TransientError also if the run has another plan now.
        """
        ...

    @property
    def store(self) -> ArtifactReader:
        """The reader of the artifacts that the newest receipts name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRecords:
    """This machine's manifest, None if it has none yet, and the folder with its receipts' artifacts.

    `store` is None if that folder is not part of the record.
    """

    manifest: Manifest | None
    store: ArtifactStore | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPlan:
    """The result of making a plan the run's: the plan `before`, if any, and whether the manifest is new.

    `changes` has one line per change if it replaced another plan.
    """

    before: Plan | None
    is_new: bool
    changes: tuple[str, ...] = ()


def refused_plan(run: RunDirectory, before: Plan | None, new: Plan) -> PlanConflict:
    """The error for a plan that cannot replace another: what differs, and what to do."""
    changed = [] if before is None else run.recipe(before).differences(run.recipe(new))
    shown = changed[:_SHOWN] + ([f"and {len(changed) - _SHOWN:,} more"] if changed[_SHOWN:] else [])
    hint = f"put the planned files and settings back, or {run.for_another}"
    is_larger = before is not None and run.recipe(before).is_part_of(run.recipe(new))
    if is_larger and not has_own_index(run.url):
        hint = f"shardgen extend RUN_DIR adds them; or {OTHER_DIRECTORY}"
    return PlanConflict(
        f"{run.path}: differs from the plan: {'; '.join(shown)}", hint=hint, problems=tuple(changed)
    )


class Looks(Watcher, Protocol):
    """A Watcher of a run with this plan; raises PlanConflict once the run has another. Close it."""

    def close(self) -> None:
        """Close what is kept open."""
        ...


class FreshLooks:
    """Looks that open the record each time, for records that open quickly."""

    def __init__(self, opened: OpenedRun) -> None:
        self._opened = opened

    def report(self) -> Report:
        """As a single look."""
        return self._opened.report()

    def details(self, *, newest: int) -> Details:
        """As this machine's manifest knows them."""
        with self._opened.own_records() as own:
            return NO_DETAILS if own.manifest is None else own.manifest.details(newest=newest)

    @property
    def store(self) -> ArtifactReader:
        """The artifact folder."""
        return open_store(self._opened.run)

    def close(self) -> None:
        """Nothing is kept open."""


class OpenedRun(ABC):
    """A planned run, as workers and commands use it: a DatabaseRun, a FolderRun, or another backend's.

    The defaults suit a run whose record is not a database, and whose machines each have an index.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.plan = run.plan()

    def ensure_manifest(self) -> bool:
        """Create or upgrade the manifest of a written plan. Returns whether it was new.

        Raises PlanConflict if it is gone although artifacts exist.
        """
        artifacts_exist = any(True for _ in open_store(self.run).names())
        return create_manifest(self.run.database, self.plan, artifacts_exist=artifacts_exist)

    def give_up(self, identity: WorkerIdentity, lease: Lease | None, *, note: str) -> bool:
        """For a worker about to end whose own connections may hang; returns whether it held the slice."""
        with self.run.manifest(self.plan) as manifest:
            was_held = lease is not None and manifest.leases.release(lease)
            manifest.workers.beat(identity.id, WorkerReport(state=WorkerState.STOPPED, note=note))
        return was_held

    def put_plan(self, *, grows: bool = False, on_step: OnStep = ignore_step) -> PutPlan:
        """Make this plan the run's, durably; under the planning lock. May be repeated.

        `grows`: it begins with the blocks of the present one, whose receipts stay. Raises PlanConflict if
        the present plan cannot be replaced, ManifestBusy while a worker holds a live lease.
        """
        del grows
        before = read_plan(self.run.path)
        if before not in (None, self.plan):
            raise refused_plan(self.run, before, self.plan)
        return PutPlan(before=before, is_new=self._begin(on_step))

    def _begin(self, on_step: OnStep) -> bool:
        """Write the plan if it is not there, then make the manifest. Returns whether that was new."""
        self.write_plan()
        on_step(PlanStep.PLAN_WRITTEN)
        is_new = self.ensure_manifest()
        on_step(PlanStep.MANIFEST_CREATED)
        return is_new

    def write_plan(self) -> None:
        """Write `plan.json`, durably and all at once. Raises StorageFailed."""
        publish_file(self.run.path / FILE_NAME, self.plan.canonical_json)

    def write_next(self, on_step: OnStep) -> None:
        """Write `plan.json.next` durably; an earlier one has been dealt with."""
        publish_file(self.run.path / NEXT, self.plan.canonical_json)
        on_step(PlanStep.NEXT_WRITTEN)

    def rename_next(self, on_step: OnStep) -> None:
        """Rename `plan.json.next` to `plan.json`, durably."""
        with storing(self.run.path / FILE_NAME):
            rename_durably(DiskFiles(), self.run.path / NEXT, self.run.path / FILE_NAME)
        on_step(PlanStep.RENAMED)

    def remove_next(self) -> None:
        """Remove what a killed or refused command left before its plan counted."""
        with storing(self.run.path / NEXT):
            (self.run.path / NEXT).unlink(missing_ok=True)

    @abstractmethod
    def coordinator(self, seat: Seat) -> Coordinator:
        """Open what a worker needs."""

    @property
    def why_one_machine(self) -> str:
        """Why `shardgen ray` must not use several machines for it; "" if it may."""
        return ""

    def claim_artifacts(self) -> str | None:
        """Make this machine's artifact folder the run's, as a worker would, before other machines work.

        Returns its identity; None if machines need not share a folder. Raises the errors of `claim_folder`.
        """
        return None

    @abstractmethod
    def report(self) -> Report:
        """The state of the run, fast enough to be called repeatedly."""

    def watching(self) -> AbstractContextManager[Watcher]:
        """A watcher of the run that also follows a new plan. Opens nothing yet."""
        from shardgen.coordination.watching import RunWatcher  # noqa: PLC0415 - it opens runs

        return RunWatcher(self)

    def looks(self) -> Looks:
        """A watcher of the run as long as it has this plan."""
        return FreshLooks(self)

    def take_stock(self) -> Report:
        """The state of the run from the record that this machine's workers write to, brought up to date."""
        return self.report()

    @abstractmethod
    def records(self) -> AbstractContextManager[Recorded]:
        """Open the run's records for reading; anything that waits on this machine is published first."""

    @abstractmethod
    def own_records(self) -> AbstractContextManager[OwnRecords]:
        """Open this machine's records for reading."""

    @abstractmethod
    def undo(
        self, batches: Sequence[BatchIndex], *, dead_letters: bool = False, on_step: OnStep = ignore_step
    ) -> list[BatchIndex]:
        """Undo the receipts of these batches or of those with dead letters, with marks that keep them undone.

        Returns the batches that had one.
        """

    def put_back(self, batches: Sequence[BatchIndex]) -> tuple[list[BatchIndex], int]:
        """Repair the records, then undo bad batches. Returns these and how many records were wrong."""
        mended = 0
        if self.run.database.backend.is_there():
            with self.run.manifest(self.plan) as manifest:
                mended = manifest.operator.mend()
        return self.undo(batches), mended

    def to_sweep(self) -> Callable[[], AbstractContextManager[StillAlone]]:
        """A lock that keeps others from rebuilding while files are removed. Raises ManifestMismatch."""
        raise ManifestMismatch(
            f"{self.run.path}: a shared folder cannot be swept: what looks unused here may be used elsewhere",
            hint="when the merged zip is verified, remove the whole folder",
        )

    def to_back_up(self) -> Backend:
        """The database that is the record. Raises ManifestMismatch if it is none."""
        raise ManifestMismatch(
            f"{self.run.path}: a shared folder has no manifest to back up: the files in it are the record",
            hint=f"copy the whole folder: {self.run.path}",
        )

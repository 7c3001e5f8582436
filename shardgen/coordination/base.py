"""The port: what a worker and a command ask of a run, whatever hands out its slices and keeps its record."""

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
"""Called whenever something slow got a step further, with what that is."""


def unheard(_what: str) -> None:
    """For callers whom nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Who works and on which shard (None: any); and what says that the worker is to stop.

    `files` are the eyes through which it sees a shared folder, if not the disk's.
    """

    identity: WorkerIdentity
    shard: ShardIndex | None = None
    files: FolderFiles | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


class Coordinator(ABC):
    """What one worker needs of its run. Use it as a context manager: it closes what was opened for it.

    Under its lease a worker records, notes and fails in `manifest`: the run's, or this machine's own where
    the record is elsewhere. `store` takes its artifacts. `beat` may be called from any thread.
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
        """The workers of this host whose processes have ended without a word."""
        return gone(self.manifest.workers.alive_on_host(self.seat.identity.host))

    @abstractmethod
    def join(self, on_look: OnLook) -> None:
        """Take part; from now on `on_look` is told what the worker's thread waits for, at every look.

        Raises PlanConflict, StorageFailed or InputMissing when the worker must not write where it would.
        """

    @abstractmethod
    def lease(self, policy: LeasePolicy) -> Lease | NoLease:
        """Grant a slice; what ended processes of this host held is free."""

    @abstractmethod
    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex]:
        """What to make next of a leased slice, when the portion before is made; [] to release it.

        `batch_seconds` is what a batch takes, 0.0 while that is not known. Raises LeaseLost.
        """

    @abstractmethod
    def release(self, lease: Lease) -> bool:
        """Give the slice back, done or not; no death. Returns False when it was not held any more."""

    @abstractmethod
    def seconds_for_another(self, batch_seconds: float) -> float:
        """How much time a slice must at least be given, so that leasing it is of use."""

    @abstractmethod
    def seconds_to_ask_again(self, policy: LeasePolicy) -> float:
        """How long to wait while others hold all that is left."""

    def overview(self) -> Overview:
        """The state of the whole run as it is seen from here, by now or a little ago. From any thread."""
        return self.manifest.overview()

    def seconds_between_overviews(self, policy: LeasePolicy) -> float:
        """How long to wait at least from one to the next, so that nobody's work is slowed down."""
        return policy.heartbeat.total_seconds()

    @abstractmethod
    def beat(self, report: WorkerReport) -> None:
        """What the worker says of itself; after its last word nothing."""

    @property
    @abstractmethod
    def is_missed(self) -> bool:
        """Whether others would wait for something of this worker if it ended without a word."""

    @property
    def may_plan_anew(self) -> bool:
        """Whether `plan` would take other photographs, since nothing is made of these yet."""
        return False

    @abstractmethod
    def leave(self, last: WorkerReport) -> None:
        """Say the last word, with nothing leased any more; what was made is visible to all.

        Raises StorageFailed when it is not.
        """

    def say_last(self, last: WorkerReport) -> None:
        """A manifest that is away must not hide why the worker ends; its lease says that it has ended."""
        try:
            self.manifest.workers.beat(self.seat.identity.id, last)
        except TransientError as error:
            _LOG.warning("heartbeat: %s", error)

    def close(self) -> None:
        """Give back connections and files."""
        self.manifest.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Receipts in batch order, and who reads the artifacts that they name.

    `manifest` is what they are kept in, if they are: then it can be asked why some are missing.
    """

    source: ReceiptSource
    store: ArtifactReader
    manifest: Manifest | None = None


class Watcher(Protocol):
    """Looks at a run again and again; what was seen once is not read again. One thread uses it.

    What is slow to look at is looked at less often than is asked, and else the last look is told again: a
    bucket every ten seconds at most, a shared folder as seldom as its workers do.
    """

    def report(self) -> Report:
        """The state of the run, of the plan that it has now.

        Raises TransientError when it cannot be read just now; after any error it may be asked again.
        """
        ...

    def details(self, *, newest: int) -> Details:
        """What is known beyond the last report: slices, pace, dead letters, and so many newest receipts.

        Raises as `report` does; TransientError also when the run has another plan by now.
        """
        ...

    @property
    def store(self) -> ArtifactReader:
        """Who reads the artifacts that the newest receipts name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRecords:
    """This machine's manifest, None if it has none yet, and the folder that its receipts' artifacts lie in.

    `store` is None where that folder is no part of the record.
    """

    manifest: Manifest | None
    store: ArtifactStore | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPlan:
    """That a plan is the run's: what was `before`, None if nothing; and whether its manifest is new.

    `changes` are a line each where it took the place of another.
    """

    before: Plan | None
    is_new: bool
    changes: tuple[str, ...] = ()


def refused_plan(run: RunDirectory, before: Plan | None, new: Plan) -> PlanConflict:
    """The error of a plan that cannot take the place of another: what differs, and what can be done."""
    changed = [] if before is None else run.recipe(before).differences(run.recipe(new))
    shown = changed[:_SHOWN] + ([f"and {len(changed) - _SHOWN:,} more"] if changed[_SHOWN:] else [])
    hint = f"put the planned files and settings back, or {run.for_another}"
    is_larger = before is not None and run.recipe(before).is_part_of(run.recipe(new))
    if is_larger and not has_own_index(run.url):
        hint = f"shardgen extend RUN_DIR adds them; or {OTHER_DIRECTORY}"
    return PlanConflict(
        f"{run.path}: not what was planned here: {'; '.join(shown)}", hint=hint, problems=tuple(changed)
    )


class Looks(Watcher, Protocol):
    """A Watcher of a run as long as it has this plan: PlanConflict when it has another. Close it."""

    def close(self) -> None:
        """Give back what is kept open."""
        ...


class FreshLooks:
    """Looks that open anew what they read: that suits what is quickly opened."""

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
    """A planned run, as workers and commands ask it: a DatabaseRun, a FolderRun, or another backend's.

    What is not abstract suits a run whose record is no database, and whose machines have an index each.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.plan = run.plan()

    def ensure_manifest(self) -> bool:
        """Create or upgrade the manifest of a written plan. Returns whether it was new.

        Raises PlanConflict when it is gone although artifacts exist.
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
        """Make this plan the run's, durably; under the planning lock. Twice is harmless.

        `grows`: it begins with the blocks of the present one, whose receipts stay. Raises PlanConflict where
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
        """Write `plan.json`, durably, under its name only when it is whole. Raises StorageFailed."""
        publish_file(self.run.path / FILE_NAME, self.plan.canonical_json)

    def write_next(self, on_step: OnStep) -> None:
        """Write `plan.json.next` durably; the one before was settled."""
        publish_file(self.run.path / NEXT, self.plan.canonical_json)
        on_step(PlanStep.NEXT_WRITTEN)

    def rename_next(self, on_step: OnStep) -> None:
        """Let it be `plan.json`, durably."""
        with storing(self.run.path / FILE_NAME):
            rename_durably(DiskFiles(), self.run.path / NEXT, self.run.path / FILE_NAME)
        on_step(PlanStep.RENAMED)

    def remove_next(self) -> None:
        """Remove what a command has left that was killed, or refused, before it counted."""
        with storing(self.run.path / NEXT):
            (self.run.path / NEXT).unlink(missing_ok=True)

    @abstractmethod
    def coordinator(self, seat: Seat) -> Coordinator:
        """Open what a worker needs."""

    @property
    def why_one_machine(self) -> str:
        """Why `shardgen ray` must not have it made on several machines; "" where it may."""
        return ""

    def claim_artifacts(self) -> str | None:
        """Before others are asked to work: make this machine's artifact folder the run's, as a worker would.

        Returns its identity; None where machines need not share a folder for them. Errors of `claim_folder`.
        """
        return None

    @abstractmethod
    def report(self) -> Report:
        """The state of the run, quick enough to be asked again and again."""

    def watching(self) -> AbstractContextManager[Watcher]:
        """Look at the run again and again, also when it is planned anew meanwhile. Opens nothing yet."""
        from shardgen.coordination.watching import RunWatcher  # noqa: PLC0415 - it opens runs

        return RunWatcher(self)

    def looks(self) -> Looks:
        """What such a look is, as long as the run has this plan."""
        return FreshLooks(self)

    def take_stock(self) -> Report:
        """The state of the run by the record that this machine's workers write to, brought up to date."""
        return self.report()

    @abstractmethod
    def records(self) -> AbstractContextManager[Recorded]:
        """Open what the run has recorded, for reading; what waits on this machine is published first."""

    @abstractmethod
    def own_records(self) -> AbstractContextManager[OwnRecords]:
        """Open this machine's records, to be looked at."""

    @abstractmethod
    def undo(
        self, batches: Sequence[BatchIndex], *, dead_letters: bool = False, on_step: OnStep = ignore_step
    ) -> list[BatchIndex]:
        """Undo receipts, of these batches or of those with dead letters, marked so that they stay undone.

        Returns the batches that had one.
        """

    def put_back(self, batches: Sequence[BatchIndex]) -> tuple[list[BatchIndex], int]:
        """Put the records right, then undo batches that were found bad; also how many records were wrong."""
        mended = 0
        if self.run.database.backend.is_there():
            with self.run.manifest(self.plan) as manifest:
                mended = manifest.operator.mend()
        return self.undo(batches), mended

    def to_sweep(self) -> Callable[[], AbstractContextManager[StillAlone]]:
        """What keeps others from making the record anew while files are removed. Raises ManifestMismatch."""
        raise ManifestMismatch(
            f"{self.run.path}: a shared folder is not swept: what looks unused here may count elsewhere",
            hint="when the merged zip is verified, remove the whole folder",
        )

    def to_back_up(self) -> Backend:
        """The database that is the record. Raises ManifestMismatch where it is not."""
        raise ManifestMismatch(
            f"{self.run.path}: a shared folder has no manifest to back up: the files in it are the record",
            hint=f"copy the whole folder: {self.run.path}",
        )

"""Slices of a run in a shared folder, and what a process needs to see and publish them."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from shardgen.artifacts.store import ArtifactStore
from shardgen.coordination.base import Coordinator, LeaseOptions, OnLook
from shardgen.coordination.folder.claims import FolderWork
from shardgen.coordination.folder.files import DiskFolder, FolderFiles
from shardgen.coordination.folder.index import SEGMENTS_NAME, SegmentIndex
from shardgen.coordination.folder.notices import worker_folder
from shardgen.coordination.folder.segments import Desk
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.claims import FolderPolicy
from shardgen.domain.identifiers import BatchIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.wording import Say
from shardgen.domain.worker import WorkerReport
from shardgen.errors import InputMissing, ShardgenError, StorageFailed, TransientError
from shardgen.manifest.manifest import Manifest
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import FILE_MODE, make_folders, storing

_UPLOAD_LIMIT_SECONDS = 1800.0
_UPLOAD_LOOK_SECONDS = 2.0
LOCK_LIMIT_SECONDS = 1800.0
ANOTHER_PUBLISHES = "another process of this machine publishes"
_LOCK_LOOK_SECONDS = 0.5
_LAST_LOOK_SECONDS = 60.0


class FolderLeases(Coordinator):
    """Slices of a run in a shared folder, which a thread of its own looks through."""

    def __init__(
        self, work: FolderWork, worker: WorkerId, policy: FolderPolicy, *, say: Say, on_look: OnLook
    ) -> None:
        self._on_look = on_look
        self._work = work
        self._worker = worker
        self._policy = policy
        self._say = say
        self._failure: ShardgenError | None = None
        self._ended = threading.Event()
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._look, name="folder", daemon=True)

    def start(self) -> None:
        """Scan once (however long it takes), then start the scanning thread."""
        self._say("looking through the shared folder")
        self._work.tick(on_look=self._on_look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.is_set():
            self._again.wait(self._policy.scan.total_seconds())
            self._again.clear()
            if self._ended.is_set():
                return
            try:
                self._work.tick()
            except TransientError as error:
                self._say(f"{error}; looking again in {self._policy.scan.total_seconds():g} s")
            except ShardgenError as error:
                self._failure = error
                return

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def lease(self, policy: LeasePolicy, *, gone: Collection[WorkerId]) -> Lease | NoLease:
        """The slice that was claimed for this moment."""
        self._check()
        granted = self._work.lease(self._worker, policy, ended=gone)
        self._again.set()  # claim the one after it while this one is made
        return granted

    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex] | None:
        """A segment's worth."""
        self._check()
        self._again.set()
        return self._work.portion(lease, batch_seconds=batch_seconds)

    def ended(self, *, is_complete: bool) -> None:
        """Publish what waits."""
        self._work.ended(is_complete=is_complete)

    def reports(self, report: WorkerReport) -> None:
        """For the next beat."""
        self._work.reports(report)

    def seconds_for_another(self, batch_seconds: float) -> float:
        """A segment's: less would be claimed for nothing."""
        segment = min(self._policy.segment.total_seconds(), self._policy.segment_batches * batch_seconds)
        return max(batch_seconds, segment)

    def stop_claiming(self) -> None:
        """Give the next slice back."""
        self._work.stop_claiming()

    def leave(self, *, stopping: threading.Event) -> None:
        """Publish everything, and wait until it has left this machine where that can be known."""
        self._ended.set()
        self._again.set()
        self._wait_for_last_look()
        left = self._work.leave()
        if left:
            raise StorageFailed(
                f"{left} batches are made but not in the shared folder; they are kept on this machine",
                hint="when the folder can be written again: shardgen worker RUN_DIR, on this machine",
            )
        self._wait_for_upload(stopping)

    def _wait_for_last_look(self) -> None:
        deadline = time.monotonic() + _LAST_LOOK_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._on_look("the last look through the shared folder")
            self._thread.join(timeout=1)

    def _wait_for_upload(self, stopping: threading.Event) -> None:
        deadline = time.monotonic() + _UPLOAD_LIMIT_SECONDS
        waiting = self._work.not_uploaded(on_look=self._on_look)
        if waiting:
            self._say(f"waiting until {len(waiting)} files are uploaded; keep this machine until then")
        while waiting and time.monotonic() < deadline and not stopping.wait(_UPLOAD_LOOK_SECONDS):
            waiting = self._work.not_uploaded(on_look=self._on_look)
        if waiting:
            self._say(f"warning: {len(waiting)} files are not uploaded yet; keep this machine until they are")


def open_view(
    run: RunDirectory, plan: Plan, *, files: FolderFiles | None = None
) -> tuple[FolderView, SegmentIndex]:
    """This machine's view of a run in a shared folder, not looked through yet; close the index."""
    if run.index is None:
        raise InputMissing(f"{run.path}: nothing is planned here yet", hint="shardgen plan RUN_DIR")
    index = SegmentIndex(run.index / SEGMENTS_NAME)
    return FolderView(plan, files or DiskFolder(run.path), index), index


@contextmanager
def opened_view(run: RunDirectory, plan: Plan) -> Iterator[FolderView]:
    """A view that was looked through once. Raises StorageFailed when the folder cannot be read at all."""
    view, index = open_view(run, plan)
    with closing(index):
        with storing(run.path):
            view.gather()
        yield view


def desk_for(run: RunDirectory, view: FolderView, manifest: Manifest, own_folder: str) -> Desk:
    """What a process needs to publish from this machine."""

    @contextmanager
    def alone(on_look: OnLook | None) -> Iterator[bool]:
        path = run.artifacts.parent / "publishing.lock"
        make_folders(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            yield _is_locked(descriptor, on_look)
        finally:
            os.close(descriptor)

    return Desk(
        view=view,
        manifest=manifest,
        checkpoints=ArtifactStore(run.artifacts),
        own_folder=own_folder,
        policy=run.settings.folder_policy,
        alone=alone,
    )


def _is_locked(descriptor: int, on_look: OnLook | None) -> bool:
    """Lock it; False when another process has it and nobody is to be told of the wait."""
    deadline = time.monotonic() + LOCK_LIMIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_look is None:
                return False
        else:
            return True
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another process of this machine publishes for {_time(LOCK_LIMIT_SECONDS)}")
        on_look(ANOTHER_PUBLISHES)
        time.sleep(_LOCK_LOOK_SECONDS)


@contextmanager
def folder_leases(
    run: RunDirectory, plan: Plan, manifest: Manifest, options: LeaseOptions, *, say: Say
) -> Iterator[FolderLeases]:
    """Open the view, say what a lost machine may cost, and lease through both."""
    policy = run.settings.folder_policy
    say(
        f"shared folder: a killed worker costs at most 3 batches; a machine that is lost with its disk costs "
        f"what it made since its last segment, {policy.segment_batches} batches or "
        f"{_time(policy.segment.total_seconds())} of work, and those 3"
    )
    identity = options.identity
    view, index = open_view(run, plan, files=options.files)
    with closing(index):
        desk = replace(desk_for(run, view, manifest, worker_folder(identity.id)), on_look=options.on_look)
        work = FolderWork(desk, identity, shard=options.shard, say=say)
        yield FolderLeases(work, identity.id, policy, say=say, on_look=options.on_look)


def _time(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"

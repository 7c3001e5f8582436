"""Slices of a run in a shared folder, and what a process needs to see and publish them."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from shardgen.artifacts.folder_store import FolderStore
from shardgen.coordination.artifact_folder import claim_folder
from shardgen.coordination.base import Coordinator, OnLook, Seat, unheard
from shardgen.coordination.folder.claims import FolderWork
from shardgen.coordination.folder.files import DiskFolder, FolderFiles
from shardgen.coordination.folder.index import SEGMENTS_NAME, SegmentIndex
from shardgen.coordination.folder.segments import Desk
from shardgen.coordination.folder.view import FolderView
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.overview import Overview
from shardgen.domain.plan import Plan
from shardgen.domain.worker import WorkerReport, file_name
from shardgen.errors import InputMissing, ShardgenError, StorageFailed, TransientError, note_of
from shardgen.manifest.manifest import Manifest
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import FILE_MODE, make_folders, storing

_LOG = logging.getLogger(__name__)
_UPLOAD_LIMIT_SECONDS = 1800.0
_UPLOAD_LOOK_SECONDS = 2.0
LOCK_LIMIT_SECONDS = 1800.0
ANOTHER_PUBLISHES = "another process of this machine publishes"
_LOCK_LOOK_SECONDS = 0.5
_LAST_LOOK_SECONDS = 60.0


class FolderCoordinator(Coordinator):
    """One worker's part in a run in a shared folder, which a thread of its own looks through.

    What it records goes into this machine's manifest, and from there into segments.
    """

    def __init__(self, run: RunDirectory, plan: Plan, manifest: Manifest, seat: Seat) -> None:
        super().__init__(manifest, FolderStore(run.artifacts), seat)
        self._policy = run.settings.folder_policy
        self._on_look: OnLook = unheard
        self._view, self._index = open_view(run, plan, files=seat.files)
        desk = desk_for(run, self._view, manifest, file_name(seat.identity.id))
        desk = replace(desk, on_look=self._tell)
        self._work = FolderWork(desk, seat.identity, shard=seat.shard)
        self._has_joined = self._is_complete = False
        self._failure: ShardgenError | None = None
        self._ended = threading.Event()
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._look, name="folder", daemon=True)

    def join(self, on_look: OnLook) -> None:
        """Scan once (however long it takes), then start the scanning thread."""
        self._on_look = on_look
        claim_folder(self.store, self.manifest.folder)
        self.manifest.workers.register(self.seat.identity)
        batches, seconds = self._policy.segment_batches, self._policy.segment.total_seconds()
        _LOG.info(
            "shared folder: a killed worker costs at most 3 batches; a machine that is lost with its disk "
            "costs what it made since its last segment, %d batches or %s of work, and those 3",
            batches,
            _time(seconds),
        )
        _LOG.info("scanning the shared folder")
        self._has_joined = True
        self._work.tick(on_look=on_look)
        self._thread.start()

    def _tell(self, what: str) -> None:
        self._on_look(what)

    def _look(self) -> None:
        while not self._ended.is_set():
            self._again.wait(self._policy.scan.total_seconds())
            self._again.clear()
            if self._ended.is_set():
                return
            try:
                self._work.tick()
            except TransientError as error:
                _LOG.warning("%s; looking again in %g s", error, self._policy.scan.total_seconds())
            except ShardgenError as error:
                self._failure = error
                return

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def lease(self, policy: LeasePolicy) -> Lease | NoLease:
        """The slice that was claimed for this moment."""
        self._check()
        granted = self._work.lease(self.seat.identity.id, policy, ended=self.ended())
        self._is_complete = False
        self._again.set()  # claim the one after it while this one is made
        return granted

    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex]:
        """A segment's worth; nothing also of a slice that is left to another worker."""
        self._check()
        self._again.set()
        batches = self._work.portion(lease, batch_seconds=batch_seconds)
        self._is_complete = batches == []
        return batches or []

    def release(self, lease: Lease) -> bool:
        """Free it on this machine, publish what waits, and tell the others."""
        was_held = self.manifest.leases.release(lease)
        self._work.ended(is_complete=self._is_complete)
        return was_held

    def seconds_for_another(self, batch_seconds: float) -> float:
        """A segment's: less would be claimed for nothing."""
        segment = min(self._policy.segment.total_seconds(), self._policy.segment_batches * batch_seconds)
        return max(batch_seconds, segment)

    def seconds_to_ask_again(self, policy: LeasePolicy) -> float:
        """A heartbeat: to ask is to look through all of it."""
        return policy.heartbeat.total_seconds()

    def overview(self) -> Overview:
        """What this machine's manifest took over at the last look, and the workers that were seen then."""
        rows = [row for seen in list(self._view.workers.values()) if (row := seen.row()) is not None]
        return replace(self.manifest.overview(), workers=tuple(rows))

    def seconds_between_overviews(self, policy: LeasePolicy) -> float:
        """There is nothing new before the next look."""
        del policy
        return self._policy.scan.total_seconds()

    def beat(self, report: WorkerReport) -> None:
        """For the next file of signs of life, and in the worker's row of this machine."""
        self._work.reports(report)
        self.manifest.workers.beat(self.seat.identity.id, report)

    @property
    def is_missed(self) -> bool:
        """From the first look to the goodbye: a claim stands, or batches wait for their segment."""
        return self._has_joined

    def leave(self, last: WorkerReport) -> None:
        """Publish everything, and wait until it has left this machine where that can be known."""
        try:
            if self._has_joined:
                self._publish_all()
        except BaseException as error:
            last = replace(last, note=note_of(error))
            raise
        finally:
            self._has_joined = False
            self.say_last(last)

    def _publish_all(self) -> None:
        self._ended.set()
        self._again.set()
        self._wait_for_last_look()
        left = self._work.leave()
        if left:
            raise StorageFailed(
                f"{left} batches are made but not in the shared folder; they are kept on this machine",
                hint="when the folder can be written again: shardgen worker RUN_DIR, on this machine",
            )
        self._wait_for_upload()

    def close(self) -> None:
        """The index of segments, and this machine's manifest."""
        self._index.close()
        super().close()

    def _wait_for_last_look(self) -> None:
        deadline = time.monotonic() + _LAST_LOOK_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._on_look("scanning the shared folder one last time")
            self._thread.join(timeout=1)

    def _wait_for_upload(self) -> None:
        deadline = time.monotonic() + _UPLOAD_LIMIT_SECONDS
        waiting = self._work.not_uploaded(on_look=self._on_look)
        if waiting:
            _LOG.info("waiting until %d files are uploaded; keep this machine until then", len(waiting))
        while waiting and time.monotonic() < deadline and not self.seat.stopping.wait(_UPLOAD_LOOK_SECONDS):
            waiting = self._work.not_uploaded(on_look=self._on_look)
        if waiting:
            _LOG.warning(
                "warning: %d files are not uploaded yet; keep this machine until they are", len(waiting)
            )


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
        checkpoints=FolderStore(run.artifacts),
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


def _time(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"

"""Work: lease slices and make their batches until nothing is left, or until told to stop."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from shardgen import __version__
from shardgen.coordination.base import Coordinator, Seat
from shardgen.coordination.folder.files import FolderFiles
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import ShardIndex
from shardgen.domain.lease import Lease, NoLease
from shardgen.domain.overview import Overview
from shardgen.domain.plan import Plan
from shardgen.domain.steps import LeaseStep, OnStep, ignore_step
from shardgen.domain.worker import WorkerIdentity, WorkerState
from shardgen.errors import LeaseLost, PlanConflict, ShardgenError, SliceFailed
from shardgen.machine.processes import new_identity
from shardgen.manifest.leases import check_shard
from shardgen.recipes.base import DeviceChoice, Folders, Station
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import FILE_NAME
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import publish_file
from shardgen.worker.audience import Audience, Lookout
from shardgen.worker.batch import Abandoned, BatchMaker, Stages
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.pipeline import Pipeline
from shardgen.worker.retry import Retry
from shardgen.worker.stop import StopRequest
from shardgen.worker.suspect import SuspectMaker

_LOG = logging.getLogger(__name__)
_TICK_SECONDS = 0.2  # how soon a signal or a lost parent is noticed


class Ending(StrEnum):
    """Why a worker stopped without an error."""

    FINISHED = "finished"
    BLOCKED = "blocked"
    LIMIT = "limit"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """When a worker stops by itself; None: never. Also which shard it is narrowed to."""

    shard: ShardIndex | None = None
    max_batches: int | None = None
    deadline_seconds: float | None = None
    grace_seconds: float = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How one worker is started, and who watches it; None: nobody looks at the whole run for that."""

    identity: WorkerIdentity = field(default_factory=new_identity)
    folders: Folders = field(default_factory=dict)
    device: DeviceChoice = field(default_factory=DeviceChoice)
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    audience: Audience | None = None
    files: FolderFiles | None = None  # of a shared folder, where it is not just a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOutcome:
    """How it ended; `signal_number` is set when a signal (or the parent's death) stopped it."""

    ending: Ending
    samples_done: int
    overview: Overview
    signal_number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Makers:
    """The ordinary way to make a slice, and the careful one after a death."""

    pipeline: Pipeline
    suspect: SuspectMaker


class Worker:
    """One worker process's work, from start-up to its last lease."""

    def __init__(self, run: RunDirectory, options: WorkerOptions, *, on_step: OnStep = ignore_step) -> None:
        self._run = run
        self._options = options
        self._audience = options.audience
        self._on_step = on_step
        self._started = time.monotonic()
        self._batches_started = 0
        self._lease: Lease | None = None
        self._coordinator: Coordinator | None = None
        self._abandon = threading.Event()
        self._retry = Retry()
        self.identity = options.identity
        self.stop = StopRequest()

    def work(self) -> WorkOutcome:
        """Start up, then lease and make until nothing is left. Call `stop` to end it from elsewhere."""
        plan = self._run.plan()
        check_shard(plan.layout, self._options.limits.shard)
        recipe_of(plan).load()
        seat = Seat(
            identity=self.identity,
            shard=self._options.limits.shard,
            files=self._options.files,
            stopping=self.stop.event,
        )
        with open_run(self._run).coordinator(seat) as coordinator:
            self._coordinator = coordinator
            with Heartbeat(coordinator, self._run.settings.lease_policy) as heartbeat:
                self._retry = Retry(between=lambda: self._between_looks(heartbeat))
                try:
                    coordinator.join(heartbeat.waits)
                    if self._run.plan_file is None:
                        publish_file(self._run.path / FILE_NAME, plan.canonical_json)
                    ending = self._work(plan, coordinator, heartbeat)
                except Abandoned:
                    ending = Ending.STOPPED
                finally:
                    heartbeat.holds(None)
                    try:
                        self._release(coordinator, heartbeat)
                    finally:
                        coordinator.leave(heartbeat.last_word(sys.exception()))
            return WorkOutcome(
                ending=Ending.STOPPED if self.stop.is_set() else ending,
                samples_done=heartbeat.samples_done,
                overview=self._retry(coordinator.manifest.overview, between=heartbeat.progress),
                signal_number=self.stop.signal_number,
            )

    def abandon(self) -> None:
        """Give up what is in the network, too: the grace is over."""
        self._abandon.set()

    @property
    def holds_nothing(self) -> bool:
        """Whether nobody would miss a word."""
        return self._coordinator is None or not self._coordinator.is_missed

    def give_up(self) -> None:
        """From another thread, with the process about to end: release what is held, and say that it ended."""
        if open_run(self._run).give_up(self.identity, self._lease, note="grace exceeded"):
            _LOG.warning("the current batch did not finish in time; another worker takes over")

    def _work(self, plan: Plan, coordinator: Coordinator, heartbeat: Heartbeat) -> Ending:
        who = self.identity
        _LOG.debug("shardgen %s, worker %s, process %d on %s", __version__, who.id, who.pid, who.node)
        run, options, recipe = self._run, self._options, self._run.recipe(plan)
        folders, manifest = run.folders(options.folders), coordinator.manifest
        self._doing("checking the sources")
        checked = itertools.count(1)

        def on_file(_name: str, of: int) -> None:
            if self._audience is not None:
                self._audience.on_file(next(checked), of)
            self._start_up_step(heartbeat)

        try:
            recipe.check_sources(folders, on_file=on_file)
        except PlanConflict as error:
            if coordinator.may_plan_anew:
                error.hint = (
                    "check that these are the right folders (not swapped?); "
                    f"{error.hint}; or, since nothing is made yet, shardgen plan RUN_DIR accepts these"
                )
            raise
        station = Station(
            folders=folders,
            local=run.local,
            device=options.device,
            doing=self._doing,
            agreed=manifest.micro_batches,
        )
        maker = recipe.open_maker(station)
        manifest.workers.set_device(self.identity.id, maker.device_model)
        self._start_up_step(heartbeat)
        stages = Stages(
            recipe=recipe,
            maker=maker,
            store=coordinator.store,
            manifest=manifest,
            heartbeat=heartbeat,
            between=lambda _done: self._between(heartbeat),
            is_stopping=lambda: self.stop.is_set() or self._seconds_left() <= 0,
            on_step=self._on_step,
            threads=options.device.threads,
            retry=self._retry,
        )
        self._doing("ready")
        begin_batch = partial(self._begin_batch, heartbeat)
        with BatchMaker(stages) as batches, Pipeline(batches, begin_batch=begin_batch) as pipeline:
            suspect = SuspectMaker(batches, begin_batch=begin_batch)
            makers = _Makers(pipeline=pipeline, suspect=suspect)
            with self._lookout(plan, coordinator, heartbeat):
                ending = self._lease_and_make(coordinator, heartbeat, makers)
        if maker.last_words:
            _LOG.info(maker.last_words)
        return ending

    def _doing(self, what: str) -> None:
        """Show what takes long: to whoever watches, else as news."""
        if self._audience is None:
            _LOG.info(what)
        else:
            self._audience.doing(what)
            _LOG.debug(what)

    def _lookout(
        self, plan: Plan, coordinator: Coordinator, heartbeat: Heartbeat
    ) -> AbstractContextManager[object]:
        if self._audience is None:
            return nullcontext()
        return Lookout(self._run, plan, coordinator, self._audience, made=lambda: heartbeat.samples_done)

    def _start_up_step(self, heartbeat: Heartbeat) -> None:
        heartbeat.progress()
        if self.stop.is_set():
            raise Abandoned

    def _between(self, heartbeat: Heartbeat) -> None:
        """Between two micro-batches: show life, and stop when the grace is over or the slice is lost."""
        heartbeat.progress()
        heartbeat.check_lease()
        if self._abandon.is_set():
            raise Abandoned

    def _between_looks(self, heartbeat: Heartbeat) -> None:
        """Between two attempts at what may pass by itself."""
        self._between(heartbeat)
        heartbeat.waits("the manifest or a disk")

    def _lease_and_make(self, coordinator: Coordinator, heartbeat: Heartbeat, makers: _Makers) -> Ending:
        policy = self._run.settings.lease_policy
        while True:
            if not self._has_room_for_another(
                coordinator.seconds_for_another(heartbeat.slowest_batch_seconds)
            ):
                return Ending.LIMIT
            granted = self._retry(lambda: coordinator.lease(policy))
            if isinstance(granted, NoLease):
                if not granted.leased:
                    return Ending.BLOCKED if granted.blocked else Ending.FINISHED
                heartbeat.now_is(WorkerState.WAITING)
                if self.stop.wait(min(coordinator.seconds_to_ask_again(policy), self._seconds_left())):
                    return Ending.STOPPED
                continue
            self._lease = granted
            _LOG.debug("leased shard %d slice %d, fence %d", granted.shard, granted.slice, granted.fence)
            self._on_step(LeaseStep.GRANTED)
            heartbeat.holds(granted)
            if not self._make_slice(coordinator, heartbeat, makers):
                return Ending.STOPPED if self.stop.is_set() else Ending.LIMIT

    def _make_slice(self, coordinator: Coordinator, heartbeat: Heartbeat, makers: _Makers) -> bool:
        lease = self._lease
        if lease is None:
            raise RuntimeError("no slice is leased")
        try:
            complete = self._make_batches(lease, coordinator, heartbeat, makers)
        except LeaseLost as error:
            _LOG.warning("%s; leasing another", error)
            complete = True
        except (Abandoned, ShardgenError) as error:
            if isinstance(error, SliceFailed):
                self._fail(lease, coordinator, error)
            raise
        except Exception as error:
            failure = SliceFailed(
                f"shard {lease.shard} slice {lease.slice}: {error!r}",
                hint="report the traceback above",
            )
            _LOG.error("%s", "".join(traceback.format_exception(error)).rstrip())
            self._fail(lease, coordinator, failure)
            raise failure from error
        if complete:
            self._retry(lambda: coordinator.release(lease))
            _LOG.debug("made shard %d slice %d", lease.shard, lease.slice)
            self._lease = None
            self._on_step(LeaseStep.FINISHED)
        heartbeat.holds(self._lease)
        return complete

    def _make_batches(
        self, lease: Lease, coordinator: Coordinator, heartbeat: Heartbeat, makers: _Makers
    ) -> bool:
        """Make a slice portion by portion; False when stopped before all were made."""
        is_made = True
        while is_made:
            batches = self._retry(
                lambda: coordinator.portion(lease, batch_seconds=heartbeat.mean_batch_seconds)
            )
            if not batches:
                return True
            suspicion = self._retry(lambda: coordinator.manifest.suspicion.read(lease))
            if suspicion.is_suspect:
                heartbeat.now_is(WorkerState.SUSPECT)
                is_made = makers.suspect.make(lease, batches, suspicion)
            else:
                heartbeat.now_is(WorkerState.WORKING)
                is_made = makers.pipeline.make(lease, batches)
        return False

    def _fail(self, lease: Lease, coordinator: Coordinator, error: SliceFailed) -> None:
        """Give the slice back as failed: that is no clean release, or it would fail for ever."""
        with contextlib.suppress(LeaseLost):
            failure, policy = f"worker {self.identity.id}: {error}", self._run.settings.lease_policy
            if self._retry(lambda: coordinator.manifest.leases.fail(lease, failure, policy)):
                _LOG.warning("shard %d slice %d is blocked", lease.shard, lease.slice)
        self._lease = None

    def _begin_batch(self, heartbeat: Heartbeat) -> bool:
        """Count one more batch into the network; False, counting none, when there is no room for it."""
        if self.stop.is_set() or not self._has_room_for_another(heartbeat.slowest_batch_seconds):
            return False
        self._batches_started += 1
        return True

    def _has_room_for_another(self, seconds: float) -> bool:
        limits = self._options.limits
        if limits.max_batches is not None and self._batches_started >= limits.max_batches:
            return False
        return self._seconds_left() > seconds and not self.stop.is_set()

    def _seconds_left(self) -> float:
        deadline = self._options.limits.deadline_seconds
        return math.inf if deadline is None else max(0.0, deadline - (time.monotonic() - self._started))

    def _release(self, coordinator: Coordinator, heartbeat: Heartbeat) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        # Whatever ends the worker, an end of the grace included, must not keep it from this.
        if self._retry(lambda: coordinator.release(lease), between=heartbeat.progress):
            self._on_step(LeaseStep.RELEASED)


def work(
    run: RunDirectory,
    options: WorkerOptions,
    *,
    on_step: OnStep = ignore_step,
    end_process: Callable[[int], None] = os._exit,
) -> WorkOutcome:
    """Be a worker in this process, whose main thread must call this; see `Worker`.

    SIGINT, SIGTERM and SIGHUP drop the composed batch and finish the one in the network and the one being
    published within the grace; past it their work is dropped and the slice released all the same.
    """
    faulthandler.enable()  # a crash in a library shows where it was called from
    worker = Worker(run, options, on_step=on_step)
    worker.stop.install()
    results: list[WorkOutcome] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(worker.work())
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, raised there
            errors.append(error)

    thread = threading.Thread(target=body, name="worker", daemon=True)
    thread.start()
    while thread.is_alive() and not worker.stop.is_set():
        thread.join(_TICK_SECONDS)
        worker.stop.notice_lost_parent()
    if thread.is_alive():
        _wait_for_end(worker, thread, options.limits.grace_seconds)
    if thread.is_alive():
        with contextlib.suppress(ShardgenError):
            worker.give_up()
        end_process(128 + (worker.stop.signal_number or signal.SIGTERM))
    if errors:
        raise errors[0]
    return results[0]


def _wait_for_end(worker: Worker, thread: threading.Thread, grace: float) -> None:
    if worker.holds_nothing:
        thread.join(_TICK_SECONDS)  # imports and tracing cannot be interrupted, and nothing is lost with them
        if worker.holds_nothing:
            return
    _LOG.info("stopping: finishing what is in the network, %g s at most (again to stop at once)", grace)
    thread.join(grace)
    if thread.is_alive():
        # The network cannot be interrupted inside one micro-batch; a moment more lets it notice.
        worker.abandon()
        thread.join(max(5.0, grace / 5))

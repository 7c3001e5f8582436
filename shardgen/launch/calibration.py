"""Measure what a worker would make on this machine: the real parts, on a record that is thrown away."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardgen.coordination.base import Coordinator, Seat
from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import LeasePolicy, NoLease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance
from shardgen.domain.steps import BatchStep, Step
from shardgen.domain.wording import Say
from shardgen.domain.worker import WorkerState
from shardgen.errors import RunIncomplete, SampleError
from shardgen.launch.allocation import Wanted, choose_gpus, settle_workers
from shardgen.machine.cores import usable_cores
from shardgen.machine.processes import new_identity
from shardgen.manifest.manifest import create_manifest
from shardgen.manifest.port import MicroBatches
from shardgen.recipes.base import (
    BatchSizes,
    Between,
    DeviceChoice,
    Encoded,
    Folders,
    Maker,
    Station,
    given_threads,
)
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.batch import BatchMaker, Stages
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.pipeline import Pipeline

_SECONDS = 10.0  # to work at least
_BATCHES = 2  # to make at least
_PROBES = 256  # samples whose bytes are counted at most; a batch of them at least
_PROBING_SECONDS = 3.0  # after which no more of them are made
_POLICY = LeasePolicy(  # nobody renews these leases, and nobody else wants them
    duration=timedelta(days=1), heartbeat=timedelta(hours=1), stall=timedelta(days=1), max_attempts=6
)

OnMade = Callable[[int], None]
"""Called with the number of samples made since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """A mean, and by how much it may be wrong: two standard errors, as a share of it; 0.0: not known."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimated:
        """Of values that vary by themselves."""
        mean = statistics.fmean(values)
        if len(values) < 2 or not mean:
            return cls(mean=mean, spread=0.0)
        return cls(mean=mean, spread=2 * statistics.stdev(values) / len(values) ** 0.5 / mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one worker makes here, and of how much that was found.

    `rate` is in samples per second over whole slices. `outputs` are bytes of a sample's files by output,
    `sample_bytes` those of all of them together, found of so many `samples`; `beside_bytes` is what an
    artifact has for each sample beside them. `micro_batch` is 0 where nothing is computed, `threads` 0 for
    the libraries' own choice.
    """

    device_model: str
    threads: int
    micro_batch: int
    rate: Estimated
    batches: int
    seconds: float
    outputs: Mapping[str, float]
    sample_bytes: Estimated
    beside_bytes: float
    samples: int


def calibrate(  # noqa: PLR0913 - what to make of what, where, and who hears of it
    run: RunDirectory,
    plan: Plan,
    folders: Folders,
    scratch: Path,
    *,
    say: Say,
    on_made: OnMade = lambda _samples: None,
) -> Calibration:
    """Make some batches as the only worker of this machine would, into an empty folder, `scratch`.

    Nothing of the run is changed. First come samples spread over the plan, which nobody times: they tell the
    bytes, and pay for what only the first batch costs. Then come slices, spread over the plan, too. Raises
    what a worker would, and RunIncomplete when no sample can be made.
    """
    wanted = Wanted(workers=1, threads_per_worker=given_threads())
    recipe = run.recipe(plan)
    recipe.load()
    with _sizes_of(run, plan) as sizes:
        share = settle_workers(run, plan, wanted, choose_gpus(wanted), say=say, agreed=sizes)[0]
        choice = DeviceChoice(device=share.device, threads=share.threads)
        station = Station(folders=folders, local=run.local, device=choice, agreed=sizes)
        maker = _Elsewhere(recipe.open_maker(station), on_made)
        clock = _Clock()
        settings = run.settings.in_run_directory()
        trial = RunDirectory(path=scratch, settings=settings, plan_file=plan, is_current=True)
        create_manifest(trial.database, plan)
        seat = Seat(identity=new_identity("calibration"))
        with open_run(trial).coordinator(seat) as coordinator:
            coordinator.join(lambda _what: None)
            stages = Stages(
                recipe=recipe,
                maker=maker,
                store=coordinator.store,
                manifest=coordinator.manifest,
                heartbeat=Heartbeat(coordinator, settings.lease_policy),
                between=lambda _done: None,
                on_step=clock.note,
                threads=choice.threads,
            )
            with BatchMaker(stages) as batches:
                probed = _probe(batches, maker)
                _make_slices(batches, maker, coordinator, clock)
            artifacts = sum(one.artifact.size_bytes for one in coordinator.manifest.receipts.receipts())
        made = len(maker.sizes)
        return Calibration(
            device_model=maker.device_model,
            threads=share.threads,
            micro_batch=maker.provenance().micro_batch or 0,
            rate=clock.rate(plan),
            batches=clock.batches,
            seconds=clock.seconds,
            outputs={
                output.name: statistics.fmean(one[output.name] for one in probed) for output in plan.outputs
            },
            sample_bytes=Estimated.of([_total(one) for one in probed]),
            beside_bytes=max(0.0, artifacts - sum(map(_total, maker.sizes))) / max(1, made),
            samples=len(probed),
        )


def _probe(batches: BatchMaker, maker: _Elsewhere) -> list[Mapping[str, int]]:
    """Make samples that cover the plan, a batch at least; the bytes of each, by output."""
    recipe, began = batches.stages.recipe, time.monotonic()
    covering = recipe.to_look_at(_PROBES)
    place = recipe.plan.layout.batch_samples(BatchIndex(0))
    threads = batches.stages.threads or usable_cores()
    with ThreadPoolExecutor(threads, "encode") as pool:
        for start in range(0, len(covering), len(place)):
            maker.let(place, be=covering[start : start + len(place)])
            computed = batches.compute(batches.prepare(BatchIndex(0)))
            both = zip(place, computed.prepared.samples, computed.results, strict=True)
            list(pool.map(lambda parts: _encode(maker, *parts), both))
            if time.monotonic() - began > _PROBING_SECONDS:
                break
    found = list(maker.sizes)
    maker.sizes.clear()
    if not found:
        raise RunIncomplete(
            "no sample could be made, so there is nothing to measure",
            hint="shardgen preview RUN_DIR says why",
        )
    return found


def _encode(maker: _Elsewhere, sample: int, prepared: Any, computed: Any) -> None:
    if not isinstance(prepared, SampleError) and not isinstance(computed, SampleError):
        with suppress(SampleError):
            maker.encode(SampleIndex(sample), prepared, computed)


def _make_slices(batches: BatchMaker, maker: _Elsewhere, coordinator: Coordinator, clock: _Clock) -> None:
    """Make slice after slice as a worker does, each in the place of one elsewhere in the plan."""
    layout, heartbeat = batches.stages.plan.layout, batches.stages.heartbeat
    with Pipeline(batches, begin_batch=clock.may_begin) as pipeline:
        for fraction in _spread_fractions():
            if not clock.may_begin():
                return
            clock.begin_slice()
            lease = coordinator.lease(_POLICY)
            if isinstance(lease, NoLease):
                return
            heartbeat.now_is(WorkerState.WORKING)
            asked = coordinator.portion(lease, batch_seconds=0.0)
            first = int(fraction * layout.batch_count)
            for number, batch in enumerate(asked, first):
                other = BatchIndex(number % layout.batch_count)
                maker.let(layout.batch_samples(batch), be=layout.batch_samples(other))
            pipeline.make(lease, asked)
            coordinator.release(lease)
            clock.end_slice()


def _spread_fractions() -> Iterator[float]:
    """1/2, 1/4, 3/4, 1/8, 5/8, 3/8, …: spread over 0 to 1, wherever one stops."""
    number = 1
    while True:
        yield int(f"{number:b}"[::-1], 2) / (1 << number.bit_length())
        number += 1


class _Clock:
    """When the batches of each slice were computed; how long a slice takes beside that."""

    def __init__(self) -> None:
        self.batches = 0
        self.seconds = 0.0
        self._began: float | None = None
        self._marks: list[float] = []
        self._intervals: list[float] = []
        self._beside: list[float] = []

    def begin_slice(self) -> None:
        """A slice is about to be leased."""
        self._began, self._marks = time.monotonic(), []

    def note(self, step: Step) -> None:
        """The first batch of a slice is prepared, or another computed; from any thread."""
        if step is BatchStep.COMPUTED or (step is BatchStep.PREPARED and not self._marks):
            self._marks.append(time.monotonic())

    def may_begin(self) -> bool:
        """Whether what was made is too little to tell."""
        made = self.batches + max(0, len(self._marks) - 1)
        seconds = self.seconds + (0.0 if self._began is None else time.monotonic() - self._began)
        return made < _BATCHES or seconds < _SECONDS

    def end_slice(self) -> None:
        """All of it is recorded, and it is given back."""
        took = time.monotonic() - (self._began or 0.0)
        intervals = [after - before for before, after in pairwise(self._marks)]
        self._intervals += intervals
        self._beside.append(took - sum(intervals))
        self.batches += len(intervals)
        self.seconds += took
        self._began, self._marks = None, []

    def rate(self, plan: Plan) -> Estimated:
        """Samples per second of slices as long as the plan's."""
        batch = Estimated.of(self._intervals)
        in_slice = min(plan.shards.slice_batches, plan.layout.batch_count)
        samples = in_slice * plan.samples / plan.layout.batch_count
        seconds = statistics.fmean(self._beside) + in_slice * batch.mean
        return Estimated(mean=samples / seconds, spread=batch.spread)


class _Sizes:
    """What a run's workers have agreed on to compute at once; nothing is added to it."""

    def __init__(self, agreed: MicroBatches | None) -> None:
        self._agreed = agreed
        self._proposed: dict[str, int] = {}

    def agreed(self, device_model: str, proposed: int) -> int:
        """As the first worker would have it, where there was none."""
        found = None if self._agreed is None else self._agreed.settled(device_model)
        return found or self._proposed.setdefault(device_model, proposed)

    def shrunk(self, device_model: str) -> int | None:
        """As the run remembers it."""
        return None if self._agreed is None else self._agreed.shrunk(device_model)

    def shrink(self, device_model: str, micro_batch: int) -> None:
        """Nobody else is to know."""
        self._proposed[device_model] = micro_batch


@contextmanager
def _sizes_of(run: RunDirectory, plan: Plan) -> Iterator[BatchSizes]:
    if run.manifest_elsewhere is None and not run.database.backend.is_there():
        yield _Sizes(None)  # of a shared folder that no worker has joined from this machine
        return
    with run.manifest(plan, read_only=True) as manifest:
        yield _Sizes(manifest.micro_batches)


def _total(sizes: Mapping[str, int]) -> int:
    return sum(sizes.values())


class _Elsewhere(Maker[Any, Any]):
    """The recipe's maker, but it makes other samples in the place of those that it is asked for."""

    def __init__(self, maker: Maker[Any, Any], on_made: OnMade) -> None:
        self._maker = maker
        self._on_made = on_made
        self._lock = threading.Lock()
        self._instead: dict[int, SampleIndex] = {}
        self.sizes: list[Mapping[str, int]] = []

    def let(self, asked: range, be: Sequence[int]) -> None:
        """Make those samples from now on when it is asked for these; over again where they are fewer."""
        for row, sample in enumerate(asked):
            self._instead[sample] = SampleIndex(be[row % len(be)])

    def prepare(self, sample: SampleIndex) -> Any:
        """Of the other sample."""
        return self._maker.prepare(self._instead.get(sample, sample))

    def begin(self, batch: Sequence[Any]) -> object | None:
        """As it is."""
        return self._maker.begin(batch)

    def compute(
        self, batch: Sequence[Any], *, between: Between, begun: object | None = None
    ) -> Sequence[Any]:
        """As it is."""
        return self._maker.compute(batch, between=between, begun=begun)

    def encode(self, sample: SampleIndex, prepared: Any, computed: Any) -> Encoded:
        """Of the other sample; its bytes are noted."""
        encoded = self._maker.encode(self._instead.get(sample, sample), prepared, computed)
        with self._lock:
            self.sizes.append({name: len(data) for name, data in encoded.files.items()})
            self._on_made(1)
        return encoded

    def check(self) -> None:
        """As it is."""
        self._maker.check()

    def provenance(self) -> Provenance:
        """As it is."""
        return self._maker.provenance()

    @property
    def device_model(self) -> str:
        """As it is."""
        return self._maker.device_model

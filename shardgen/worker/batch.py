"""The stages of a batch: prepared, computed, encoded; one bad sample costs one sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

from shardgen.artifacts.store import ArtifactStore
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance
from shardgen.domain.steps import BatchStep, OnStep, ignore_step
from shardgen.errors import (
    ComposeFailed,
    ComputeFailed,
    DeviceBroken,
    EncodeFailed,
    SampleError,
    ShardgenError,
    SliceFailed,
)
from shardgen.machine.cores import usable_cores
from shardgen.manifest.port import Manifest
from shardgen.recipes.base import Maker, Recipe
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.publish import BatchStore, Made, MadeBatch
from shardgen.worker.retry import Retry

_MAX_PREPARING = 8  # threads; copying arrays saturates memory sooner than more cores help
_TURNS = 4  # that each thread takes of a batch: fewer end unevenly, and every one costs, too


class Abandoned(Exception):
    """Raised inside the device's batch when the worker must not finish it; nothing is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What a batch goes through, and where it ends.

    `threads` for preparing (8 at most) and for encoding; 0: as many as there are cores.
    """

    recipe: Recipe
    maker: Maker[Any, Any]
    store: ArtifactStore
    manifest: Manifest
    heartbeat: Heartbeat
    between: Callable[[int], None]
    is_stopping: Callable[[], bool] = lambda: False
    on_step: OnStep = ignore_step
    threads: int = 0
    retry: Retry = field(default_factory=lambda: Retry(limit_seconds=0))

    @property
    def plan(self) -> Plan:
        """The plan of the recipe."""
        return self.recipe.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch before the device: what it takes of each sample; `began` is a monotonic instant."""

    batch: BatchIndex
    samples: Sequence[Any | SampleError]
    began: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A batch behind the device, with what it gave for each sample."""

    prepared: Prepared
    results: Sequence[Any | SampleError]
    provenance: Provenance


class BatchMaker:
    """The stages of a batch, one call each; who overlaps them is the caller's business.

    Use it as a context manager. `begin`, `compute` and `make_alone` are called from one thread, `prepare` and
    `finish` may be called from another each.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self._maker = stages.maker
        self._store = BatchStore(stages.plan, stages.store, stages.manifest.receipts, stages.retry)
        self._threads = threads = stages.threads or usable_cores()
        self._preparing = ThreadPoolExecutor(min(_MAX_PREPARING, threads), "prepare-sample")
        self._encoding = ThreadPoolExecutor(threads, "encode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._preparing, self._encoding):
            pool.shutdown(wait=True, cancel_futures=True)

    def prepare(self, batch: BatchIndex) -> Prepared:
        """Prepare the samples of a batch."""
        began = time.monotonic()
        wanted = [SampleIndex(sample) for sample in self.stages.plan.layout.batch_samples(batch)]
        samples = self.stages.retry(lambda: self._in_turns(self._preparing, self._prepared, wanted))
        self._passed(BatchStep.PREPARED)
        return Prepared(batch=batch, samples=samples, began=began)

    def begin(self, prepared: Prepared) -> object | None:
        """Put a batch on the device's queue; `compute` takes what this gives. None: it has no queue."""
        return self._maker.begin([None if isinstance(one, SampleError) else one for one in prepared.samples])

    def compute(self, prepared: Prepared, begun: object | None = None) -> Computed:
        """Run the device on a batch, or wait for what was begun.

        Raises SliceFailed when it raises for every sample, DeviceBroken when it does so for others, too.
        """
        results: list[Any | SampleError] = list(prepared.samples)
        alive = [row for row, sample in enumerate(prepared.samples) if not isinstance(sample, SampleError)]
        if alive:
            found = self._bisect(prepared.samples, alive, begun)
            self._blame_no_sample(prepared.batch, list(found.values()))
            for row, result in found.items():
                results[row] = result
        self._passed(BatchStep.COMPUTED)
        return Computed(prepared=prepared, results=results, provenance=self.provenance())

    def finish(self, lease: Lease, computed: Computed) -> None:
        """Encode, publish, record; when it returns the batch is durable."""
        prepared = computed.prepared
        numbers = map(SampleIndex, self.stages.plan.layout.batch_samples(prepared.batch))
        samples = self._in_turns(self._encoding, self._encoded, numbers, prepared.samples, computed.results)
        self._passed(BatchStep.ENCODED)
        self.keep(
            lease,
            MadeBatch(batch=prepared.batch, samples=samples, provenance=computed.provenance),
            seconds=time.monotonic() - prepared.began,
        )

    def keep(self, lease: Lease, made: MadeBatch, *, seconds: float) -> None:
        """Publish and record a batch; `seconds` is how long the heartbeat may think that a batch takes."""
        self._store.keep(lease, made, on_step=self.stages.on_step)
        self.stages.heartbeat.batch_recorded(len(made.samples), seconds=seconds)
        self.stages.on_step(BatchStep.RECORDED)

    def make_alone(self, sample: SampleIndex) -> Made:
        """Make one sample as if no other of its batch could be made.

        So its bytes are those that it has among its neighbours.
        """
        prepared = self.stages.retry(lambda: self._prepared(sample))
        if isinstance(prepared, SampleError):
            return prepared
        samples = self.stages.plan.layout.batch_samples(self.stages.plan.layout.batch_of_sample(sample))
        row = sample - samples.start
        batch: list[Any] = [None] * len(samples)
        batch[row] = prepared
        return self._encoded(sample, prepared, self._bisect(batch, [row])[row])

    def refuse_if_device_is_broken(self, batch: BatchIndex, made: Sequence[Made]) -> None:
        """Raise as `compute` does when the device raised for every sample that got to it."""
        self._blame_no_sample(batch, [one for one in made if not _never_reached_device(one)])

    def provenance(self) -> Provenance:
        """What makes batches now."""
        return self.stages.retry(self._maker.provenance)

    def _passed(self, step: BatchStep) -> None:
        self.stages.heartbeat.progress()
        self.stages.on_step(step)

    def _in_turns(
        self, pool: ThreadPoolExecutor, make: Callable[..., Any], *of_each: Iterable[Any]
    ) -> list[Any]:
        """Make all samples in the pool's threads, in order, a few at a turn."""
        each = list(zip(*of_each, strict=True))
        few = max(1, len(each) // (_TURNS * self._threads))
        turns = [each[start : start + few] for start in range(0, len(each), few)]
        return list(chain.from_iterable(pool.map(lambda turn: [make(*one) for one in turn], turns)))

    def _prepared(self, sample: SampleIndex) -> Any | SampleError:
        try:
            return self._maker.prepare(sample)
        except SampleError as error:
            return error
        except (ShardgenError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            return _explained(ComposeFailed(f"sample {sample}: preparing raised {error!r}"), error)

    def _bisect(
        self, batch: Sequence[Any], rows: Sequence[int], begun: object | None = None
    ) -> dict[int, Any | SampleError]:
        """Compute these rows; an exception is halved down to the sample that raises it."""
        chosen: list[Any] = [None] * len(batch)
        for row in rows:
            chosen[row] = batch[row]
        try:
            results = self._maker.compute(chosen, between=self.stages.between, begun=begun)
        except (ShardgenError, Abandoned, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            if len(rows) == 1:
                return {rows[0]: _explained(ComputeFailed(f"computing raised {error!r}"), error)}
            half = len(rows) // 2
            return self._bisect(batch, rows[:half]) | self._bisect(batch, rows[half:])
        return {row: results[row] for row in rows}

    def _blame_no_sample(self, batch: BatchIndex, found: Sequence[object]) -> None:
        """When computing raised for every sample, it is the device's fault, or the slice's.

        Of a single sample its word is not enough: then it must compute an empty input. A sample that shares
        nothing with them tells the device from the slice.
        """
        causes = [result.__cause__ for result in found if isinstance(result, ComputeFailed)]
        if not causes or len(causes) < len(found) or None in causes:
            return
        cause = causes[0]
        if len(found) == 1:
            try:
                self._maker.check()
            except (ShardgenError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
                cause = error
            else:
                return
        first = SampleIndex(self.stages.plan.layout.batch_samples(batch).start)
        other = self.make_alone(self.stages.recipe.stranger_to(first))
        if isinstance(other, ComputeFailed) and other.__cause__ is not None:
            raise DeviceBroken(
                f"{self._maker.device_model}: computing fails for every input: {cause!r}",
                hint="shardgen doctor RUN_DIR checks the device; check its driver, or try --device cpu",
            ) from cause
        raise SliceFailed(
            f"computing failed for every sample of a batch, the last time with {cause!r}",
            hint="shardgen doctor RUN_DIR checks the device; restart the worker, or try --device cpu",
        ) from cause

    def _encoded(self, sample: SampleIndex, prepared: Any | SampleError, computed: Any | SampleError) -> Made:
        if isinstance(prepared, SampleError):
            return prepared
        if isinstance(computed, SampleError):
            return computed
        try:
            return self._maker.encode(sample, prepared, computed)
        except SampleError as error:
            return error
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            return _explained(EncodeFailed(f"encoding raised {error!r}"), error)


def _never_reached_device(made: Made) -> bool:
    return isinstance(made, SampleError) and not isinstance(made, ComputeFailed | EncodeFailed)


def _explained(error: SampleError, cause: BaseException) -> SampleError:
    error.__cause__ = cause
    return error

"""The stages of a batch: composed, estimated, encoded; one bad sample costs one sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.store import ArtifactStore
from shardgen.depth.estimator import DepthEstimator
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance
from shardgen.domain.steps import BatchStep, OnStep, ignore_step
from shardgen.domain.wording import Say
from shardgen.errors import DepthNotFinite, EncodeFailed, SampleError, ShardgenError, SliceFailed
from shardgen.imaging.codec import OPENCV_VERSION
from shardgen.imaging.outputs import encode_sample
from shardgen.machine.cores import usable_cores
from shardgen.manifest.manifest import Manifest
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.recipes.composites.network import remember_shrinking
from shardgen.worker.heartbeat import Heartbeat
from shardgen.worker.publish import BatchStore, Made, MadeBatch
from shardgen.worker.retry import Retry

DepthMap = NDArray[np.float32]


class Abandoned(Exception):
    """Raised inside the network's batch when the worker must not finish it; nothing of it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What a batch goes through, and where it ends; `threads` for encoding, 0: as many as there are cores."""

    plan: Plan
    composer: Composer
    estimator: DepthEstimator
    store: ArtifactStore
    manifest: Manifest
    heartbeat: Heartbeat
    between: Callable[[int], None]
    say: Say
    is_stopping: Callable[[], bool] = lambda: False
    on_step: OnStep = ignore_step
    threads: int = 0
    retry: Retry = field(default_factory=lambda: Retry(limit_seconds=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A batch before the network; `began` is a monotonic instant."""

    batch: BatchIndex
    samples: Sequence[ComposedSample | SampleError]
    began: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """A batch behind the network, with the depth of each sample: float32 (h, w)."""

    composed: Composed
    depths: Sequence[DepthMap | SampleError]
    provenance: Provenance


class BatchMaker:
    """The stages of a batch, one call each; who overlaps them is the caller's business.

    Use it as a context manager. `estimate` and `make_alone` are called from one thread, `compose` and
    `finish` may be called from another each.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self._store = BatchStore(stages.plan, stages.store, stages.manifest.receipts, stages.retry)
        self._micro_batch = stages.estimator.micro_batch
        self._encoders = ThreadPoolExecutor(stages.threads or usable_cores(), "encode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoders.shutdown(wait=True, cancel_futures=True)

    def compose(self, batch: BatchIndex) -> Composed:
        """Make the composites of a batch."""
        began = time.monotonic()
        wanted = [SampleIndex(sample) for sample in self.stages.plan.layout.batch_samples(batch)]
        samples = self.stages.retry(lambda: self.stages.composer.compose_batch(wanted))
        self._passed(BatchStep.COMPOSED)
        return Composed(batch=batch, samples=samples, began=began)

    def estimate(self, composed: Composed) -> Estimated:
        """Run the network on a batch. Raises SliceFailed when it raises for every sample."""
        # A sample without a composite keeps its position, black: the others' floats must not depend on it.
        images = self._black(len(composed.samples))
        results: list[DepthMap | SampleError] = []
        alive = []
        for position, sample in enumerate(composed.samples):
            if isinstance(sample, SampleError):
                results.append(sample)
            else:
                images[position] = sample.network_input
                results.append(DepthNotFinite("the network gave nothing"))
                alive.append(position)
        if alive:
            found = self._bisect(images, alive)
            self._blame_no_sample(list(found.values()))
            for position, result in found.items():
                results[position] = result
        self._passed(BatchStep.ESTIMATED)
        return Estimated(composed=composed, depths=results, provenance=self.provenance())

    def finish(self, lease: Lease, estimated: Estimated) -> None:
        """Encode, publish, record; when it returns the batch is durable."""
        composed = estimated.composed
        samples = list(self._encoders.map(self._encode, composed.samples, estimated.depths))
        self._passed(BatchStep.ENCODED)
        self.keep(
            lease,
            MadeBatch(batch=composed.batch, samples=samples, provenance=estimated.provenance),
            seconds=time.monotonic() - composed.began,
        )

    def keep(self, lease: Lease, made: MadeBatch, *, seconds: float) -> None:
        """Publish and record a batch; `seconds` is how long the heartbeat may think that a batch takes."""
        self._store.keep(lease, made, on_step=self.stages.on_step)
        self.stages.heartbeat.batch_recorded(len(made.samples), seconds=seconds)
        self.stages.on_step(BatchStep.RECORDED)

    def make_alone(self, sample: SampleIndex) -> Made:
        """Make one sample with nothing else in the network, at its own position of its own micro-batch.

        So its bytes are those that it has among its neighbours.
        """
        try:
            composed = self.stages.retry(lambda: self.stages.composer.compose(sample))
        except SampleError as error:
            return error
        layout, micro_batch = self.stages.plan.layout, self.stages.estimator.micro_batch
        samples = layout.batch_samples(layout.batch_of_sample(sample))
        start, position = divmod(sample - samples.start, micro_batch)
        images = self._black(min(micro_batch, len(samples) - start * micro_batch))
        images[position] = composed.network_input
        return self._encode(composed, self._bisect(images, [position])[position])

    def refuse_if_network_is_broken(self, made: Sequence[Made]) -> None:
        """Raise SliceFailed when the network raised for every sample that got to it."""
        self._blame_no_sample([one for one in made if not _never_reached_network(one)])

    def provenance(self) -> Provenance:
        """What makes batches; a micro-batch that has become smaller is remembered for all workers."""
        stages = self.stages
        estimator, now = stages.estimator, stages.estimator.micro_batch
        stages.retry(
            lambda: remember_shrinking(
                estimator, self._micro_batch, stages.manifest.micro_batches, say=stages.say
            )
        )
        self._micro_batch = now
        return Provenance(
            device_model=estimator.device_model,
            tensorflow=estimator.tensorflow_version,
            opencv=OPENCV_VERSION,
            precision=stages.plan.depth.precision.value,
            micro_batch=now,
        )

    def _passed(self, step: BatchStep) -> None:
        self.stages.heartbeat.progress()
        self.stages.on_step(step)

    def _black(self, count: int) -> NDArray[np.uint8]:
        width, height = self.stages.plan.depth.input
        return np.zeros((count, height, width, 3), np.uint8)

    def _bisect(
        self, images: NDArray[np.uint8], positions: Sequence[int]
    ) -> dict[int, DepthMap | SampleError]:
        """Run the network; an exception is halved down to the sample that raises it."""
        chosen = images
        if len(positions) < len(images):
            chosen = np.zeros_like(images)
            chosen[positions] = images[positions]
        try:
            depth = self.stages.estimator.estimate(chosen, between=self.stages.between)
        except (ShardgenError, Abandoned, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            if len(positions) == 1:
                return {positions[0]: _explained(DepthNotFinite(f"the network raised {error!r}"), error)}
            half = len(positions) // 2
            return self._bisect(images, positions[:half]) | self._bisect(images, positions[half:])
        return {
            position: DepthNotFinite("the network's output holds NaN or infinity, in float32 too")
            if depth.non_finite[position]
            else depth.relative[position]
            for position in positions
        }

    def _blame_no_sample(self, found: Sequence[object]) -> None:
        """When the network raised for every sample, it is the network's fault.

        Of a single sample its word is not enough: then the network must take a black image.
        """
        causes = [result.__cause__ for result in found if isinstance(result, DepthNotFinite)]
        if not causes or len(causes) < len(found) or None in causes:
            return
        cause = causes[0]
        if len(found) == 1:
            try:
                self.stages.estimator.estimate(self._black(1))
            except (ShardgenError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever the network raises is the finding
                cause = error
            else:
                return
        raise SliceFailed(
            f"the network raised for every sample of a batch, the last time {cause!r}",
            hint="shardgen doctor RUN_DIR looks at the device; restart the worker, or try --device cpu",
        ) from cause

    def _encode(self, sample: ComposedSample | SampleError, depth: DepthMap | SampleError) -> Made:
        if isinstance(sample, SampleError):
            return sample
        if isinstance(depth, SampleError):
            return depth
        plan = self.stages.plan
        try:
            return encode_sample(sample.canvas, depth, plan.output, plan.depth.encoding)
        except SampleError as error:
            return error
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            return _explained(EncodeFailed(f"encoding raised {error!r}"), error)


def _never_reached_network(made: Made) -> bool:
    return isinstance(made, SampleError) and not isinstance(made, DepthNotFinite | EncodeFailed)


def _explained(error: SampleError, cause: BaseException) -> SampleError:
    error.__cause__ = cause
    return error

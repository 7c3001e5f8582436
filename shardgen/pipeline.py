"""A slice's batches on their way: composed, estimated, encoded, published and recorded, three at a time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.archive import ArtifactHeader, BatchContent, build_artifact
from shardgen.artifacts.names import ArtifactName, random_part
from shardgen.artifacts.store import ArtifactStore
from shardgen.composing import ComposedSample, Composer
from shardgen.depth.estimator import DepthEstimator
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import DeadLetter, ImageKind, Provenance, Receipt, total_sums
from shardgen.domain.sample import member_name, output_format
from shardgen.domain.steps import BatchStep, OnStep, ignore_step
from shardgen.errors import DepthNotFinite, EncodeFailed, ManifestBusy, SampleError, ShardgenError
from shardgen.heartbeat import Heartbeat, Say
from shardgen.imaging.codec import OPENCV_VERSION
from shardgen.imaging.outputs import EncodedSample, encode_sample
from shardgen.manifest.manifest import Manifest

DepthMap = NDArray[np.float32]
_RECORD_TRIES = 5  # of 30 s each: longer than that, and the slice had better be given back


class Abandoned(Exception):
    """Raised inside the network's batch when the worker must not finish it; nothing of it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What a batch goes through, and where it ends."""

    plan: Plan
    composer: Composer
    estimator: DepthEstimator
    store: ArtifactStore
    manifest: Manifest
    heartbeat: Heartbeat
    between: Callable[[int], None]
    say: Say
    on_step: OnStep = ignore_step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Composed:
    batch: BatchIndex
    samples: Sequence[ComposedSample | SampleError]
    began: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimated:
    composed: _Composed
    depths: list[DepthMap | SampleError]
    micro_batch: int


class Pipeline:
    """Batch k+1 is being composed while k is in the network and k-1 is encoded, published and recorded.

    At most two batches have been through the network without a receipt, and one is composed: the loss bound.
    Use it as a context manager; `make` is called from one thread.
    """

    def __init__(self, stages: Stages, *, may_start: Callable[[], bool]) -> None:
        self._stages = stages
        self._may_start = may_start
        self._micro_batch = stages.estimator.micro_batch
        self._composing = ThreadPoolExecutor(1, "compose")
        self._finishing = ThreadPoolExecutor(1, "finish")
        self._encoders = ThreadPoolExecutor(thread_name_prefix="encode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._composing, self._finishing, self._encoders):
            pool.shutdown(wait=True, cancel_futures=True)

    def make(self, lease: Lease, batches: Sequence[BatchIndex]) -> bool:
        """Make these batches of the leased slice, in order; False when stopped before all were made.

        Raises LeaseLost, or whatever is no single sample's fault.
        """
        finishing: Future[None] | None = None
        composing = self._composing.submit(self._compose, batches[0])
        complete = True
        for following in range(1, len(batches) + 1):
            if not self._may_start():
                complete = False
                break
            self._stages.heartbeat.check_lease()
            composed = composing.result()
            if following < len(batches):
                composing = self._composing.submit(self._compose, batches[following])
            depths, micro_batch = self._estimate(composed), self._noted_micro_batch()
            if finishing is not None:
                finishing.result()
            finishing = self._finishing.submit(
                self._finish, lease, _Estimated(composed=composed, depths=depths, micro_batch=micro_batch)
            )
        if finishing is not None:
            finishing.result()
        return complete

    def _compose(self, batch: BatchIndex) -> _Composed:
        began = time.monotonic()
        samples = self._stages.composer.compose_batch(
            [SampleIndex(sample) for sample in self._stages.plan.layout.batch_samples(batch)]
        )
        self._passed(BatchStep.COMPOSED)
        return _Composed(batch=batch, samples=samples, began=began)

    def _passed(self, step: BatchStep) -> None:
        self._stages.heartbeat.progress()
        self._stages.on_step(step)

    def _estimate(self, composed: _Composed) -> list[DepthMap | SampleError]:
        """The relative depth of each sample, float32 (h, w), or why there is none."""
        width, height = self._stages.plan.depth.input
        # A sample without a composite keeps its place, black: the others' floats must not depend on it.
        images = np.zeros((len(composed.samples), height, width, 3), np.uint8)
        results: list[DepthMap | SampleError] = []
        alive = []
        for place, sample in enumerate(composed.samples):
            if isinstance(sample, SampleError):
                results.append(sample)
            else:
                images[place] = sample.network_input
                results.append(DepthNotFinite("the network gave nothing"))
                alive.append(place)
        if alive:
            found = self._bisect(images, alive)
            if len(alive) > 1 and not any(isinstance(result, np.ndarray) for result in found.values()):
                self._blame_no_sample(found)
            for place, result in found.items():
                results[place] = result
        self._passed(BatchStep.ESTIMATED)
        return results

    def _bisect(self, images: NDArray[np.uint8], places: Sequence[int]) -> dict[int, DepthMap | SampleError]:
        """Run the network; an exception is halved down to the sample that raises it."""
        chosen = images
        if len(places) < len(images):
            chosen = np.zeros_like(images)
            chosen[places] = images[places]
        try:
            depth = self._stages.estimator.estimate(chosen, between=self._stages.between)
        except (ShardgenError, Abandoned, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            if len(places) == 1:
                return {places[0]: _explained(DepthNotFinite(f"the network raised {error!r}"), error)}
            half = len(places) // 2
            return self._bisect(images, places[:half]) | self._bisect(images, places[half:])
        return {
            place: DepthNotFinite("the network's output holds NaN or infinity, in float32 too")
            if depth.non_finite[place]
            else depth.relative[place]
            for place in places
        }

    @staticmethod
    def _blame_no_sample(found: dict[int, DepthMap | SampleError]) -> None:
        """When the network raised for every sample of a batch, it is the network's fault: raise that."""
        causes = [result.__cause__ for result in found.values() if isinstance(result, SampleError)]
        if causes and all(cause is not None for cause in causes):
            raise RuntimeError("the network raised for every sample of a batch") from causes[0]

    def _noted_micro_batch(self) -> int:
        """How many images the network took at once; fewer than before are remembered for all workers."""
        estimator = self._stages.estimator
        now = estimator.micro_batch
        if now < self._micro_batch:
            self._stages.say(f"out of memory: micro-batch {now} instead of {self._micro_batch} from now on")
            self._stages.manifest.shrink_micro_batch(estimator.device_model, now)
            self._micro_batch = now
        return now

    def _finish(self, lease: Lease, estimated: _Estimated) -> None:
        """Encode, publish, record; when it returns the batch is durable."""
        stages, plan = self._stages, self._stages.plan
        composed, depths = estimated.composed, estimated.depths
        samples = plan.layout.batch_samples(composed.batch)
        encoded = list(self._encoders.map(self._encode, composed.samples, depths))
        dead = tuple(
            _dead_letter(SampleIndex(sample), result)
            for sample, result in zip(samples, encoded, strict=True)
            if isinstance(result, SampleError)
        )
        members = [
            (self._name(SampleIndex(sample), kind), result.images[kind])
            for sample, result in zip(samples, encoded, strict=True)
            if isinstance(result, EncodedSample)
            for kind in ImageKind
        ]
        self._passed(BatchStep.ENCODED)
        header = ArtifactHeader(
            fingerprint=plan.fingerprint,
            shard=lease.shard,
            slice=lease.slice,
            fence=lease.fence,
            worker=lease.worker,
        )
        content = BatchContent(
            batch=composed.batch,
            members=members,
            sums=total_sums(result.sums for result in encoded if isinstance(result, EncodedSample)),
            dead_letters=dead,
            provenance=self._provenance(estimated.micro_batch),
        )
        data, receipt = build_artifact(header, [content])
        name = ArtifactName(
            shard=lease.shard,
            batches=range(composed.batch, composed.batch + 1),
            fence=lease.fence,
            worker=lease.worker[-8:],
            random=random_part(),
        )
        artifact = stages.store.publish(name, data, on_step=stages.on_step)
        self._record(
            lease,
            Receipt(
                shard=lease.shard,
                slice=lease.slice,
                fence=lease.fence,
                worker=lease.worker,
                artifact=artifact,
                record=receipt.batches[0],
            ),
        )
        stages.heartbeat.batch_recorded(len(samples), seconds=time.monotonic() - composed.began)
        stages.on_step(BatchStep.RECORDED)

    def _record(self, lease: Lease, receipt: Receipt) -> None:
        """Record under the fence; a frozen neighbour may hold the manifest for a while."""
        for _ in range(_RECORD_TRIES - 1):
            try:
                self._stages.manifest.record(lease, receipt)
            except ManifestBusy as error:
                self._stages.say(f"{error}; trying again")
            else:
                return
        self._stages.manifest.record(lease, receipt)

    def _name(self, sample: SampleIndex, kind: ImageKind) -> str:
        plan = self._stages.plan
        suffix = output_format(plan.output, kind).suffix
        return member_name(kind, sample, sample_count=plan.samples, suffix=suffix)

    def _encode(
        self, sample: ComposedSample | SampleError, depth: DepthMap | SampleError
    ) -> EncodedSample | SampleError:
        if isinstance(sample, SampleError):
            return sample
        if isinstance(depth, SampleError):
            return depth
        plan = self._stages.plan
        try:
            return encode_sample(sample.canvas, depth, plan.output, plan.depth.encoding)
        except SampleError as error:
            return error
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the batch boundary: one bad sample costs one sample
            return _explained(EncodeFailed(f"encoding raised {error!r}"), error)

    def _provenance(self, micro_batch: int) -> Provenance:
        estimator = self._stages.estimator
        return Provenance(
            device_model=estimator.device_model,
            tensorflow=estimator.tensorflow_version,
            opencv=OPENCV_VERSION,
            precision=self._stages.plan.depth.precision.value,
            micro_batch=micro_batch,
        )


def _explained(error: SampleError, cause: BaseException) -> SampleError:
    error.__cause__ = cause
    return error


def _dead_letter(sample: SampleIndex, error: SampleError) -> DeadLetter:
    cause = error.__cause__
    detail = str(error)
    if cause is not None:
        detail += "\n" + "".join(traceback.format_exception(cause))
    return DeadLetter(sample=sample, reason=error.reason, detail=detail)

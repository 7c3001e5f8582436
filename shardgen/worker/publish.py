"""Make a batch durable: pack it, publish it as an artifact, record it under the fence."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from shardgen.artifacts.archive import BatchContent, build_artifact
from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.store import ArtifactStore
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactRef, DeadLetter, Provenance, Receipt, total_sums
from shardgen.domain.sample import member_name
from shardgen.domain.steps import OnStep
from shardgen.errors import SampleError
from shardgen.manifest.port import Receipts
from shardgen.recipes.base import Encoded
from shardgen.worker.retry import Retry

Made = Encoded | SampleError
"""A sample as it will be stored, or why it cannot be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBatch:
    """Every sample of a batch, in order, and what made them."""

    batch: BatchIndex
    samples: Sequence[Made]
    provenance: Provenance


class BatchStore:
    """Publishes and records; thread-safe."""

    def __init__(self, plan: Plan, store: ArtifactStore, receipts: Receipts, retry: Retry) -> None:
        self._plan = plan
        self._store = store
        self._receipts = receipts
        self._retry = retry

    def keep(self, lease: Lease, made: MadeBatch, *, on_step: OnStep) -> None:
        """Publish, then record; when it returns the batch is durable. Raises LeaseLost or StorageFailed."""
        data, receipt = build_artifact(self._plan.fingerprint_of(made.batch), lease, [self._content(made)])

        def publish() -> ArtifactRef:
            # A new name for each attempt: one that failed late may have left the file under its own.
            name = ArtifactName.of(lease, range(made.batch, made.batch + 1))
            return self._store.publish(name, data, on_step=on_step)

        artifact = self._retry(publish)
        record = Receipt(
            shard=lease.shard,
            slice=lease.slice,
            fence=lease.fence,
            worker=lease.worker,
            artifact=artifact,
            record=receipt.batches[0],
        )
        self._retry(lambda: self._receipts.record(lease, record))

    def _content(self, made: MadeBatch) -> BatchContent:
        samples = [SampleIndex(sample) for sample in self._plan.layout.batch_samples(made.batch)]
        outputs = self._plan.outputs
        both = list(zip(samples, made.samples, strict=True))
        return BatchContent(
            batch=made.batch,
            members=[
                (member_name(output, sample, digits=self._plan.name_digits), result.files[output.name])
                for sample, result in both
                if isinstance(result, Encoded)
                for output in outputs
            ],
            sums=total_sums(outputs, [result.sums for _, result in both if isinstance(result, Encoded)]),
            facts={
                sample: result.facts
                for sample, result in both
                if isinstance(result, Encoded) and result.facts
            },
            dead_letters=tuple(
                _dead_letter(sample, result) for sample, result in both if isinstance(result, SampleError)
            ),
            provenance=made.provenance,
        )


def _dead_letter(sample: SampleIndex, error: SampleError) -> DeadLetter:
    cause = error.__cause__
    detail = str(error)
    if cause is not None:
        detail += "\n" + "".join(traceback.format_exception(cause))
    return DeadLetter(sample=sample, reason=error.reason, detail=detail)

"""Suspect mode: after a death without progress, find the sample that kills or hangs its process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NoReturn

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.steps import SuspectStep
from shardgen.domain.suspicion import SuspectSample, SuspectState, Suspicion, control_sample
from shardgen.errors import HungProcess, KilledProcess, LeaseLost, SampleError
from shardgen.imaging.outputs import EncodedSample
from shardgen.making import BatchMaker
from shardgen.storing import Made, MadeBatch


class SuspectMaker:
    """Makes a slice's batches one at a time, each after a note; the suspect one sample by sample.

    The notes are fenced and durable before the work that they announce, so that the next lease knows what
    a death fell on.
    """

    def __init__(self, maker: BatchMaker, *, may_start: Callable[[], bool]) -> None:
        self._maker = maker
        self._stages = maker.stages
        self._may_start = may_start

    def make(self, lease: Lease, batches: Sequence[BatchIndex], suspicion: Suspicion) -> bool:
        """Make these batches of the leased slice; False when stopped before all were made.

        A slice that nothing in it can explain is blocked. Raises LeaseLost, or whatever is no single
        sample's fault.
        """
        suspect = suspicion.batch
        for batch in sorted(batches, key=lambda batch: batch != suspect):
            if not self._may_start():
                return False
            self._stages.heartbeat.check_lease()
            self._stages.manifest.note_batch(lease, batch)
            self._stages.on_step(SuspectStep.BATCH_NOTED)
            if batch == suspect:
                if not self._make_one_by_one(lease, batch, suspicion, pending=batches):
                    return False
            else:
                self._maker.finish(lease, self._maker.estimate(self._maker.compose(batch)))
        return True

    def _make_one_by_one(
        self, lease: Lease, batch: BatchIndex, suspicion: Suspicion, *, pending: Sequence[BatchIndex]
    ) -> bool:
        """Make a batch sample by sample; False when stopped. Raises LeaseLost when the slice gets blocked."""
        samples = self._stages.plan.layout.batch_samples(batch)
        self._stages.say(f"batch {batch} ended its process before: making its samples one by one")
        made: dict[SampleIndex, Made] = {
            sample: _given_up(one)
            for sample, one in suspicion.samples.items()
            if sample in samples and one.state is SuspectState.DEAD
        }
        awaiting = {sample: suspicion.samples[sample] for sample in suspicion.condemned_in(samples)}
        order = suspicion.lone_order(samples)
        control = self._control(lease, samples, suspicion, pending) if awaiting else None
        for sample in chain([] if control is None else [control], order):
            if self._stages.is_stopping():  # that is no death
                return False
            result = self._make_noted(lease, sample)
            if sample != control:
                made[sample] = result
            if awaiting and isinstance(result, EncodedSample):
                made |= {sample: _given_up(one) for sample, one in awaiting.items()}
                awaiting = {}
        if awaiting:
            self._block(lease, list(awaiting))
        in_order = [made[SampleIndex(sample)] for sample in samples]
        self._maker.refuse_if_network_is_broken(in_order)
        self._maker.keep(
            lease,
            MadeBatch(batch=batch, samples=in_order, provenance=self._maker.provenance()),
            seconds=0.0,  # no measure of how long a batch takes
        )
        return True

    def _control(
        self, lease: Lease, samples: range, suspicion: Suspicion, pending: Sequence[BatchIndex]
    ) -> SampleIndex | None:
        if suspicion.passed_in(samples):
            return None
        layout = self._stages.plan.layout
        others = [
            BatchIndex(batch)
            for batch in layout.slice_batch_range(lease.shard, lease.slice)
            if layout.batch_samples(BatchIndex(batch)) != samples
        ]
        return control_sample(
            samples,
            recorded=[layout.batch_samples(batch) for batch in others if batch not in pending],
            pending=[layout.batch_samples(batch) for batch in others if batch in pending],
        )

    def _make_noted(self, lease: Lease, sample: SampleIndex) -> Made:
        stages = self._stages
        stages.heartbeat.check_lease()
        stages.manifest.note_sample(lease, sample)
        stages.on_step(SuspectStep.SAMPLE_NOTED)
        result = self._maker.make_alone(sample)
        stages.heartbeat.progress()
        for dead in stages.manifest.note_pass(lease, sample, made=isinstance(result, EncodedSample)):
            stages.say(f"sample {dead} ended its process three times alone and is given up")
        stages.on_step(SuspectStep.SURVIVAL_NOTED)
        return result

    def _block(self, lease: Lease, samples: Sequence[SampleIndex]) -> NoReturn:
        numbers = ", ".join(map(str, samples))
        reason = (
            f"sample {numbers} ended its process every time, and no other sample of the slice could show "
            "that the machine works"
        )
        self._stages.manifest.block(lease, reason)
        raise LeaseLost(f"shard {lease.shard} slice {lease.slice} is blocked: {reason}")


def _given_up(one: SuspectSample) -> SampleError:
    kind = HungProcess if one.reason is DeadLetterReason.HUNG else KilledProcess
    return kind(f"made alone, it ended its process {one.deaths} times in a row\n{one.detail}")

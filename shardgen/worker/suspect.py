"""Suspect mode: after a death without progress, find the sample that kills or hangs its process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.steps import SuspectStep
from shardgen.domain.suspicion import SuspectSample, Suspicion
from shardgen.errors import HungProcess, KilledProcess, LeaseLost, SampleError
from shardgen.recipes.base import Encoded, Recipe
from shardgen.worker.batch import BatchMaker
from shardgen.worker.publish import Made, MadeBatch

_LOG = logging.getLogger(__name__)


class SuspectMaker:
    """Makes a slice's batches one at a time, each after a note; the suspect one sample by sample.

    The notes are fenced and durable before the work that they announce, so that the next lease knows what
    a death fell on.
    """

    def __init__(self, maker: BatchMaker, *, begin_batch: Callable[[], bool]) -> None:
        self._maker = maker
        self._stages = maker.stages
        self._recipe = maker.stages.recipe
        self._begin_batch = begin_batch

    def make(self, lease: Lease, batches: Sequence[BatchIndex], suspicion: Suspicion) -> bool:
        """Make these batches of the leased slice; False when stopped before all were made.

        A slice that nothing can explain is blocked. Raises LeaseLost, or whatever is no single sample's
        fault.
        """
        stages, suspect = self._stages, suspicion.batch
        for batch in sorted(batches, key=lambda batch: batch != suspect):
            if not self._begin_batch():
                return False
            stages.heartbeat.check_lease()
            stages.retry(partial(stages.manifest.suspicion.note_batch, lease, batch))
            stages.on_step(SuspectStep.BATCH_NOTED)
            if batch != suspect:
                self._maker.finish(lease, self._maker.compute(self._maker.prepare(batch)))
            elif not self._make_one_by_one(lease, batch, suspicion):
                return False
        return True

    def _make_one_by_one(self, lease: Lease, batch: BatchIndex, suspicion: Suspicion) -> bool:
        """Make a batch sample by sample; False when stopped. Raises LeaseLost when the slice gets blocked."""
        stages = self._stages
        samples = [SampleIndex(sample) for sample in stages.plan.layout.batch_samples(batch)]
        _LOG.warning("batch %d killed its process before: making its samples one by one", batch)
        made: dict[SampleIndex, Made] = {
            one: _given_up(suspicion.samples[one]) for one in suspicion.dead_in(samples)
        }
        awaiting = suspicion.condemned_in(samples)
        left = set(samples) - made.keys() - set(awaiting)
        for sample in self._order(lease, left, suspicion, awaiting):
            if stages.is_stopping():  # that is no death
                return False
            result = self._make_noted(lease, sample)
            if sample in left:
                made[sample] = result
                left.remove(sample)
            if isinstance(result, Encoded):
                made |= {one: _given_up(suspicion.samples[one]) for one in awaiting}
                awaiting.clear()
        if awaiting:
            self._block(lease, awaiting)
        in_order = [made[sample] for sample in samples]
        self._maker.refuse_if_device_is_broken(batch, in_order)
        self._maker.keep(
            lease,
            MadeBatch(batch=batch, samples=in_order, provenance=self._maker.provenance()),
            seconds=0.0,  # no measure of how long a batch takes
        )
        return True

    def _order(
        self,
        lease: Lease,
        left: set[SampleIndex],
        suspicion: Suspicion,
        awaiting: list[SampleIndex],
    ) -> Iterator[SampleIndex]:
        """The next sample to make alone; both collections shrink while the caller makes them."""
        if awaiting:
            for sample in self._for_proof(lease, left, suspicion, awaiting[0]):
                yield sample
                if not awaiting:
                    break
        yield from suspicion.lone_order(left)

    def _for_proof(
        self, lease: Lease, left: Iterable[SampleIndex], suspicion: Suspicion, condemned: SampleIndex
    ) -> Iterable[SampleIndex]:
        """Samples that may show that the machine works: of the batch, of the slice, of the plan."""
        plan = self._stages.plan
        kin = _Kinship(self._recipe, condemned)
        own = suspicion.proof_order(list(left), condemned, kinship=kin)
        if any(suspicion.has_passed(sample) for sample in own):
            return own
        batches = plan.layout.slice_batch_range(lease.shard, lease.slice)
        others = {
            SampleIndex(sample)
            for batch in batches
            for sample in plan.layout.batch_samples(BatchIndex(batch))
        }
        others -= suspicion.dead_letters | {one for one in suspicion.samples if not suspicion.has_passed(one)}
        others -= {
            SampleIndex(sample)
            for sample in plan.layout.batch_samples(plan.layout.batch_of_sample(condemned))
        }
        stranger = self._recipe.stranger_to(condemned)
        strangers = [stranger] if kin(stranger) == 0 else []
        controls = suspicion.proof_order(list(others), condemned, kinship=kin)
        likeliest = [one for one in controls[:1] if kin(one) == 0] or strangers or controls[:1]
        return chain((one for one in likeliest if not suspicion.has_died(one)), own)

    def _make_noted(self, lease: Lease, sample: SampleIndex) -> Made:
        stages = self._stages
        stages.heartbeat.check_lease()
        stages.retry(lambda: stages.manifest.suspicion.note_sample(lease, sample))
        stages.on_step(SuspectStep.SAMPLE_NOTED)
        result = self._maker.make_alone(sample)
        stages.heartbeat.progress()
        is_made = isinstance(result, Encoded)
        given_up = stages.retry(lambda: stages.manifest.suspicion.note_pass(lease, sample, made=is_made))
        for dead in given_up:
            _LOG.warning("sample %d killed its process three times when made alone; giving it up", dead)
        stages.on_step(SuspectStep.SURVIVAL_NOTED)
        return result

    def _block(self, lease: Lease, samples: Sequence[SampleIndex]) -> None:
        numbers = ", ".join(map(str, samples))
        reason = (
            f"sample {numbers} killed its process every time, and no other one showed that the machine works"
        )
        self._stages.retry(lambda: self._stages.manifest.leases.block(lease, reason))
        raise LeaseLost(
            f"shard {lease.shard} slice {lease.slice} is blocked: {reason}",
            hint="shardgen requeue RUN_DIR --blocked, once the cause is fixed",
        )


class _Kinship:
    """How many sources a sample shares with a given one."""

    def __init__(self, recipe: Recipe, sample: SampleIndex) -> None:
        self._recipe = recipe
        self._sources = recipe.sources_of(sample)

    def __call__(self, other: SampleIndex) -> int:
        return len(self._recipe.sources_of(other) & self._sources)


def _given_up(one: SuspectSample) -> SampleError:
    kind = HungProcess if one.reason is DeadLetterReason.HUNG else KilledProcess
    return kind(f"made alone, it ended its process {one.deaths} times in a row\n{one.detail}")

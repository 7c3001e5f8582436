"""Requeue: the operator's explicit undo of receipts, marked durably before any row changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardgen.artifacts.store import ArtifactStore
from shardgen.coordination.artifact_folder import refuse_other_folder
from shardgen.coordination.folder import notices
from shardgen.coordination.folder.leases import opened_view
from shardgen.domain.claims import next_generation
from shardgen.domain.identifiers import MAX_NUMBER, BatchIndex, Fence
from shardgen.domain.plan import Plan
from shardgen.domain.steps import OnStep, RequeueStep, ignore_step
from shardgen.errors import ArtifactCorrupt, InvalidSettings
from shardgen.manifest.manifest import Manifest
from shardgen.manifest.operator import Marks
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.atomic import random_part
from shardgen.storage.bounded import parse_json
from shardgen.storage.files import storage_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """What a requeue changed; `mended` counts records of the manifest that were put right before."""

    batches: tuple[BatchIndex, ...] = ()
    samples: int = 0
    unblocked_slices: int = 0
    mended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueChoice:
    """What to put back: these batches, those with dead letters, or blocked slices (one of the three)."""

    batches: tuple[BatchIndex, ...] = ()
    dead_letters: bool = False
    blocked: bool = False


def requeue(run: RunDirectory, choice: RequeueChoice) -> Requeued:
    """Put back what was chosen; in a shared folder every machine will see it, each after its own delay.

    A slice is blocked on the machine that gave it up, and is opened there.
    """
    plan = run.plan()
    if run.is_shared_folder and not choice.blocked:
        return _requeue_in_folder(run, plan, choice)
    store = ArtifactStore(run.artifacts)
    with run.manifest(plan) as manifest:
        if choice.blocked:
            # Its deaths are forgotten; no receipt changes.
            return Requeued(unblocked_slices=manifest.operator.unblock())
        refuse_other_folder(store, manifest.folder)  # marks must lie where a rebuild will look for them
        receipts = manifest.receipts
        batches = receipts.batches_with_dead_letters() if choice.dead_letters else choice.batches
        return requeue_batches(plan, manifest, store, batches)


def _requeue_in_folder(run: RunDirectory, plan: Plan, choice: RequeueChoice) -> Requeued:
    """Write the mark of the next generation: attempts of an earlier one, seen or not, do not count."""
    _refuse_unplanned(plan, choice.batches)
    with opened_view(run, plan) as view:
        wanted = choice.batches
        if choice.dead_letters:
            wanted = tuple(batch for batch, one in view.winners.items() if one.record.dead_letters)
        batches = tuple(sorted({batch for batch in wanted if batch in view.winners}))
        if batches:
            generation = next_generation(view.fences.values(), view.generation)
            mark = notices.Requeue(fingerprint=plan.fingerprint, generation=generation, batches=batches)
            path = notices.requeue_path(generation, random_part())
            try:
                view.files.write(path, notices.encoded(mark))
            except OSError as error:
                raise storage_error(error, run.path / path) from error
    samples = sum(len(plan.layout.batch_samples(batch)) for batch in batches)
    return Requeued(batches=batches, samples=samples)


def _refuse_unplanned(plan: Plan, batches: Sequence[BatchIndex]) -> None:
    count = plan.layout.batch_count
    for batch in batches:
        if not 0 <= batch < count:
            raise InvalidSettings(
                f"batch {batch}: the plan's batches are 0 to {count - 1}",
                hint="shardgen dead-letters RUN_DIR names batches",
            )


def requeue_batches(
    plan: Plan,
    manifest: Manifest,
    store: ArtifactStore,
    batches: Sequence[BatchIndex],
    *,
    on_step: OnStep = ignore_step,
) -> Requeued:
    """Undo the receipts of these batches; those without one are left as they are.

    The mark `artifacts/requeued/<fence>-<random>.json` is durable before a row changes, so that a later
    rebuild does not bring the undone artifacts back. It stays when the change then fails: whether a commit
    that failed has happened is not always known, and a mark too many costs work, one too few brings back what
    was undone. Raises InvalidSettings for a batch that the plan does not have, ManifestBusy while a worker
    holds one of the slices.
    """
    _refuse_unplanned(plan, batches)
    recorded = manifest.receipts.recorded_among(batches)
    if not recorded:
        return Requeued()

    def mark(marks: Marks) -> None:
        for fence, marked in marks.items():
            document = {"fingerprint": plan.fingerprint, "fence": fence, "batches": marked}
            store.publish_requeued(
                fence, json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
            )
        on_step(RequeueStep.MARKED)

    manifest.operator.undo_receipts(recorded, mark=mark)
    on_step(RequeueStep.ROWS_CHANGED)
    samples = sum(len(plan.layout.batch_samples(batch)) for batch in recorded)
    return Requeued(batches=tuple(recorded), samples=samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneAttempts:
    """What all marks say: of each batch, up to which fence attempts do not count; and the highest fence."""

    up_to: Mapping[BatchIndex, Fence]
    highest_fence: Fence

    def includes(self, batch: BatchIndex, fence: Fence) -> bool:
        """Whether an operator has undone this attempt."""
        return batch in self.up_to and fence <= self.up_to[batch]


def read_marks(plan: Plan, store: ArtifactStore) -> UndoneAttempts:
    """Read every mark of this plan. Raises ArtifactCorrupt for one that does not read.

    Going on without it would bring back what an operator has undone.
    """
    up_to: dict[BatchIndex, Fence] = {}
    highest = Fence(0)
    for name, data in store.requeued():
        try:
            fingerprint, fence, batches = _parse_mark(data)
        except ValueError as error:
            raise ArtifactCorrupt(
                f"{name}: is not a mark of a requeue",
                hint="put it back from a copy; moved away, what it undid counts again",
            ) from error
        highest = max(highest, fence)
        if fingerprint == plan.fingerprint:
            for batch in batches:
                up_to[batch] = max(fence, up_to.get(batch, fence))
    return UndoneAttempts(up_to=up_to, highest_fence=highest)


def _parse_mark(data: bytes) -> tuple[str, Fence, list[BatchIndex]]:
    document = parse_json(data)
    match document:
        case {"fingerprint": str(fingerprint), "fence": int(fence), "batches": [*batches]}:
            numbers = [fence, *batches]
        case _:
            raise ValueError("a key is missing, or of another type")
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers):
        raise ValueError("a number is not a fence or a batch")
    return fingerprint, Fence(fence), [BatchIndex(batch) for batch in batches]

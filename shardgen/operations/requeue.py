"""Requeue: the operator's explicit undo of receipts, marked durably before any row changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardgen.coordination.open import open_run
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import InvalidSettings
from shardgen.settings.run_directory import RunDirectory


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


def requeue(run: RunDirectory, choice: RequeueChoice, *, on_step: OnStep = ignore_step) -> Requeued:
    """Put back what was chosen; in a shared folder every machine will see it, each after its own delay.

    A slice is blocked on the machine that gave it up, and is opened there. Raises InvalidSettings for a batch
    that the plan does not have, ManifestBusy while a worker holds one of the slices.
    """
    opened = open_run(run)
    if choice.blocked:
        with run.manifest(opened.plan) as manifest:
            return Requeued(unblocked_slices=manifest.operator.unblock())
    _refuse_unplanned(opened.plan, choice.batches)
    undone = opened.undo(choice.batches, dead_letters=choice.dead_letters, on_step=on_step)
    return requeued(opened.plan, undone)


def requeued(plan: Plan, batches: Sequence[BatchIndex], *, mended: int = 0) -> Requeued:
    """What it is that these batches are pending again."""
    samples = sum(len(plan.layout.batch_samples(batch)) for batch in batches)
    return Requeued(batches=tuple(batches), samples=samples, mended=mended)


def _refuse_unplanned(plan: Plan, batches: Sequence[BatchIndex]) -> None:
    count = plan.layout.batch_count
    for batch in batches:
        if not 0 <= batch < count:
            raise InvalidSettings(
                f"batch {batch}: the plan's batches are 0 to {count - 1}",
                hint="shardgen dead-letters RUN_DIR names batches",
            )

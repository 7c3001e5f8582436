"""The durable steps of every verb: a test kills a real process at each, so a new one adds its own test."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class BatchStep(StrEnum):
    """The life of a batch inside a worker."""

    PREPARED = "prepared"
    COMPUTED = "computed"
    ENCODED = "encoded"
    STAGED = "staged"
    LINKED = "linked"
    PUBLISHED = "published"
    RECORDED = "recorded"


class LeaseStep(StrEnum):
    """The life of a lease."""

    GRANTED = "granted"
    FINISHED = "finished"
    RELEASED = "released"


class SuspectStep(StrEnum):
    """The notes of suspect mode."""

    BATCH_NOTED = "batch-noted"
    SAMPLE_NOTED = "sample-noted"
    SURVIVAL_NOTED = "survival-noted"


class PlanStep(StrEnum):
    """From sources to a manifest; the last three are of a plan that takes another's place."""

    CHECKED = "checked"
    FILES_WRITTEN = "files-written"
    PLAN_WRITTEN = "plan-written"
    MANIFEST_CREATED = "manifest-created"
    NEXT_WRITTEN = "next-written"
    ROWS_REPLACED = "rows-replaced"
    RENAMED = "renamed"


class MergeStep(StrEnum):
    """From receipts to one zip."""

    PLANNED = "planned"
    BODIES_COPIED = "bodies-copied"
    DIRECTORY_WRITTEN = "directory-written"
    SYNCED = "synced"
    RENAMED = "renamed"


class ExportStep(StrEnum):
    """From a zip or receipts to a folder that trains; the middle three come once for every shard."""

    REQUESTED = "requested"
    WRITTEN = "written"
    SYNCED = "synced"
    PUBLISHED = "published"
    FILES_WRITTEN = "files-written"
    DESCRIBED = "described"


class RequeueStep(StrEnum):
    """The operator's undo of receipts."""

    MARKED = "marked"
    ROWS_CHANGED = "rows-changed"


class SweepStep(StrEnum):
    """Removing orphans; `REMOVED` comes once for every file."""

    LISTED = "listed"
    REMOVED = "removed"
    SYNCED = "synced"


class RebuildStep(StrEnum):
    """From artifacts to a new manifest."""

    STAGED = "staged"
    FILLED = "filled"
    LINKED = "linked"
    SYNCED = "synced"


Step = (
    BatchStep
    | LeaseStep
    | SuspectStep
    | PlanStep
    | MergeStep
    | ExportStep
    | RequeueStep
    | SweepStep
    | RebuildStep
)
OnStep = Callable[[Step], None]


def ignore_step(_step: Step) -> None:
    """Do nothing: what runs outside tests."""

"""The marks of requeues in the artifact folder: which attempts at a batch no longer count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardgen.artifacts.store import ArtifactStore
from shardgen.domain.identifiers import MAX_NUMBER, BatchIndex, Fence
from shardgen.domain.plan import Plan
from shardgen.errors import ArtifactCorrupt
from shardgen.storage.bounded import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneAttempts:
    """What all marks say: of each batch, up to which fence attempts do not count; and the highest fence."""

    up_to: Mapping[BatchIndex, Fence]
    highest_fence: Fence

    def includes(self, batch: BatchIndex, fence: Fence) -> bool:
        """Whether an operator has undone this attempt."""
        return batch in self.up_to and fence <= self.up_to[batch]


def read_marks(plan: Plan, store: ArtifactStore) -> UndoneAttempts:
    """Read every mark of this plan. Raises ArtifactCorrupt for one that cannot be read.

    Going on without it would bring back what an operator has undone.
    """
    up_to: dict[BatchIndex, Fence] = {}
    highest = Fence(0)
    for name, data in store.requeued():
        fingerprint, fence, batches = parse_mark(name, data)
        highest = max(highest, fence)
        if fingerprint in plan.fingerprints:
            for batch in batches:
                up_to[batch] = max(fence, up_to.get(batch, fence))
    return UndoneAttempts(up_to=up_to, highest_fence=highest)


def parse_mark(name: str, data: bytes) -> tuple[str, Fence, list[BatchIndex]]:
    """What a mark says: the plan's fingerprint, up to which fence attempts do not count, at which batches.

    Raises ArtifactCorrupt.
    """
    try:
        return _parsed(data)
    except ValueError as error:
        raise ArtifactCorrupt(
            f"{name}: is not a mark of a requeue",
            hint="put it back from a copy; moved away, what it undid counts again",
        ) from error


def _parsed(data: bytes) -> tuple[str, Fence, list[BatchIndex]]:
    document = parse_json(data)
    match document:
        case {"fingerprint": str(fingerprint), "fence": int(fence), "batches": [*batches]}:
            numbers = [fence, *batches]
        case _:
            raise ValueError("a key is missing, or of another type")
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers):
        raise ValueError("a number is not a fence or a batch")
    return fingerprint, Fence(fence), [BatchIndex(batch) for batch in batches]

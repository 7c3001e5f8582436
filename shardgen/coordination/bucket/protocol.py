"""The protocol of a bucket: the names of its keys, and every decision that workers take by them alone.

A slice's row has versions, numbered from 1, each an object that is created once and never changed. Whoever
changes the row creates the next version; of two who try, one does. The number of a version that grants the
slice is the grant's fence. A receipt names batch and fence in its key. `docs/bucket.md` tells why this is
enough, and `tests/bucket/model.py` tries it in every order of events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shardgen.domain.claims import SliceId, counts
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.slice_state import SliceState

CLAIMS = "claims"
RECEIPTS = "receipts"
WORKERS = "workers"
MICRO_BATCHES = "micro-batches"
ARTIFACTS = "artifacts"
# At most 15 digits, as in an artifact's name: a number above that could never be granted again.
_VERSION = re.compile(
    rf"{CLAIMS}/(?P<shard>[0-9]{{8,15}})-(?P<slice>[0-9]{{8,15}})/(?P<number>[0-9]{{8,15}})"
    r"(?P<note>\.note)?\.json"
)
_RECEIPT = re.compile(
    rf"{RECEIPTS}/(?P<batch>[0-9]{{8,15}})\.f(?P<fence>[0-9]{{8,15}})(?:\.d(?P<dead>[1-9][0-9]{{0,14}}))?\.json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionKey:
    """A version of a slice's row; or, `is_note`, what the holder of that grant notes meanwhile."""

    slice_id: SliceId
    number: int
    is_note: bool = False

    def __str__(self) -> str:
        return f"{slice_folder(self.slice_id)}/{self.number:08d}{'.note' if self.is_note else ''}.json"

    @classmethod
    def parse(cls, key: str) -> VersionKey | None:
        """Take a key apart; None for any other."""
        match = _VERSION.fullmatch(key)
        if match is None:
            return None
        slice_id = ShardIndex(int(match["shard"])), SliceIndex(int(match["slice"]))
        parsed = cls(slice_id=slice_id, number=int(match["number"]), is_note=match["note"] is not None)
        return parsed if str(parsed) == key else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptKey:
    """A receipt's key: whose attempt at which batch, and how many of its samples are dead letters."""

    batch: BatchIndex
    fence: Fence
    dead: int = 0

    def __str__(self) -> str:
        dead = f".d{self.dead}" if self.dead else ""
        return f"{receipt_prefix(self.batch)}.f{self.fence:08d}{dead}.json"

    @classmethod
    def parse(cls, key: str) -> ReceiptKey | None:
        """Take a key apart; None for any other."""
        match = _RECEIPT.fullmatch(key)
        if match is None:
            return None
        parsed = cls(
            batch=BatchIndex(int(match["batch"])),
            fence=Fence(int(match["fence"])),
            dead=int(match["dead"] or 0),
        )
        return parsed if str(parsed) == key else None


def slice_folder(slice_id: SliceId) -> str:
    """What the keys of a slice's versions begin with; it sorts as the slice does."""
    return f"{CLAIMS}/{slice_id[0]:08d}-{slice_id[1]:08d}"


def receipt_prefix(batch: int) -> str:
    """What the keys of a batch's receipts begin with; it sorts as the batch does."""
    return f"{RECEIPTS}/{batch:08d}"


def next_version(seen: int) -> int:
    """The version to create after the highest that was seen, 0 if none was."""
    return seen + 1


def may_claim(state: SliceState, *, is_silent: bool) -> bool:
    """Whether a slice that is not done may be claimed, by its latest version; without one it may be.

    `is_silent`: its holder shows no sign of life, or has ended, or does not know of its claim.
    """
    return state is SliceState.OPEN or (state is SliceState.LEASED and is_silent)


def winner(attempts: Iterable[ReceiptKey], undone: int | None) -> ReceiptKey | None:
    """Of all receipts of one batch the one that counts; `undone` is up to which fence none does.

    The highest fence: a worker that lost its slice may write a receipt late, and never outranks its
    successor.
    """
    standing = [one for one in attempts if counts(one.fence, undone)]
    return min(standing, key=lambda one: (-one.fence, one.dead), default=None)


def may_still_count(fence: int, *, best: int | None, undone: int | None) -> bool:
    """Whether an artifact without a receipt may get one that counts; `best` is its batch's winner, if any.

    Its maker may be late by any time, and be no holder any more. Only a receipt of the same fence, of which
    there is but one, a higher one, or a requeue ends that.
    """
    return counts(fence, undone) and (best is None or fence > best)

"""The name of an artifact inside the artifact folder, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex
from shardgen.domain.layout import Layout
from shardgen.domain.lease import Attempt
from shardgen.storage.atomic import random_part

_RANDOM = re.compile(r"[0-9a-z]{8}")
# At most 15 digits: a name that somebody made up must not hold a number that no database stores.
_NAME = re.compile(
    r"shard-(?P<shard>[0-9]{5,15})/batch-(?P<first>[0-9]{8,15})(?:-(?P<last>[0-9]{8,15}))?"
    r"\.f(?P<fence>[0-9]{4,15})\.(?P<worker>[0-9a-z]{8})\.(?P<random>[0-9a-z]{8})\.zip"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactName:
    """What a name says; `worker` is the random part of the worker's id, `random` the attempt's."""

    shard: ShardIndex
    batches: range
    fence: Fence
    worker: str
    random: str

    def __post_init__(self) -> None:
        if len(self.batches) < 1 or self.batches.step != 1:
            raise ValueError(f"an artifact holds consecutive batches, not {self.batches}")
        for part in (self.worker, self.random):
            if not _RANDOM.fullmatch(part):
                raise ValueError(f"{part!r} is not 8 characters of 0-9 and a-z")

    def __str__(self) -> str:
        first, last = self.batches[0], self.batches[-1]
        batches = f"{first:08d}" if first == last else f"{first:08d}-{last:08d}"
        tail = f"f{self.fence:04d}.{self.worker}.{self.random}.zip"
        return f"shard-{self.shard:05d}/batch-{batches}.{tail}"

    def slice_in(self, layout: Layout) -> SliceIndex | None:
        """The slice that all of its batches lie in; None when a plan of this layout has no such slice."""
        first, last = BatchIndex(self.batches[0]), BatchIndex(self.batches[-1])
        if self.shard >= layout.shard_count or layout.shard_of_batch(first) != self.shard:
            return None
        slice_ = layout.slice_of_batch(first)
        return slice_ if last in layout.slice_batch_range(self.shard, slice_) else None

    @classmethod
    def of(cls, attempt: Attempt, batches: range) -> Self:
        """A new name, as no two artifacts share one, for these batches of an attempt."""
        return cls(
            shard=attempt.shard,
            batches=batches,
            fence=attempt.fence,
            worker=attempt.worker[-8:],
            random=random_part(),
        )

    @classmethod
    def parse(cls, name: str) -> ArtifactName | None:
        """Take an artifact's name apart; None for any other name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        first = int(match["first"])
        last = first if match["last"] is None else int(match["last"])
        if last < first:
            return None
        parsed = cls(
            shard=ShardIndex(int(match["shard"])),
            batches=range(first, last + 1),
            fence=Fence(int(match["fence"])),
            worker=match["worker"],
            random=match["random"],
        )
        return parsed if str(parsed) == name else None


def staged_artifact(file: str, layout: Layout) -> ArtifactName | None:
    """The artifact that a file in the staging folder was to become; None for any other file."""
    name, _, random = file.rpartition(".")
    match = _NAME.fullmatch(f"shard-00000/{name}")
    if match is None or not _RANDOM.fullmatch(random):
        return None
    shard = layout.shard_of_batch(BatchIndex(int(match["first"])))
    return ArtifactName.parse(f"shard-{shard:05d}/{name}")


def is_artifact_name(name: str) -> bool:
    """Whether a name has an artifact's form, and so cannot point out of the artifact folder."""
    return _NAME.fullmatch(name) is not None

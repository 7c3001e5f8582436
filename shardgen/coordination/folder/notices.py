"""Messages between workers through a shared folder: small files, each written once by one worker.

Everything of a worker lies in a folder of its own, so that no two machines ever make the same folder or file:
`workers/<worker>/notices-<n>/<number>.<kind>[.<shard>-<slice>.f<fence>].json`, and its segments beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shardgen.domain.claims import Claim
from shardgen.domain.identifiers import BatchIndex, Fence, ShardIndex, SliceIndex

WORKERS = "workers"
REQUEUE = "requeue"
NOTICES = "notices-"
SEGMENTS = "shard-"
_PER_FOLDER = 400  # Drive's mount gets slow, and then fails, in folders of some thousand entries
_DOUBLED = re.compile(r" \([0-9]+\)(?=\.[a-z]+$)")
# At most 15 digits, as in an artifact's name: a fence above that could never be granted again.
_NOTICE = re.compile(
    r"(?P<number>[0-9]{6,15})\.(?P<kind>claim|ended|done|beat)"
    r"(?:\.(?P<shard>[0-9]{5,15})-(?P<slice>[0-9]{5,15})\.f(?P<fence>[0-9]{4,15}))?\.json"
)
_REQUEUE = re.compile(r"(?P<generation>[0-9]{4,15})-(?P<random>[0-9a-z]{8})\.json")
_FOLDER = re.compile(r"[A-Za-z0-9_.-]{1,120}")


Content = TypeVar("Content", bound=BaseModel)


class Kind(StrEnum):
    """`ended`: a claim is given up, by withdrawal or release. `done`: its slice is made and published."""

    CLAIM = "claim"
    ENDED = "ended"
    DONE = "done"
    BEAT = "beat"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeName:
    """What a notice's name says by itself: enough to act on, should its content never arrive."""

    number: int
    kind: Kind
    shard: ShardIndex | None = None
    slice: SliceIndex | None = None
    fence: Fence | None = None

    def path(self, worker: str) -> str:
        """Its place in the shared folder."""
        folder = f"{WORKERS}/{worker}/{NOTICES}{self.number // _PER_FOLDER:03d}"
        about = "" if self.shard is None else f".{self.shard:05d}-{self.slice:05d}.f{self.fence:04d}"
        return f"{folder}/{self.number:06d}.{self.kind.value}{about}.json"

    @classmethod
    def parse(cls, name: str) -> NoticeName | None:
        """Take a name apart, a doubled one (`name (1).json`) too; None for a stranger's."""
        match = _NOTICE.fullmatch(original_name(name))
        if match is None:
            return None
        kind = Kind(match["kind"])
        if (match["shard"] is None) != (kind is Kind.BEAT):
            return None
        if kind is Kind.BEAT:
            return cls(number=int(match["number"]), kind=kind)
        return cls(
            number=int(match["number"]),
            kind=kind,
            shard=ShardIndex(int(match["shard"])),
            slice=SliceIndex(int(match["slice"])),
            fence=Fence(int(match["fence"])),
        )

    def claim(self, worker: str, written_at: float = 0.0) -> Claim:
        """The claim that a notice of any kind but `beat` speaks of."""
        if self.shard is None or self.slice is None or self.fence is None:
            raise ValueError(f"a {self.kind} speaks of no claim")
        return Claim(
            shard=self.shard, slice=self.slice, fence=self.fence, worker=worker, written_at=written_at
        )


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    fingerprint: str
    written_at: float = Field(allow_inf_nan=False)


class Notice(_Content):
    """The content of a claim, and of its end."""


class SegmentRef(BaseModel):
    """A segment as a `done` names it: its path in the shared folder, its bytes and their sha256."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: str
    size_bytes: int
    sha256: str


class Done(_Content):
    """A slice is made; true only when the bytes that it names are there."""

    segments: tuple[SegmentRef, ...]


class Beat(_Content):
    """What a worker says of itself, for people to read; and its claims: (shard, slice, fence).

    An earlier claim that a beat does not name is given up, whatever became of the notice that said so.
    """

    worker: str
    host: str
    pid: int
    process_started: float
    started_at: float
    state: str
    samples_done: int = 0
    samples_per_second: float = Field(default=0.0, allow_inf_nan=False)
    note: str = ""
    lag_seconds: float | None = None
    slowest_lag_seconds: float | None = None
    claims: tuple[tuple[int, int, int], ...] | None = None


class Requeue(BaseModel):
    """An operator's undo: attempts of an earlier generation at these batches do not count."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    fingerprint: str
    generation: int = Field(ge=1, lt=10**9)  # the fences after it have at most 15 digits
    batches: tuple[int, ...]

    @property
    def undone(self) -> tuple[BatchIndex, ...]:
        """The batches, typed."""
        return tuple(BatchIndex(batch) for batch in self.batches)


def encoded(content: BaseModel) -> bytes:
    """As it is written."""
    return json.dumps(content.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


def decoded(kind: type[Content], data: bytes) -> Content | None:
    """As it was written, or None: cut short, or not one of ours."""
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        return None


def original_name(name: str) -> str:
    """`name (1).json` is what Drive's mount makes of `name.json` when it holds two of that name."""
    return _DOUBLED.sub("", name)


def worker_folders(names: Sequence[str]) -> list[str]:
    """Those of the names in `workers/` that may be a worker's folder."""
    return [name for name in names if _FOLDER.fullmatch(name) and not name.startswith(".")]


def requeue_path(generation: int, random: str) -> str:
    """Where a requeue's mark lies."""
    return f"{REQUEUE}/{generation:04d}-{random}.json"


def is_requeue(name: str) -> bool:
    """Whether a name in `requeue/` is a mark's."""
    return _REQUEUE.fullmatch(original_name(name)) is not None

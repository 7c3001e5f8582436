"""The port of an artifact store: a place whose files appear whole under their final name, or not at all."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from shardgen.artifacts.names import ArtifactName, is_artifact_name
from shardgen.artifacts.zip_records import FULL_32
from shardgen.domain.identifiers import Fence
from shardgen.domain.layout import Layout
from shardgen.domain.receipt import ArtifactRef
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ArtifactCorrupt, ArtifactMissing, ReceiptConflict, StorageFailed
from shardgen.storage.atomic import random_part

REQUEUED = "requeued"
IDENTITY = "folder-id"
SHARD = "shard-"  # how the names of the folders of artifacts begin
MAX_ARTIFACT_BYTES = FULL_32 - 1
MAX_MARK_BYTES = 1 << 28  # names 30 million batches
MAX_IDENTITY_BYTES = 1 << 10
PUT_BACK = "shardgen verify RUN_DIR --requeue"  # exactly the bad batches
_MARK_NAME = re.compile(r"[0-9]{4,15}-[0-9a-z]{8}\.json")
_IDENTITY = re.compile(r"[0-9a-f]{32}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file that some attempt wrote; `path` is relative to the store."""

    path: str
    name: ArtifactName
    is_staged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Every artifact and staged file, and the paths of all other files."""

    files: tuple[FoundFile, ...]
    strangers: tuple[str, ...]


class ArtifactReader(Protocol):
    """Reads the bytes of recorded artifacts. Thread-safe."""

    @property
    def reads_at_once(self) -> int:
        """How many artifacts to read at the same time, to hide the store's latency; 1 if it has none."""
        ...

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the artifact's bytes after checking size and sha256."""
        ...

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes`; `refuse_changed` checks the bytes."""
        ...


class ArtifactStore(ABC):
    """Artifacts in one place, each written once and never changed: an ArtifactReader that also writes.

    `shown` is the place's name in messages. Every method raises StorageFailed for problems that may pass:
    a place that cannot be read may still hold anything.
    """

    reads_at_once: ClassVar[int] = 1
    other_place: ClassVar[str]
    """What to type if this is not the place that the run's workers write to."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def place(self, name: ArtifactName | str) -> str:
        """A file's name in messages."""
        return f"{self.shown}/{name}"

    @abstractmethod
    def identity(self) -> str | None:
        """The id that identifies this place under any path; None if it has none.

        Raises ArtifactCorrupt if it is not a valid id.
        """

    @abstractmethod
    def make_identity(self) -> str:
        """The same, after making a random, durable one if there was none; two at once get the same one."""

    @abstractmethod
    def hold_to(self, identity: str) -> bool:
        """Whether this is the place with that identity; from now on nothing is written to any other."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether the place is there; if not, it may come back."""

    @abstractmethod
    def refuse_unusable(self) -> None:
        """Raise InputMissing if no worker could write there."""

    @abstractmethod
    def refuse_unreadable(self) -> None:
        """Raise ArtifactCorrupt or StorageFailed if nothing could be read here."""

    def contains(self, _path: Path) -> bool:
        """Whether a file at this path of the machine would be among the artifacts."""
        return False

    @abstractmethod
    def publish(self, name: ArtifactName, data: bytes, *, on_step: OnStep = ignore_step) -> ArtifactRef:
        """Write an artifact, durable under its final name when this returns; ReceiptConflict if it exists.

        This never makes the place itself. Raises LeaseLost if a sweep has removed the staged file: it removes
        nothing of a live lease.
        """

    def publish_requeued(self, fence: Fence, data: bytes) -> str:
        """Write a durable mark that attempts up to this fence do not count; returns its name."""
        name = f"{REQUEUED}/{fence:04d}-{random_part()}.json"
        self._write_mark(name, data)
        return name

    @abstractmethod
    def _write_mark(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def requeued(self) -> Iterator[tuple[str, bytes]]:
        """Every requeue mark: its name and its bytes."""

    @abstractmethod
    def names(self) -> Iterator[ArtifactName]:
        """Every artifact, recorded or not, shard by shard and sorted; none if the place is not there."""

    def staged(self, _layout: Layout) -> Iterator[ArtifactName]:
        """The names of artifacts that are staged but not published: none, unless a store stages files."""
        return iter(())

    def listing(self, layout: Layout) -> Listing:
        """All files, by their names only; requeue marks and the identity do not count as strangers."""
        files: list[FoundFile] = []
        strangers: list[str] = []
        for path, name in self._files_found(layout):
            if name is not None and name.slice_in(layout) is not None:
                files.append(FoundFile(path=path, name=name, is_staged=path != str(name)))
            else:
                strangers.append(path)
        return Listing(files=tuple(files), strangers=tuple(strangers))

    @abstractmethod
    def _files_found(self, layout: Layout) -> Iterator[tuple[str, ArtifactName | None]]:
        """Each path, with its artifact, published or not; foreign folders as `name/`."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """How many bytes a file of the listing has; None if it is gone."""

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the artifact's bytes after checking size and sha256."""
        buffer = bytearray(ref.size_bytes)
        self.fill(ref, memoryview(buffer))
        refuse_changed(ref, len(buffer), buffer)
        return bytes(buffer)

    @abstractmethod
    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes`; `refuse_changed` checks the bytes."""

    @abstractmethod
    def read_unrecorded(self, path: ArtifactName | str) -> bytes:
        """Return the bytes of a file of the listing that no receipt vouches for.

        Raises ArtifactCorrupt if it is not a regular file or too large for an artifact, else
        StorageFailed, with the OSError as its cause, also when the file is gone.
        """

    @abstractmethod
    def remove(self, paths: Iterable[str], *, on_removed: Callable[[], None] = lambda: None) -> None:
        """Remove files of the listing durably; missing ones are fine."""


def is_mark(file: str) -> bool:
    """Whether a file in the folder of marks has a mark's name."""
    return _MARK_NAME.fullmatch(file) is not None


def parse_identity(data: bytes, place: str, *, hint: str) -> str:
    """The identity in its file's bytes. Raises ArtifactCorrupt."""
    text = data.decode("ascii", errors="replace")
    if _IDENTITY.fullmatch(text) is None:
        raise ArtifactCorrupt(f"{place}: does not hold 32 hexadecimal digits", hint=hint)
    return text.rstrip()


def refuse_foreign_name(ref: ArtifactRef) -> None:
    """Raise ArtifactCorrupt for a recorded name that could point out of the store."""
    if not is_artifact_name(ref.name):
        raise ArtifactCorrupt(f"{ref.name}: is not an artifact's name", hint=PUT_BACK)


def gone(ref: ArtifactRef) -> ArtifactMissing:
    """The error for an artifact that is gone while its receipt is there."""
    return ArtifactMissing(f"{ref.name}: is gone, but its receipt is there", hint=PUT_BACK)


def name_taken(place: str) -> ReceiptConflict:
    """The error for a name that is in use."""
    return ReceiptConflict(
        f"{place}: exists already; artifacts are never overwritten",
        hint="lease the slice again: a new attempt has a new name",
    )


def refuse_size(ref: ArtifactRef, size: int) -> None:
    """Raise ArtifactCorrupt unless the artifact has this many bytes."""
    if size != ref.size_bytes:
        raise ArtifactCorrupt(
            f"{ref.name}: is {size} bytes, the receipt says {ref.size_bytes}", hint=PUT_BACK
        )


def refuse_changed(ref: ArtifactRef, size: int, data: bytes | bytearray | memoryview) -> None:
    """Raise ArtifactCorrupt unless these are the artifact's bytes; with a wrong size `data` may be empty."""
    refuse_size(ref, size)
    found = hashlib.sha256(data).hexdigest()
    if found != ref.sha256:
        raise ArtifactCorrupt(
            f"{ref.name}: sha256 is {found[:12]}…, the receipt says {ref.sha256[:12]}…", hint=PUT_BACK
        )


def ref_of(name: ArtifactName, data: bytes) -> ArtifactRef:
    """What a receipt says about a published artifact."""
    return ArtifactRef(name=str(name), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def place_away(shown: str) -> StorageFailed:
    """The error for an artifact folder that may come back: a disk or share that is not mounted."""
    return StorageFailed(
        f"{shown}: the folder that this run's workers write their artifacts to is not there",
        hint="mount it, or set [artifacts] url; if it is lost: shardgen verify RUN_DIR --requeue",
    )

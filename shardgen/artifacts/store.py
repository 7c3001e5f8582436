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
    """Every artifact and staged file, and the paths that none of ours has."""

    files: tuple[FoundFile, ...]
    strangers: tuple[str, ...]


class ArtifactReader(Protocol):
    """Who has the bytes of recorded artifacts, for those who only read them. Thread-safe."""

    @property
    def reads_at_once(self) -> int:
        """How many artifacts to read at a time, so that none waits long for the one before; 1: none does."""
        ...

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the artifact's bytes after its size and sha256 passed."""
        ...

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes`; whether the bytes are right, `refuse_changed` says."""
        ...


class ArtifactStore(ABC):
    """Artifacts in one place, each written once and never changed: an ArtifactReader that writes, too.

    `shown` is the place as messages name it. Every method raises StorageFailed for what may pass by itself:
    what lies in a place that cannot be read is not known.
    """

    reads_at_once: ClassVar[int] = 1
    other_place: ClassVar[str]
    """What to type where this turns out not to be the place that the run's workers write to."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def place(self, name: ArtifactName | str) -> str:
        """What lies here under a name, as messages name it."""
        return f"{self.shown}/{name}"

    @abstractmethod
    def identity(self) -> str | None:
        """What tells this place from every other, under whatever path; None when it has nothing of that.

        Raises ArtifactCorrupt when it does not read as one.
        """

    @abstractmethod
    def make_identity(self) -> str:
        """The same, made at random and durable if there was none; of two at once both get the same."""

    @abstractmethod
    def hold_to(self, identity: str) -> bool:
        """Whether this is the place with that identity; from here on nothing is written to any other."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether there is such a place; if not, it may come back."""

    @abstractmethod
    def refuse_unusable(self) -> None:
        """Raise InputMissing when no worker could write there."""

    @abstractmethod
    def refuse_unreadable(self) -> None:
        """Raise ArtifactCorrupt or StorageFailed when nothing could be read here."""

    def contains(self, _path: Path) -> bool:
        """Whether what is written to this path of the machine would lie among the artifacts."""
        return False

    @abstractmethod
    def publish(self, name: ArtifactName, data: bytes, *, on_step: OnStep = ignore_step) -> ArtifactRef:
        """Durable under its final name when this returns; ReceiptConflict when that name exists.

        The place itself is never made here. Raises LeaseLost when a sweep has taken what was staged: it takes
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
        """Every requeued mark: its name and its bytes."""

    @abstractmethod
    def names(self) -> Iterator[ArtifactName]:
        """Every artifact, recorded or not, shard by shard and sorted; none when there is no place."""

    def staged(self, _layout: Layout) -> Iterator[ArtifactName]:
        """What files were to become that were begun and are not published: none, unless a store stages."""
        return iter(())

    def listing(self, layout: Layout) -> Listing:
        """All files, by name alone; marks of requeues and the identity are no strangers."""
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
        """Each path, and the artifact that it is or was to become; folders of others as `name/`."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """How many bytes a file of the listing has; None when it is gone."""

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the artifact's bytes after its size and sha256 passed."""
        buffer = bytearray(ref.size_bytes)
        self.fill(ref, memoryview(buffer))
        refuse_changed(ref, len(buffer), buffer)
        return bytes(buffer)

    @abstractmethod
    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes`; whether the bytes are right, `refuse_changed` says."""

    @abstractmethod
    def read_unrecorded(self, path: ArtifactName | str) -> bytes:
        """Return the bytes of a file of the listing that no receipt vouches for.

        Raises ArtifactCorrupt for what is no regular file or larger than an artifact can be, else
        StorageFailed, with the OSError as its cause, also when the file is gone.
        """

    @abstractmethod
    def remove(self, paths: Iterable[str], *, on_removed: Callable[[], None] = lambda: None) -> None:
        """Remove files of the listing durably; one that is gone already is fine."""


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
    """The error of an artifact that has only its receipt left."""
    return ArtifactMissing(f"{ref.name}: is gone, but its receipt is there", hint=PUT_BACK)


def name_taken(place: str) -> ReceiptConflict:
    """The error of a name that is in use."""
    return ReceiptConflict(
        f"{place}: exists already; artifacts are never overwritten",
        hint="lease the slice again: a new attempt has a new name",
    )


def refuse_size(ref: ArtifactRef, size: int) -> None:
    """Raise ArtifactCorrupt unless the artifact has so many bytes."""
    if size != ref.size_bytes:
        raise ArtifactCorrupt(
            f"{ref.name}: is {size} bytes, the receipt says {ref.size_bytes}", hint=PUT_BACK
        )


def refuse_changed(ref: ArtifactRef, size: int, data: bytes | bytearray | memoryview) -> None:
    """Raise ArtifactCorrupt unless these are the artifact's bytes; of a wrong size none need be given."""
    refuse_size(ref, size)
    found = hashlib.sha256(data).hexdigest()
    if found != ref.sha256:
        raise ArtifactCorrupt(
            f"{ref.name}: sha256 is {found[:12]}…, the receipt says {ref.sha256[:12]}…", hint=PUT_BACK
        )


def ref_of(name: ArtifactName, data: bytes) -> ArtifactRef:
    """What a receipt says of a published artifact."""
    return ArtifactRef(name=str(name), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def place_away(shown: str) -> StorageFailed:
    """The error of an artifact folder that may come back: a disk or a share that is not mounted."""
    return StorageFailed(
        f"{shown}: the folder that this run's workers write their artifacts to is not there",
        hint="mount it, or set [artifacts] url; if it is lost: shardgen verify RUN_DIR --requeue",
    )

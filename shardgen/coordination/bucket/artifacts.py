"""Artifacts in a bucket: each is one create-only request, so there is no staging and nothing half written."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator

from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.store import (
    IDENTITY,
    MAX_ARTIFACT_BYTES,
    MAX_IDENTITY_BYTES,
    MAX_MARK_BYTES,
    PUT_BACK,
    REQUEUED,
    SHARD,
    ArtifactStore,
    gone,
    is_mark,
    name_taken,
    parse_identity,
    ref_of,
    refuse_changed,
    refuse_foreign_name,
)
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.probe import probe_before
from shardgen.domain.layout import Layout
from shardgen.domain.receipt import ArtifactRef
from shardgen.domain.steps import BatchStep, OnStep, ignore_step
from shardgen.errors import ArtifactCorrupt, ReceiptConflict, StorageFailed
from shardgen.storage.bounded import Irregular


class BucketStore(ArtifactStore):
    """Artifacts under a prefix; `folder` is where they begin in it ("" or such as "artifacts/").

    `at_the_door` are the same objects, for who must not wait long before being told what is wrong.
    """

    reads_at_once = 16  # a round trip is some 50 ms, an artifact some 100 kB
    other_place = (
        "set [artifacts] url to the same prefix of the same bucket on every machine, "
        "and the same AWS_ENDPOINT_URL"
    )

    def __init__(self, objects: Objects, folder: str = "", *, at_the_door: Objects | None = None) -> None:
        super().__init__(f"{objects.shown}/{folder}".rstrip("/"))
        self.objects = objects
        self._at_the_door = at_the_door or objects
        self._folder = folder

    def _key(self, path: ArtifactName | str) -> str:
        return f"{self._folder}{path}"

    def identity(self) -> str | None:
        """From the object `folder-id`."""
        place = self.place(IDENTITY)
        hint = f"remove that object; then {PUT_BACK}"
        try:
            data = self.objects.read(self._key(IDENTITY), limit=MAX_IDENTITY_BYTES)
        except Irregular as error:
            raise ArtifactCorrupt(f"{place}: {error.strerror}", hint=hint) from error
        return None if data is None else parse_identity(data, place, hint=hint)

    def make_identity(self) -> str:
        """Created once: of two at once one makes it, and both read it."""
        found = self.identity()
        while found is None:
            self.objects.create(self._key(IDENTITY), f"{secrets.token_hex(16)}\n".encode())
            found = self.identity()
        return found

    def hold_to(self, identity: str) -> bool:
        """A url names the same prefix for as long as a process lives."""
        return self.identity() == identity

    def is_there(self) -> bool:
        """Always: a bucket that cannot be asked raises StorageFailed."""
        return True

    def refuse_unusable(self) -> None:
        """Also a store that ignores what makes an identity one: raises ManifestMismatch, too."""
        probe_before(self._at_the_door, is_short=True)

    def refuse_unreadable(self) -> None:
        """By a listing."""
        next(self._at_the_door.pages(self._folder), None)

    def publish(self, name: ArtifactName, data: bytes, *, on_step: OnStep = ignore_step) -> ArtifactRef:
        """In one request, whole or not at all."""
        if not self.objects.create(self._key(name), data):
            raise name_taken(self.place(name))
        on_step(BatchStep.PUBLISHED)
        return ref_of(name, data)

    def _write_mark(self, name: str, data: bytes) -> None:
        if not self.objects.create(self._key(name), data):
            raise ReceiptConflict(f"{self.place(name)}: exists already", hint="type the command again")

    def requeued(self) -> Iterator[tuple[str, bytes]]:
        """A mark that is larger than any is ArtifactCorrupt; one that went away since the listing is none."""
        for key in self._keys(REQUEUED):
            if is_mark(key.removeprefix(f"{REQUEUED}/")):
                try:
                    data = self.objects.read(self._key(key), limit=MAX_MARK_BYTES)
                except Irregular as error:
                    raise ArtifactCorrupt(
                        f"{key}: {error.strerror}", hint="put the mark itself back in its place"
                    ) from error
                if data is not None:
                    yield key, data

    def names(self) -> Iterator[ArtifactName]:
        """Page by page."""
        for key in self._keys(after=SHARD):
            if not key.startswith(SHARD):
                return
            name = ArtifactName.parse(key)
            if name is not None:
                yield name

    def _files_found(self, layout: Layout) -> Iterator[tuple[str, ArtifactName | None]]:
        del layout
        others = ""
        for key in self._keys():
            folder, *below = key.split("/", 2)
            if folder in (IDENTITY, REQUEUED):
                continue
            depth = 2 if folder.startswith(SHARD) else 1
            if len(below) < depth:
                yield key, ArtifactName.parse(key)
                continue
            path = "/".join((folder, *below)[:depth]) + "/"  # whatever lies below it
            if path != others:
                others = path
                yield path, None

    def _keys(self, below: str = "", *, after: str = "") -> Iterator[str]:
        """Names from here on, ascending."""
        for page in self.objects.pages(self._key(below), after=self._key(after) if after else ""):
            for one in page:
                yield one.key.removeprefix(self._folder)

    def size(self, path: str) -> int | None:
        """By asking for its head."""
        return self.objects.size(self._key(path))

    def read(self, ref: ArtifactRef) -> bytes:
        """In one request."""
        refuse_foreign_name(ref)
        try:
            data = self.objects.read(self._key(ref.name), limit=ref.size_bytes)
        except Irregular:  # larger
            data, size = b"", self.objects.size(self._key(ref.name))
        else:
            size = None if data is None else len(data)
        if data is None or size is None:
            raise gone(ref)
        refuse_changed(ref, size, data)
        return data

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """In one request, then copied."""
        buffer[:] = self.read(ref)

    def read_unrecorded(self, path: ArtifactName | str) -> bytes:
        """In one request."""
        try:
            data = self.objects.read(self._key(path), limit=MAX_ARTIFACT_BYTES)
        except Irregular as error:
            raise ArtifactCorrupt(f"{path}: {error.strerror}", hint=PUT_BACK) from error
        if data is None:
            message = f"{self.place(path)}: is gone"
            raise StorageFailed(message, hint="run the command again") from FileNotFoundError(message)
        return data

    def remove(self, paths: Iterable[str], *, on_removed: Callable[[], None] = lambda: None) -> None:
        """One after the other: what keeps others away is asked before each."""
        for path in paths:
            self.objects.remove([self._key(path)])
            on_removed()

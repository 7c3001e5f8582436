"""The artifact folder: files appear whole under their final name, or not at all."""

from __future__ import annotations

import errno
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from shardgen.artifacts.names import ArtifactName, is_artifact_name
from shardgen.artifacts.zip_records import FULL_32
from shardgen.domain.identifiers import Fence
from shardgen.domain.receipt import ArtifactRef
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ArtifactCorrupt, ArtifactMissing, LeaseLost, ReceiptConflict, StorageFailed
from shardgen.storage.atomic import publish_file, publish_staged, random_part
from shardgen.storage.bounded import Irregular, read_regular
from shardgen.storage.files import (
    DiskFiles,
    entries,
    is_folder,
    is_link,
    is_there,
    refuse_unusable_folder,
    storage_error,
    storing,
)

STAGING = ".staging"
REQUEUED = "requeued"
MAX_ARTIFACT_BYTES = FULL_32 - 1
MAX_MARK_BYTES = 1 << 28  # names 30 million batches
IDENTITY = "folder-id"
_SHARD = "shard-"  # how the names of the folders of artifacts begin
_MARK_NAME = re.compile(r"[0-9]{4,15}-[0-9a-z]{8}\.json")
_IDENTITY = re.compile(r"[0-9a-f]{32}\n")
_MAX_IDENTITY_BYTES = 1 << 10
_PUT_BACK = "shardgen verify RUN_DIR --requeue"  # exactly the bad batches
_IRREGULAR = {errno.ELOOP: "is a link, which is not followed", errno.ENXIO: "is not a regular file"}


class ArtifactReader(Protocol):
    """Who has the bytes of recorded artifacts, for those who only read them."""

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the artifact's bytes after its size and sha256 passed."""
        ...

    def read_into(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes` with the artifact's bytes and check size and sha256."""
        ...


class ArtifactStore:
    """Artifacts under one folder, each written once and never changed: an ArtifactReader that writes, too."""

    def __init__(self, root: Path, *, files: DiskFiles | None = None) -> None:
        self.root = root
        self._files = files or DiskFiles()
        self._durable_folders: set[Path] = set()
        self._real_folders: set[str] = set()
        self._held_to: str | None = None

    def hold_to(self, identity: str) -> None:
        """From here on a folder is made only inside the artifact folder with this identity."""
        self._held_to = identity

    def refuse_links(self) -> None:
        """Raise ArtifactCorrupt for a link in the place of one of its folders: nothing is read through it."""
        for entry in entries(self.root):
            if entry.name in (STAGING, REQUEUED) or entry.name.startswith(_SHARD):
                self._refuse_link(entry.name)

    def _refuse_link(self, folder: str) -> None:
        """Look once at each folder, as every artifact is read through one."""
        if folder not in self._real_folders:
            refuse_link(self.root / folder)
            self._real_folders.add(folder)

    def identity(self) -> str | None:
        """What tells this folder from every other, under whatever path; None when it has nothing of that.

        Raises ArtifactCorrupt when it does not read as one.
        """
        path = self.root / IDENTITY
        try:
            text = read_regular(path, limit=_MAX_IDENTITY_BYTES).decode("ascii", errors="replace")
        except FileNotFoundError:
            return None
        except Irregular as error:
            raise ArtifactCorrupt(f"{path}: {error.strerror}", hint=f"move {path} away") from error
        except OSError as error:
            raise storage_error(error, path) from error
        if _IDENTITY.fullmatch(text) is None:
            raise ArtifactCorrupt(
                f"{path}: does not hold 32 hexadecimal digits",
                hint=f"rm {path}; then shardgen verify RUN_DIR --requeue",
            )
        return text.rstrip()

    def refuse_unusable(self) -> None:
        """Raise InputMissing when files can neither be written in the folder nor the folder be made."""
        refuse_unusable_folder(self.root, makes=1, otherwise="correct [artifacts] url in shardgen.toml")

    def make_identity(self) -> str:
        """The same, made at random and durable if there was none; of two at once both get the same."""
        found = self.identity()
        while found is None:
            with storing(self.root):
                self._files.make_folder(self.root)
                self._files.fsync_folder(self.root.parent)
            publish_file(self.root / IDENTITY, f"{secrets.token_hex(16)}\n".encode(), files=self._files)
            found = self.identity()
        return found

    def publish(self, name: ArtifactName, data: bytes, *, on_step: OnStep = ignore_step) -> ArtifactRef:
        """Durable under its final name when this returns; ReceiptConflict when that name exists.

        The artifact folder itself is never made here. Raises LeaseLost when the staged file was taken
        meanwhile: a sweep takes none of a live lease.
        """
        target = self.root / str(name)
        staged = self.root / STAGING / f"{target.name}.{random_part()}"
        try:
            self._make_durable(target.parent)
            self._make_durable(staged.parent)
            is_new = publish_staged(self._files, data, staged=staged, target=target, on_step=on_step)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and _was_swept(staged, target):
                raise LeaseLost(
                    f"{target}: its staged file was swept away: the slice was taken over",
                    hint="lease another slice",
                ) from error
            # When the artifact folder comes back, as a copy perhaps, these may be missing in it.
            self._durable_folders -= {target.parent, staged.parent}
            raise storage_error(error, target) from error
        if not is_new:
            raise ReceiptConflict(
                f"{target}: exists already; artifacts are never overwritten",
                hint="lease the slice again: a new attempt has a new name",
            )
        return ArtifactRef(name=str(name), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def publish_requeued(self, fence: Fence, data: bytes) -> str:
        """Write a durable mark that attempts up to this fence do not count; returns its name."""
        name = f"{REQUEUED}/{fence:04d}-{random_part()}.json"
        with storing(self.root / REQUEUED):
            self._make_durable(self.root / REQUEUED)
        publish_file(self.root / name, data, files=self._files)
        return name

    def requeued(self) -> Iterator[tuple[str, bytes]]:
        """Every requeued mark: its name and its bytes."""
        self._refuse_link(REQUEUED)
        for entry in entries(self.root / REQUEUED):
            if _MARK_NAME.fullmatch(entry.name):
                name, path = f"{REQUEUED}/{entry.name}", Path(entry.path)
                try:
                    yield name, read_regular(path, limit=MAX_MARK_BYTES, follow=False)
                except Irregular as error:
                    raise ArtifactCorrupt(
                        f"{name}: {error.strerror}", hint="put the mark itself back in its place"
                    ) from error
                except OSError as error:
                    raise storage_error(error, path) from error

    def names(self) -> Iterator[ArtifactName]:
        """Every artifact there is, recorded or not, shard by shard and sorted.

        None when there is no folder. Raises ArtifactCorrupt for a link in the place of a shard's folder,
        StorageFailed for a folder that cannot be read: what lies in it is not known.
        """
        for folder in entries(self.root):
            if not folder.name.startswith(_SHARD):
                continue
            self._refuse_link(folder.name)
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in entries(Path(folder.path)):
                name = ArtifactName.parse(f"{folder.name}/{file.name}")
                if name is not None:
                    yield name

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the artifact's bytes after its size and sha256 passed."""
        buffer = bytearray(ref.size_bytes)
        self.read_into(ref, memoryview(buffer))
        return bytes(buffer)

    def read_unrecorded(self, name: ArtifactName) -> bytes:
        """Return the bytes of an artifact that no receipt vouches for.

        Raises ArtifactCorrupt for what is no regular file or larger than an artifact can be, else
        StorageFailed, with the OSError as its cause, also when the file is gone.
        """
        path = self.root / str(name)
        self._refuse_link(path.parent.name)
        try:
            return read_regular(path, limit=MAX_ARTIFACT_BYTES, follow=False)
        except Irregular as error:
            raise ArtifactCorrupt(f"{name}: {error.strerror}", hint=_PUT_BACK) from error
        except OSError as error:
            raise storage_error(error, path) from error

    def read_into(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes` with the artifact's bytes and check size and sha256."""
        path = f"{self.root}/{ref.name}"
        if not is_artifact_name(ref.name):
            raise ArtifactCorrupt(f"{ref.name}: is not an artifact's name", hint=_PUT_BACK)
        self._refuse_link(ref.name.partition("/")[0])
        try:
            descriptor = self._files.open(path, follow=False)
            try:
                size = self._files.size(descriptor)
                if size == ref.size_bytes:
                    size = self._files.read_into(descriptor, buffer, 0)
            finally:
                self._files.close(descriptor)
        except FileNotFoundError as error:
            raise ArtifactMissing(f"{ref.name}: is gone, its receipt is there", hint=_PUT_BACK) from error
        except OSError as error:
            if fact := _IRREGULAR.get(error.errno or 0):
                raise ArtifactCorrupt(f"{ref.name}: {fact}", hint=_PUT_BACK) from error
            raise storage_error(error, path) from error
        if size != ref.size_bytes:
            raise ArtifactCorrupt(
                f"{ref.name}: is {size} bytes, the receipt says {ref.size_bytes}", hint=_PUT_BACK
            )
        found = hashlib.sha256(buffer).hexdigest()
        if found != ref.sha256:
            raise ArtifactCorrupt(
                f"{ref.name}: sha256 is {found[:12]}…, the receipt says {ref.sha256[:12]}…", hint=_PUT_BACK
            )

    def remove(self, paths: Iterable[str], *, on_removed: Callable[[], None] = lambda: None) -> None:
        """Remove files, named from the artifact folder on, durably; one that is gone already is fine."""
        folders: set[Path] = set()
        for relative in paths:
            path = self.root / relative
            with storing(path), suppress(FileNotFoundError):
                self._files.unlink(path)
            folders.add(path.parent)
            on_removed()
        for folder in sorted(folders):
            with storing(folder):
                self._files.fsync_folder(folder)

    def _make_durable(self, folder: Path) -> None:
        """Create a folder in the root; once per process sync that, as its maker may have died before it.

        Raises StorageFailed when another folder lies under the root's name: an empty mount point would be
        taken for it, and receipts be given for what no other machine finds.
        """
        if folder in self._durable_folders:
            return
        if self._held_to is not None and self.identity() != self._held_to:
            raise folder_away(self.root)
        if not self._files.make_folder(folder):
            self._refuse_link(folder.name)
        self._files.fsync_folder(self.root)
        self._durable_folders.add(folder)


def _was_swept(staged: Path, target: Path) -> bool:
    return is_folder(staged.parent) and is_folder(target.parent) and not is_there(staged)


def folder_away(root: Path) -> StorageFailed:
    """The error of an artifact folder that may come back: a disk or a share that is not mounted."""
    return StorageFailed(
        f"{root}: the folder that this run's workers write their artifacts to is not there",
        hint="mount it, or set [artifacts] url; if it is lost: shardgen verify RUN_DIR --requeue",
    )


def refuse_link(folder: Path) -> None:
    """Raise ArtifactCorrupt for a link in a folder's place: only the artifact folder itself may be one."""
    if is_link(folder):
        raise ArtifactCorrupt(
            f"{folder}: is a link, which is not followed",
            hint=f"put the folder itself there, or make a link of {folder.parent} as a whole",
        )

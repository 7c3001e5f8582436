"""The artifact folder: files are staged, synced and linked to their final name."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from shardgen.artifacts.names import ArtifactName, staged_artifact
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
    place_away,
    ref_of,
    refuse_foreign_name,
    refuse_size,
)
from shardgen.domain.layout import Layout
from shardgen.domain.receipt import ArtifactRef
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ArtifactCorrupt, LeaseLost
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
_IRREGULAR = {errno.ELOOP: "is a link, which is not followed", errno.ENXIO: "is not a regular file"}


class FolderStore(ArtifactStore):
    """Artifacts under one folder, which may be a mounted one."""

    other_place = (
        "set [artifacts] url to a folder that every machine reaches, the same for all (is it mounted?)"
    )

    def __init__(self, root: Path, *, files: DiskFiles | None = None) -> None:
        super().__init__(str(root))
        self.root = root
        self._files = files or DiskFiles()
        self._durable_folders: set[Path] = set()
        self._real_folders: set[str] = set()
        self._held_to: str | None = None

    def hold_to(self, identity: str) -> bool:
        """From here on a folder is made only inside the artifact folder with this identity."""
        if self.identity() != identity:
            return False
        self._held_to = identity
        return True

    def is_there(self) -> bool:
        """False for a disk or a share that is not mounted."""
        return is_folder(self.root)

    def contains(self, path: Path) -> bool:
        """Links are followed."""
        return path.resolve().is_relative_to(self.root.resolve())

    def refuse_unreadable(self) -> None:
        """Raise ArtifactCorrupt for a link in the place of one of its folders: nothing is read through it."""
        for entry in entries(self.root):
            if entry.name in (STAGING, REQUEUED) or entry.name.startswith(SHARD):
                self._refuse_link(entry.name)

    def _refuse_link(self, folder: str) -> None:
        """Look once at each folder, as every artifact is read through one."""
        if folder not in self._real_folders:
            _refuse_link(self.root / folder)
            self._real_folders.add(folder)

    def identity(self) -> str | None:
        """From the file `folder-id`."""
        path = self.root / IDENTITY
        try:
            data = read_regular(path, limit=MAX_IDENTITY_BYTES)
        except FileNotFoundError:
            return None
        except Irregular as error:
            raise ArtifactCorrupt(f"{path}: {error.strerror}", hint=f"move {path} away") from error
        except OSError as error:
            raise storage_error(error, path) from error
        return parse_identity(data, str(path), hint=f"rm {path}; then {PUT_BACK}")

    def refuse_unusable(self) -> None:
        """Raise InputMissing when files can neither be written in the folder nor the folder be made."""
        refuse_unusable_folder(self.root, makes=1, otherwise="correct [artifacts] url in shardgen.toml")

    def make_identity(self) -> str:
        """In the folder, which is made only here."""
        found = self.identity()
        while found is None:
            with storing(self.root):
                self._files.make_folder(self.root)
                self._files.fsync_folder(self.root.parent)
            publish_file(self.root / IDENTITY, f"{secrets.token_hex(16)}\n".encode(), files=self._files)
            found = self.identity()
        return found

    def publish(self, name: ArtifactName, data: bytes, *, on_step: OnStep = ignore_step) -> ArtifactRef:
        """Staged, synced, and linked to its final name."""
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
            raise name_taken(str(target))
        return ref_of(name, data)

    def _write_mark(self, name: str, data: bytes) -> None:
        with storing(self.root / REQUEUED):
            self._make_durable(self.root / REQUEUED)
        publish_file(self.root / name, data, files=self._files)

    def requeued(self) -> Iterator[tuple[str, bytes]]:
        """A mark that is no regular file is ArtifactCorrupt."""
        self._refuse_link(REQUEUED)
        for entry in entries(self.root / REQUEUED):
            if is_mark(entry.name):
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
        """Raises ArtifactCorrupt for a link in the place of a shard's folder."""
        for folder in entries(self.root):
            if not folder.name.startswith(SHARD):
                continue
            self._refuse_link(folder.name)
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in entries(Path(folder.path)):
                name = ArtifactName.parse(f"{folder.name}/{file.name}")
                if name is not None:
                    yield name

    def staged(self, layout: Layout) -> Iterator[ArtifactName]:
        """Raises ArtifactCorrupt for a link in the place of the staging folder."""
        self._refuse_link(STAGING)
        for entry in entries(self.root / STAGING):
            name = staged_artifact(entry.name, layout)
            if name is not None and name.slice_in(layout) is not None:
                yield name

    def _files_found(self, layout: Layout) -> Iterator[tuple[str, ArtifactName | None]]:
        for path in self._below():
            folder, _, file = path.rpartition("/")
            yield path, staged_artifact(file, layout) if folder == STAGING else ArtifactName.parse(path)

    def _below(self) -> Iterator[str]:
        for entry in entries(self.root):
            is_ours = entry.name == STAGING or entry.name.startswith(SHARD)
            # The identity may have been left half written by a kill, under a name that begins with a dot.
            if entry.name == REQUEUED or entry.name.removeprefix(".").startswith(IDENTITY):
                continue
            if is_ours:
                self._refuse_link(entry.name)
            if not is_ours or not entry.is_dir(follow_symlinks=False):
                yield entry.name
                continue
            for inner in entries(Path(entry.path)):
                yield f"{entry.name}/{inner.name}" + ("/" if inner.is_dir(follow_symlinks=False) else "")

    def size(self, path: str) -> int | None:
        """By the folder."""
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None  # its writer has removed it
        except OSError as error:
            raise storage_error(error, self.root / path) from error

    def read_unrecorded(self, path: ArtifactName | str) -> bytes:
        """A link is not followed."""
        file = self.root / str(path)
        self._refuse_link(file.parent.name)
        try:
            return read_regular(file, limit=MAX_ARTIFACT_BYTES, follow=False)
        except Irregular as error:
            raise ArtifactCorrupt(f"{path}: {error.strerror}", hint=PUT_BACK) from error
        except OSError as error:
            raise storage_error(error, file) from error

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Straight into the buffer."""
        path = f"{self.root}/{ref.name}"
        refuse_foreign_name(ref)
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
            raise gone(ref) from error
        except OSError as error:
            if fact := _IRREGULAR.get(error.errno or 0):
                raise ArtifactCorrupt(f"{ref.name}: {fact}", hint=PUT_BACK) from error
            raise storage_error(error, path) from error
        refuse_size(ref, size)

    def remove(self, paths: Iterable[str], *, on_removed: Callable[[], None] = lambda: None) -> None:
        """Each folder is synced once, at the end."""
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
            raise place_away(self.shown)
        if not self._files.make_folder(folder):
            self._refuse_link(folder.name)
        self._files.fsync_folder(self.root)
        self._durable_folders.add(folder)


def _was_swept(staged: Path, target: Path) -> bool:
    return is_folder(staged.parent) and is_folder(target.parent) and not is_there(staged)


def _refuse_link(folder: Path) -> None:
    """Raise ArtifactCorrupt for a link in a folder's place: only the artifact folder itself may be one."""
    if is_link(folder):
        raise ArtifactCorrupt(
            f"{folder}: is a link, which is not followed",
            hint=f"put the folder itself there, or make a link of {folder.parent} as a whole",
        )

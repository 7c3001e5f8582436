"""Plain folders of files with a `metadata.csv`, as `imagefolder` reads them; for COCO with annotations."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shardgen.dataset.export.destination import Destination, Target, Written, damaged, in_the_way, synced
from shardgen.dataset.export.sources import Found
from shardgen.dataset.labels import generous_label_bytes
from shardgen.dataset.metadata import Metadata
from shardgen.dataset.output import METADATA
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.sample import member_name
from shardgen.domain.steps import ExportStep
from shardgen.errors import SampleError, StorageFailed
from shardgen.recipes.base import Recipe, csv_field
from shardgen.storage.atomic import random_part, rename_durably
from shardgen.storage.files import is_folder, storing

if TYPE_CHECKING:
    from shardgen.dataset.export.coco import CocoFile

ANNOTATIONS = "annotations"
_BLOCK_BYTES = 4096  # what a file takes at least
_ANNOTATION_BYTES = 4096  # a generous one, with its run lengths
_BUFFER_BYTES = 1 << 20
_NAMES_AT_ONCE = 4096
_PART_BYTES = 255  # between two slashes; hardly a file system has longer names
_NUMBERED = re.compile(r"numbered(-*)/")
_STAGED = re.compile(r"\.(?:files|metadata\.csv|instances_[a-z]+\.json)\.[0-9a-f]{8}\.part")


class Folders(Destination):
    """`OUT/[SPLIT/]fgbg/00000/0000005.jpg`, …: every file is compared with what is there, and replaced.

    With `annotated`, each split has a file of annotations in `OUT/annotations`.
    """

    def __init__(self, target: Target, *, annotated: bool = False) -> None:
        """Look at what is there; nothing is changed. Raises StorageFailed for a disk of too few files."""
        self._target, self._annotated = target, annotated
        self._metadata = Metadata(target.recipe)
        self._roots = [target.out / name if target.is_split else target.out for name in target.names]
        self._written = [Written() for _ in target.names]
        self._is_new: dict[Path, bool] = {}
        self._staged = target.out / f".files.{random_part()}.part"
        self._tables: list[_Table] = []
        self._coco: list[tuple[Path, Path, CocoFile]] = []
        self.bytes_there, files_there = _found_below(target.out)
        self._refuse_full_disk(sum(target.counts) * len(target.recipe.plan.outputs) - files_there)

    def needed_bytes(self, payload_bytes: int) -> int:
        """The files, each in blocks of its own, their labels, and annotations."""
        recipe = self._target.recipe
        labels = generous_label_bytes(recipe)
        of_a_sample = len(recipe.plan.outputs) * _BLOCK_BYTES + 2 * labels
        if self._annotated:
            of_a_sample += labels + _ANNOTATION_BYTES
        return payload_bytes + sum(self._target.counts) * of_a_sample

    def _refuse_full_disk(self, files: int) -> None:
        target, out = self._target, self._target.out
        with storing(out):
            free = target.files.free_files(out if is_folder(out) else out.parent)
        if free is not None and free < files:
            raise StorageFailed(
                f"{out}: needs {files:,} more files on its disk, which has room for {free:,} (df -i)",
                hint=f"remove {files - free:,} files there, or export to another disk, or as webdataset",
            )

    def claim(self) -> None:
        """Remove staged files, and begin the tables and annotations of all splits.

        Raises PlanConflict for what is in the way of them.
        """
        target, folder = self._target, self._target.out / ANNOTATIONS
        self._names = FileNames(target.recipe, self._metadata)
        folders = [target.out, *self._roots, *([folder] if self._annotated else [])]
        for one in dict.fromkeys(folders):
            self._folder(one)
            _remove_staged(one)
        for root in self._roots:
            _refuse_folder(root / METADATA)
            self._tables.append(_Table(root / METADATA, self._metadata.header))
        if self._annotated:
            from shardgen.dataset.export.coco import CocoFile  # noqa: PLC0415 - only who asks for COCO needs it

            for name in target.names:
                path = folder / f"instances_{name}.json"
                _refuse_folder(path)
                staged = path.with_name(f".{path.name}.{random_part()}.part")
                with storing(staged):
                    self._coco.append((path, staged, CocoFile(target.recipe, staged)))

    def wanted(self, splits: NDArray[np.int8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """All: only a whole shard could be believed by its name."""
        del places
        return np.ones(len(splits), np.bool_)

    def add(self, split: int, place: int, found: Found) -> bool:
        """Write what is missing, or another, of its files."""
        del place
        names, row = self._names.of(found)
        written = self._written[split]
        was_written = False
        for name, data in zip(names, found.files, strict=True):
            was_written |= self._put(self._roots[split] / name, data)
            written.size_bytes += len(data)
        written.files += len(names)
        self._tables[split].write(row)
        if self._annotated:
            sample = self._target.sample(found, self._metadata)
            outputs = (output.name for output in self._target.recipe.plan.outputs)
            path, _staged, coco = self._coco[split]
            try:
                with storing(path):
                    coco.add(sample, dict(zip(outputs, names, strict=True)))
            except SampleError as error:
                raise damaged(found, f"its files: {error}") from error
        self._target.on_step(ExportStep.WRITTEN)
        return was_written

    def _put(self, path: Path, data: bytes) -> bool:
        """Let a file hold these bytes; False when it did."""
        files = self._target.files
        is_new = self._folder(path.parent)
        with storing(path):
            if not is_new and _holds(path, data):
                return False
            descriptor = files.create(self._staged)
            try:
                files.write(descriptor, data)
            finally:
                files.close(descriptor)
            with _refusing_folders(path):
                files.rename(self._staged, path)
        return True

    def _folder(self, folder: Path) -> bool:
        """Make a folder; whether this export has made it, so that nothing else is in it.

        Below the exported folder a link is no folder: it may lead to somebody else's files.
        """
        known = self._is_new.get(folder)
        if known is None:
            is_below = folder != self._target.out
            if is_below:
                self._folder(folder.parent)
            with storing(folder):
                known = self._target.files.make_folder(folder)
                if is_below and not stat.S_ISDIR(folder.lstat().st_mode):
                    raise in_the_way(folder)
            self._is_new[folder] = known
        return known

    def finish(self) -> list[Written]:
        """Sync all files at once, then let tables and annotations have their names."""
        files = self._target.files
        for path, staged, coco in self._coco:
            with storing(path):
                coco.finish()
                synced(files, staged)
        for table in self._tables:
            table.close()
        os.sync()
        self._target.on_step(ExportStep.FILES_WRITTEN)
        finished = [(table.path, table.staged) for table in self._tables]
        finished += [(path, staged) for path, staged, _coco in self._coco]
        for split, (path, staged) in enumerate(finished):
            with storing(path):
                rename_durably(files, staged, path)
                written = self._written[split % len(self._written)]
                written.size_bytes += path.stat().st_size
                written.files += 1
        return self._written

    def abandon(self) -> None:
        """Remove what is staged."""
        for _path, staged, coco in self._coco:
            with suppress(OSError):
                coco.abandon()
            with suppress(OSError):
                staged.unlink(missing_ok=True)
        for table in self._tables:
            table.abandon()
        with suppress(OSError):
            self._staged.unlink(missing_ok=True)


class _Table:
    """The `metadata.csv` of a split while it is written."""

    def __init__(self, path: Path, header: bytes) -> None:
        self.path = path
        self.staged = path.with_name(f".{path.name}.{random_part()}.part")
        with storing(self.staged):
            self._file = self.staged.open("xb", buffering=_BUFFER_BYTES)
            self._file.write(header)

    def write(self, row: bytes) -> None:
        with storing(self.path):
            self._file.write(row)

    def close(self) -> None:
        with storing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def abandon(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.staged.unlink(missing_ok=True)


class FileNames:
    """Where the files of a sample lie, and its row of `metadata.csv` with these names.

    As in the zip. Of a recipe that names its samples by these names, which follow from the plan alone:

    1. with the suffix of the stored file in the place of their own;
    2. behind their own, where the first would be another's name but for the suffixes, or a folder;
    3. where that is a folder or another's name, too, or has a part of more than 255 bytes: as in the zip, in
       the folder `numbered`, with as many `-` behind it as it takes for no sample's name to begin with it.

    Memory is 32 bytes for each planned sample while it is made, and then 8 for each name that is taken.
    """

    def __init__(self, recipe: Recipe, metadata: Metadata) -> None:
        """Read the names of all planned samples, stored or not. Raises what reading the plan does."""
        self._recipe, self._outputs, self._digits = recipe, recipe.plan.outputs, recipe.plan.name_digits
        self._files = len(metadata.file_columns)
        self._page: dict[int, str] = {}
        self._suffixes = {f".{output.suffix}" for output in self._outputs}
        self._suffix = max(self._suffixes, key=len)
        if recipe.name_column:
            self._find_taken()

    def _find_taken(self) -> None:
        # Eight bytes for each name: a plan may have more names than fit into memory. Where two digests are
        # the same by chance, a name is longer than it need be, and that is all.
        names, stems, folders = array("Q"), array("Q"), array("Q")
        before, dashes = "", ""
        for start in range(0, self._recipe.plan.samples, _NAMES_AT_ONCE):
            for name in self._planned(start).values():
                names.append(_digest(name))
                if (stem := _stem(name)) != name:
                    stems.append(_digest(stem))
                folder = name.rpartition("/")[0]
                if folder != before:
                    folders.extend(map(_digest, self._like_files(folder)))
                    before = folder
                if (found := _NUMBERED.match(name)) is not None:
                    dashes = max(dashes, found[1] + "-")
        self._numbered = f"numbered{dashes}"
        self._taken = np.union1d(_repeated(names), folders)
        names.extend(stems)
        del stems
        self._taken_stems = np.union1d(_repeated(names), folders)

    def _like_files(self, folder: str) -> Iterator[str]:
        """A folder and those above it, as far as they are called as a file may be, without the suffix."""
        while folder:
            for suffix in self._suffixes:
                if folder.endswith(suffix):
                    yield folder.removesuffix(suffix)
            folder = folder.rpartition("/")[0]

    def of(self, found: Found) -> tuple[list[str], bytes]:
        """The names of its files, in the order of the outputs; and the row."""
        number = SampleIndex(found.number)
        names = [member_name(output, number, digits=self._digits) for output in self._outputs]
        if not self._recipe.name_column:
            return names, found.row
        if number not in self._page:
            self._page = self._planned(number - number % _NAMES_AT_ONCE)
        own = self._page[number]
        if (stem := self._free(own)) is not None:
            names = [f"{output.name}/{stem}.{output.suffix}" for output in self._outputs]
        else:
            names = [name.replace("/", f"/{self._numbered}/", 1) for name in names]
        rest = found.row.split(b",", self._files)[-1]  # the names in the zip hold no comma
        return names, ",".join(map(csv_field, names)).encode() + b"," + rest

    def _free(self, own: str) -> str | None:
        for stem, taken in ((_stem(own), self._taken_stems), (own, self._taken)):
            parts = f"{stem}{self._suffix}".split("/")
            if max(len(part.encode()) for part in parts) <= _PART_BYTES and not _holds_digest(taken, stem):
                return stem
        return None

    def _planned(self, start: int) -> dict[int, str]:
        """The names of some thousand planned samples."""
        samples = range(start, min(start + _NAMES_AT_ONCE, self._recipe.plan.samples))
        text = self._recipe.label_rows(samples, tail="\n", without=(), facts=None)
        column = self._recipe.label_columns.index(self._recipe.name_column)
        return {int(row[0]): row[column] for row in csv.reader(io.StringIO(text, newline=""))}


def _stem(name: str) -> str:
    """A name without its suffix; not pathlib's, which is another with another version of Python."""
    stem, _, suffix = name.rpartition(".")
    return name if "/" in suffix or not stem or stem.endswith("/") else stem


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _repeated(digests: array[int]) -> NDArray[np.uint64]:
    """Those that occur more than once; the digests are sorted where they lie."""
    ordered = np.frombuffer(digests, np.uint64)
    ordered.sort()
    found: NDArray[np.uint64] = ordered[1:][ordered[1:] == ordered[:-1]]
    return found


def _holds_digest(taken: NDArray[np.uint64], name: str) -> bool:
    digest = np.uint64(_digest(name))
    place = np.searchsorted(taken, digest)
    return bool(place < len(taken) and taken[place] == digest)


@contextmanager
def _refusing_folders(path: Path) -> Iterator[None]:
    """PlanConflict where a folder lies in the place of a file."""
    try:
        yield
    except IsADirectoryError as error:
        raise in_the_way(path) from error


def _refuse_folder(path: Path) -> None:
    with storing(path), suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            raise in_the_way(path)


def _holds(path: Path, data: bytes) -> bool:
    """Whether a regular file holds exactly these bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        is_as_long = stat.S_ISREG(found.st_mode) and found.st_size == len(data)
        return is_as_long and os.pread(descriptor, len(data) + 1, 0) == data
    finally:
        os.close(descriptor)


def _remove_staged(folder: Path) -> None:
    with storing(folder):
        if folder.is_dir():
            for path in folder.iterdir():
                if _STAGED.fullmatch(path.name):
                    with _refusing_folders(path):
                        path.unlink(missing_ok=True)


def _found_below(folder: Path) -> tuple[int, int]:
    """What the files below a folder take on the disk in bytes, and how many there are."""
    size_bytes = files = 0
    with storing(folder):
        for root, _folders, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    size_bytes += os.lstat(Path(root, name)).st_blocks * 512
                    files += 1
    return size_bytes, files

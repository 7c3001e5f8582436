"""Plain folders of files with a `metadata.csv`, as `imagefolder` reads them; for COCO with annotations."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shardgen.dataset.export.destination import Destination, Target, Written
from shardgen.dataset.export.sources import Found
from shardgen.dataset.labels import generous_label_bytes
from shardgen.dataset.metadata import Metadata
from shardgen.dataset.output import METADATA
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.sample import member_name
from shardgen.domain.steps import ExportStep
from shardgen.errors import ArtifactCorrupt, SampleError
from shardgen.recipes.base import Recipe, csv_field
from shardgen.storage.atomic import random_part, rename_durably
from shardgen.storage.files import make_folders, storing

if TYPE_CHECKING:
    from shardgen.dataset.export.coco import CocoFile

ANNOTATIONS = "annotations"
_BLOCK_BYTES = 4096  # what a file takes at least
_ANNOTATION_BYTES = 4096  # a generous one, with its run lengths
_BUFFER_BYTES = 1 << 20
_NAMES_AT_ONCE = 4096
_STAGED = re.compile(r"\.(?:files|metadata\.csv|instances_[a-z]+\.json)\.[0-9a-f]{8}\.part")


class Folders(Destination):
    """`OUT/[SPLIT/]fgbg/00000/0000005.jpg`, …: every file is compared with what is there, and replaced.

    With `annotated`, each split has a file of annotations in `OUT/annotations`.
    """

    def __init__(self, target: Target, *, annotated: bool = False) -> None:
        """Look at what is there; nothing is changed."""
        self._target, self._annotated = target, annotated
        self._metadata = Metadata(target.recipe)
        self._names = FileNames(target.recipe, self._metadata)
        self._roots = [target.out / name if target.is_split else target.out for name in target.names]
        self._written = [Written() for _ in target.names]
        self._is_new: dict[Path, bool] = {}
        self._staged = target.out / f".files.{random_part()}.part"
        self._tables: list[_Table] = []
        self._coco: list[tuple[Path, Path, CocoFile]] = []
        self.bytes_there = _bytes_below(target.out)

    def needed_bytes(self, payload_bytes: int) -> int:
        """The files, each in blocks of its own, their labels, and annotations."""
        recipe = self._target.recipe
        labels = generous_label_bytes(recipe)
        of_a_sample = len(recipe.plan.outputs) * _BLOCK_BYTES + 2 * labels
        if self._annotated:
            of_a_sample += labels + _ANNOTATION_BYTES
        return payload_bytes + sum(self._target.counts) * of_a_sample

    def claim(self) -> None:
        """Remove staged files, and begin the tables and annotations of all splits."""
        target, folder = self._target, self._target.out / ANNOTATIONS
        for one in {target.out, folder, *self._roots}:
            _remove_staged(one)
        for root in self._roots:
            self._folder(root)
            self._tables.append(_Table(root / METADATA, self._metadata.header))
        if self._annotated:
            from shardgen.dataset.export.coco import CocoFile  # noqa: PLC0415 - only who asks for COCO needs it

            self._folder(folder)
            for name in target.names:
                path = folder / f"instances_{name}.json"
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
                raise ArtifactCorrupt(f"the files of sample {found.number}: {error}") from error
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
            files.rename(self._staged, path)
        return True

    def _folder(self, folder: Path) -> bool:
        """Make a folder; whether this export has made it, so that nothing else is in it."""
        known = self._is_new.get(folder)
        if known is None:
            with storing(folder):
                known = not folder.is_dir()
                make_folders(folder)
            self._is_new[folder] = known
        return known

    def finish(self) -> list[Written]:
        """Sync all files at once, then let tables and annotations have their names."""
        files = self._target.files
        for path, staged, coco in self._coco:
            with storing(path):
                coco.finish()
                _sync(staged)
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

    As in the zip; of a recipe that names its samples, under their own names with the suffixes of the stored
    files. Where that would be one name for several, they keep their own suffixes before it.
    """

    def __init__(self, recipe: Recipe, metadata: Metadata) -> None:
        self._outputs, self._digits = recipe.plan.outputs, recipe.plan.name_digits
        self._metadata, self._column = metadata, recipe.name_column
        self._shared = _shared_stems(recipe) if recipe.name_column else frozenset()

    def of(self, found: Found) -> tuple[list[str], bytes]:
        """The names of its files, in the order of the outputs; and the row."""
        if not self._column:
            number, digits = SampleIndex(found.number), self._digits
            return [member_name(output, number, digits=digits) for output in self._outputs], found.row
        own = self._metadata.values(found.row)[self._column]
        stem = _stem(own)
        if _hash(stem) in self._shared:
            stem = own
        names = [f"{output.name}/{stem}.{output.suffix}" for output in self._outputs]
        rest = found.row.split(b",", len(names))[-1]  # the names in the zip hold no comma
        return names, ",".join(map(csv_field, names)).encode() + b"," + rest


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _hash(name: str) -> int:
    """Eight bytes for each name: a plan may have more names than fit into memory."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _shared_stems(recipe: Recipe) -> frozenset[int]:
    """The stems that are another sample's stem, or its name."""
    hashes = np.fromiter((_hash(one) for name in _names(recipe) for one in {name, _stem(name)}), np.uint64)
    hashes.sort()
    return frozenset(hashes[:-1][hashes[1:] == hashes[:-1]].tolist())


def _names(recipe: Recipe) -> Iterator[str]:
    """The names of all planned samples, stored or not: so they depend on the plan alone."""
    column = recipe.label_columns.index(recipe.name_column)
    for start in range(0, recipe.plan.samples, _NAMES_AT_ONCE):
        samples = range(start, min(start + _NAMES_AT_ONCE, recipe.plan.samples))
        text = recipe.label_rows(samples, tail="\n", without=(), facts=None)
        yield from (row[column] for row in csv.reader(text.splitlines(keepends=True)))


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_staged(folder: Path) -> None:
    with storing(folder):
        if folder.is_dir():
            for path in folder.iterdir():
                if _STAGED.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def _bytes_below(folder: Path) -> int:
    """What the files below a folder take on the disk; 0 where there is none."""
    found = 0
    with storing(folder):
        for root, _folders, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    found += os.lstat(Path(root, name)).st_blocks * 512
    return found

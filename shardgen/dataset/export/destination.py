"""Where the samples of an export go: into shards of many samples, or into plain folders (`files.py`)."""

from __future__ import annotations

import os
import re
import stat
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from shardgen.dataset.export.base import ExportSample, ShardWriter
from shardgen.dataset.export.sources import Found
from shardgen.dataset.labels import generous_label_bytes
from shardgen.dataset.metadata import Metadata
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.steps import ExportStep, OnStep
from shardgen.errors import ArtifactCorrupt, PlanConflict, ReceiptConflict
from shardgen.recipes.base import Recipe
from shardgen.storage.atomic import random_part, rename_durably
from shardgen.storage.files import DiskFiles, entries, storing

_MEMBER_BYTES = 1024  # what a file costs in a shard beside its bytes: a header, and a block that is not full


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is exported, and where: `counts` samples into each of the splits `names`."""

    recipe: Recipe
    out: Path
    names: tuple[str, ...]
    is_split: bool
    counts: Sequence[int]
    shard_size: int
    lasts: Sequence[array[int]]
    """The last sample of each shard of each split."""
    files: DiskFiles
    on_step: OnStep

    def sample(self, found: Found, metadata: Metadata) -> ExportSample:
        """What writers are given. Raises ArtifactCorrupt for labels that do not read."""
        try:
            labels = metadata.values(found.row)
        except ValueError as error:
            raise damaged(found, f"its labels: {error}") from error
        files = {one.name: data for one, data in zip(self.recipe.plan.outputs, found.files, strict=True)}
        return ExportSample(number=SampleIndex(found.number), files=files, labels=labels)


@dataclass(slots=True)
class Written:
    """What there is of a split."""

    files: int = 0
    size_bytes: int = 0


class Destination(ABC):
    """Takes the samples of each split, ascending; what has its final name is whole."""

    samples_there: int = 0
    """That are known to be there before anything is read."""
    bytes_there: int = 0

    @abstractmethod
    def needed_bytes(self, payload_bytes: int) -> int:
        """At least what all of it takes on the disk, with so many bytes of files in it."""

    @abstractmethod
    def claim(self) -> None:
        """Remove what a killed export has left: from here on this is the only one."""

    @abstractmethod
    def wanted(self, splits: NDArray[np.int8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which samples must be read, by their split and their place in it; all of them are in one."""

    @abstractmethod
    def add(self, split: int, place: int, found: Found) -> bool:
        """Take the next wanted sample of a split; False when it was there already."""

    @abstractmethod
    def finish(self) -> list[Written]:
        """Make all of it durable."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove what is staged, after an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    number: int
    staged: Path
    writer: ShardWriter


class Shards(Destination):
    """Files of `shard_size` samples each: `train-000000.tar`. One that is there is not made again."""

    def __init__(self, target: Target, writer: type[ShardWriter]) -> None:
        """Look at what is there; nothing is changed. Raises PlanConflict for what is no file of ours."""
        self._target, self._writer = target, writer
        self._metadata = Metadata(target.recipe)
        self._open: dict[int, _Open] = {}
        self._written = [Written() for _ in target.names]
        self._there = [np.zeros(len(lasts), np.bool_) for lasts in target.lasts]
        names = "|".join(target.names)
        shard = re.compile(rf"({names})-(\d{{6,}})\.{writer.suffix}")
        staged = re.compile(rf"\.{shard.pattern}\.[0-9a-f]{{8}}\.part")
        read_as_one = re.compile(rf"({names})-.*\.{writer.suffix}", re.DOTALL)
        self._leftovers: list[Path] = []
        for entry in entries(target.out):
            path = Path(entry.path)
            if staged.fullmatch(entry.name):
                self._leftovers.append(path)
            elif read_as_one.fullmatch(entry.name):
                match = shard.fullmatch(entry.name)
                split, number = (target.names.index(match[1]), int(match[2])) if match else (0, -1)
                if not 0 <= number < len(self._there[split]) or path != self._name(split, number):
                    raise in_the_way(path)
                self._count_there(split, number, path)

    def _count_there(self, split: int, number: int, path: Path) -> None:
        """Believe a file that has its name; one that was cut off since is made again."""
        with storing(path):
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise in_the_way(path)
            if not self._writer.is_whole(path):
                return
        self._there[split][number] = True
        self.bytes_there += found.st_size
        self.samples_there += len(self._places(split, number))
        self._add_up(split, found.st_size)

    def _add_up(self, split: int, size_bytes: int) -> None:
        self._written[split].files += 1
        self._written[split].size_bytes += size_bytes

    def _name(self, split: int, number: int) -> Path:
        return self._target.out / f"{self._target.names[split]}-{number:06d}.{self._writer.suffix}"

    def _places(self, split: int, number: int) -> range:
        start = number * self._target.shard_size
        return range(start, min(start + self._target.shard_size, self._target.counts[split]))

    def needed_bytes(self, payload_bytes: int) -> int:
        """The files, and around each what a tar has, which is more than others have."""
        recipe = self._target.recipe
        of_a_sample = (len(recipe.plan.outputs) + 1) * _MEMBER_BYTES + 2 * generous_label_bytes(recipe)
        shards = sum(map(len, self._there))
        return payload_bytes + sum(self._target.counts) * of_a_sample + (shards << 16)

    def claim(self) -> None:
        """Remove staged shards."""
        for path in self._leftovers:
            with storing(path), suppress(FileNotFoundError):
                self._target.files.unlink(path)

    def wanted(self, splits: NDArray[np.int8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Those of shards that are not there."""
        found = np.ones(len(splits), np.bool_)
        if not self.samples_there:
            return found
        shards = places // self._target.shard_size
        for split, there in enumerate(self._there):
            mine = splits == split
            found[mine] = ~there[shards[mine]]
        return found

    def add(self, split: int, place: int, found: Found) -> bool:
        """Write it into its split's open shard, which is published when it is full."""
        number = place // self._target.shard_size
        opened = self._open.get(split)
        if opened is None:
            opened = self._begin(split, number)
        with storing(opened.staged):
            opened.writer.add(self._target.sample(found, self._metadata))
        if opened.number != number or (place + 1 == self._places(split, number).stop) != (
            found.number == self._target.lasts[split][number]
        ):
            raise changed_meanwhile()
        if place + 1 == self._places(split, number).stop:
            self._publish(split)
        return True

    def _begin(self, split: int, number: int) -> _Open:
        path = self._name(split, number)
        staged = path.with_name(f".{path.name}.{random_part()}.part")
        with storing(staged):
            self._open[split] = _Open(
                number=number, staged=staged, writer=self._writer(self._target.recipe, staged)
            )
        return self._open[split]

    def _publish(self, split: int) -> None:
        opened, on_step = self._open[split], self._target.on_step
        path, files = self._name(split, opened.number), self._target.files
        with storing(path):
            opened.writer.finish()
            on_step(ExportStep.WRITTEN)
            size_bytes = synced(files, opened.staged)
            on_step(ExportStep.SYNCED)
            rename_durably(files, opened.staged, path)
        del self._open[split]
        self._add_up(split, size_bytes)
        on_step(ExportStep.PUBLISHED)

    def finish(self) -> list[Written]:
        """Every shard has been published when it was full, the last one of a split too."""
        return self._written

    def abandon(self) -> None:
        """Remove the open shards."""
        for opened in self._open.values():
            with suppress(OSError):
                opened.writer.abandon()
            with suppress(OSError):
                opened.staged.unlink(missing_ok=True)
        self._open.clear()


def synced(files: DiskFiles, path: Path) -> int:
    """Sync a file that somebody else has written and closed; returns its bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.fsync(descriptor)
        return files.size(descriptor)
    finally:
        files.close(descriptor)


def damaged(found: Found, fact: str) -> ArtifactCorrupt:
    """The error of a sample whose bytes are not what its recipe writes."""
    return ArtifactCorrupt(f"sample {found.number}: {fact}", hint="shardgen verify RUN_DIR")


def in_the_way(path: Path) -> PlanConflict:
    """The error of what has the name of a file of the export, or one that readers take for such a file."""
    return PlanConflict(
        f"{path}: is in the way of this export", hint=f"move {quote(str(path))} away, and export again"
    )


def changed_meanwhile() -> ReceiptConflict:
    """The error of receipts that are not those that were counted."""
    return ReceiptConflict("receipts changed during the export", hint="export again while nobody requeues")

"""An export: write a data set as a folder for training, file by file, resumable after a kill."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardgen.dataset.export.card import dropped_samples, export_card, table
from shardgen.dataset.export.destination import (
    Destination,
    Shards,
    Target,
    Written,
    changed_meanwhile,
    in_the_way,
)
from shardgen.dataset.export.files import Folders
from shardgen.dataset.export.sources import SampleSource
from shardgen.dataset.export.splits import DROPPED, Assignment, Split
from shardgen.dataset.export.webdataset import TarWriter
from shardgen.dataset.output import CARD, METADATA, STATS, refuse_full_disk
from shardgen.domain.selection import Selection
from shardgen.domain.steps import ExportStep, OnStep, ignore_step
from shardgen.errors import InvalidSettings, PlanConflict, TransientError
from shardgen.recipes.base import Recipe
from shardgen.storage.atomic import give_name, rename_durably, staged_beside
from shardgen.storage.bounded import parse_json, read_regular
from shardgen.storage.files import DiskFiles, entries, is_folder, is_there, refuse_unusable_folder, storing

REQUEST = "export.json"
SPLITS_TABLE = "splits.csv"
VERSION = 1
_MAX_REQUEST_BYTES = 1 << 16
SHARD_SIZE = 10_000
_BEGUN = re.compile(rf"\.{re.escape(REQUEST)}\.[0-9a-f]{{8}}\.part")
_BESIDE_BYTES = 1 << 20
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

OnProgress = Callable[[int, int | None, int], None]
"""Called with the samples done, those that will be (None: they are being counted), and how many of those
that are done were there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format: what takes the samples, what lies in the folder, and what of it is a split's for `datasets`.

    `patterns` are given a split's name, and the folder in front of its files; `refuse` raises for a recipe,
    or an environment, that the format is not for.
    """

    destination: Callable[[Target], Destination]
    files: str
    patterns: Callable[[Recipe, str, str], Sequence[str]]
    has_shards: bool = False
    refuse: Callable[[Recipe], None] = lambda _recipe: None


def _parquet(target: Target) -> Destination:
    from shardgen.dataset.export.parquet import ParquetWriter  # noqa: PLC0415 - pyarrow is an extra

    return Shards(target, ParquetWriter)


def _refuse_parquet(_recipe: Recipe) -> None:
    from shardgen.dataset.export.parquet import refuse_parquet  # noqa: PLC0415

    refuse_parquet()


def _refuse_coco(recipe: Recipe) -> None:
    from shardgen.dataset.export.coco import refuse_coco  # noqa: PLC0415

    refuse_coco(recipe)
    recipe.load()


def _in_folders(recipe: Recipe, _name: str, folder: str) -> list[str]:
    images = [f"{folder}{output.name}/**" for output in recipe.plan.outputs if output.channels]
    return [*images, f"{folder}{METADATA}"]


_FOLDERS = (
    "A folder for each output, and `metadata.csv` with the labels and the names of the files of each sample"
)
FORMATS = {
    "webdataset": Format(
        destination=lambda target: Shards(target, TarWriter),
        files="Tars for `webdataset`: files of a sample begin with its number; `.json` holds its labels.\n",
        patterns=lambda _recipe, name, _folder: [f"{name}-*.tar"],
        has_shards=True,
    ),
    "parquet": Format(
        destination=_parquet,
        files="Parquet files: a row is a sample, with its encoded images and its labels in columns.\n",
        patterns=lambda _recipe, name, _folder: [f"{name}-*.parquet"],
        has_shards=True,
        refuse=_refuse_parquet,
    ),
    "coco": Format(
        destination=lambda target: Folders(target, annotated=True),
        files=f"{_FOLDERS}; `annotations/` holds boxes, areas and masks as COCO has them.\n",
        patterns=_in_folders,
        refuse=_refuse_coco,
    ),
    "files": Format(
        destination=Folders,
        files=f"{_FOLDERS}.\n",
        patterns=_in_folders,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What an export is to be; `shard_size` is in samples, and counts for formats that have shards."""

    format: str
    shard_size: int = SHARD_SIZE
    split: Split | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """A split as it lies there."""

    name: str
    samples: int
    photographs: int
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """A finished export. `dropped` samples had photographs in several splits; `there` were there before."""

    out: Path
    request: ExportRequest
    splits: tuple[SplitResult, ...]
    dropped: int
    there: int
    dead_letters: int
    selection: Selection


def ignore_progress(_done: int, _planned: int | None, _there: int) -> None:
    """Tell nobody."""


def export(  # noqa: PLR0913 - what is exported, where to, and who is told what
    source: SampleSource,
    out: Path,
    request: ExportRequest,
    *,
    files: DiskFiles | None = None,
    on_progress: OnProgress = ignore_progress,
    on_step: OnStep = ignore_step,
) -> ExportResult:
    """Write the folder; each file has its final name only when it is whole and durable.

    The same request again goes on where it was, and gives the same bytes. Raises InvalidSettings (a split or
    a format that the recipe does not allow, a split without samples), PlanConflict (something else is there),
    StorageFailed, TransientError (somebody is at it) and what the source raises.
    """
    files = files or DiskFiles()
    kind, recipe = FORMATS[request.format], source.recipe
    kind.refuse(recipe)
    assignment = Assignment(recipe, request.split, source.selection.excluded)
    if request.split is not None:
        request = replace(request, split=replace(request.split, by=assignment.by))
    document = _document(source, request)
    goes_on = _refuse_foreign(out, document)
    on_progress(0, None, 0)
    counts, lasts, dropped = _counted(source, assignment, request.shard_size)
    _refuse_empty(assignment, counts)
    target = Target(
        recipe=recipe,
        out=out,
        names=assignment.names,
        is_split=request.split is not None,
        counts=counts,
        shard_size=request.shard_size,
        lasts=lasts,
        files=files,
        on_step=on_step,
    )
    # Of a new export the disk is looked at before anything is made; one that goes on is looked at when nobody
    # else can change it.
    destination = None if goes_on else _looked_at(kind, target, source)
    with storing(out):
        if files.make_folder(out):
            files.fsync_folder(out.parent)
    _put(files, out / REQUEST, [_written(document)], name=give_name)
    with storing(out):
        files.fsync_folder(out)
    on_step(ExportStep.REQUESTED)
    with _locked(out):
        _refuse_foreign(out, document)
        if destination is None or len(entries(out)) > 1:
            destination = _looked_at(kind, target, source)
        if request.split is not None:
            _put(files, out / SPLITS_TABLE, (line.encode() for line in assignment.table()))
        try:
            there, written = _copy(source, assignment, destination, counts, on_progress)
        except BaseException:
            destination.abandon()
            raise
        result = ExportResult(
            out=out,
            request=request,
            splits=tuple(_results(assignment, counts, written)),
            dropped=dropped,
            there=there,
            dead_letters=source.dead_letters,
            selection=source.selection,
        )
        _put(files, out / STATS, [source.stats()])
        _put(files, out / CARD, [_card(source, result)])
        on_step(ExportStep.DESCRIBED)
        return result


def _looked_at(kind: Format, target: Target, source: SampleSource) -> Destination:
    """Make the destination, which refuses what is in its way; refuse a disk that is too small."""
    found = kind.destination(target)
    share = min(1.0, 1.1 * sum(target.counts) / source.stored)
    refuse_full_disk(
        target.out,
        found.needed_bytes(round(source.size_bytes * share)) + _BESIDE_BYTES - found.bytes_there,
        files=target.files,
        folder=target.out if is_folder(target.out) else None,
        otherwise="export to another disk",
    )
    return found


def _results(assignment: Assignment, counts: list[int], written: list[Written]) -> Iterator[SplitResult]:
    rows = zip(assignment.names, counts, assignment.photographs, written, strict=True)
    for name, samples, photographs, one in rows:
        yield SplitResult(
            name=name, samples=samples, photographs=photographs, files=one.files, size_bytes=one.size_bytes
        )


def _copy(
    source: SampleSource,
    assignment: Assignment,
    destination: Destination,
    counts: list[int],
    on_progress: OnProgress,
) -> tuple[int, list[Written]]:
    """Pass all wanted samples on; returns how many were there already, and what there is of each split."""
    chosen = _Chosen(assignment, destination)
    planned, there = sum(counts), destination.samples_there
    done = there
    destination.claim()
    on_progress(done, planned, there)
    for found in source.samples(chosen.choose):
        split, place = chosen.take()
        if not destination.add(split, place, found):
            there += 1
        done += 1
        on_progress(done, planned, there)
    if done != planned or chosen.counts != counts:
        raise changed_meanwhile()
    return there, destination.finish()


class _Chosen:
    """Gives each sample its split and its place there, and remembers both of those that are to come."""

    def __init__(self, assignment: Assignment, destination: Destination) -> None:
        self._assignment, self._destination = assignment, destination
        self._coming: deque[tuple[int, int]] = deque()
        self.counts = [0] * len(assignment.names)

    def choose(self, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these are wanted."""
        splits = self._assignment.of(samples)
        places = np.zeros(len(samples), np.int64)
        for split, count in enumerate(self.counts):
            mine = np.flatnonzero(splits == split)
            places[mine] = np.arange(count, count + len(mine))
            self.counts[split] = count + len(mine)
        wanted: NDArray[np.bool_] = splits != DROPPED
        wanted[wanted] = self._destination.wanted(splits[wanted], places[wanted])
        self._coming.extend(zip(splits[wanted].tolist(), places[wanted].tolist(), strict=True))
        return wanted

    def take(self) -> tuple[int, int]:
        """Split and place of the next sample that comes."""
        return self._coming.popleft()


def _counted(
    source: SampleSource, assignment: Assignment, shard_size: int
) -> tuple[list[int], list[array[int]], int]:
    """The samples of each split, the last one of each of its shards, and how many are dropped."""
    counts, dropped = [0 for _ in assignment.names], 0
    lasts = [array("q") for _ in assignment.names]
    ends = [0 for _ in assignment.names]
    for samples in source.numbers():
        splits = assignment.of(samples)
        dropped += int(np.count_nonzero(splits == DROPPED))
        for split, count in enumerate(counts):
            mine = samples[splits == split]
            if len(mine):
                full = range(shard_size - 1 - count % shard_size, len(mine), shard_size)
                lasts[split].extend(mine[full.start :: shard_size].tolist())
                counts[split], ends[split] = count + len(mine), int(mine[-1])
    for split, count in enumerate(counts):
        if count % shard_size:
            lasts[split].append(ends[split])
    return counts, lasts, dropped


def _refuse_empty(assignment: Assignment, counts: list[int]) -> None:
    """A split without samples is a mistake that nobody should find when they train."""
    empty = [name for name, count in zip(assignment.names, counts, strict=True) if not count]
    if empty:
        folders = (
            f"{folder}: {', '.join(f'{count:,} {name}' for name, count in found.items())}"
            for folder, found in assignment.photographs_of_folders().items()
        )
        raise InvalidSettings(
            f"--split: no sample would be in {' or '.join(empty)}: too few photographs for these proportions "
            f"({'; '.join(folders)})",
            hint="name other proportions with --split, or another --split-by",
        )


def _document(source: SampleSource, request: ExportRequest) -> dict[str, Any]:
    """What makes an export the same as another: `export.json`."""
    split = request.split
    return {
        "version": VERSION,
        "format": request.format,
        "shard_size": request.shard_size if FORMATS[request.format].has_shards else None,
        "split": None if split is None else {"by": split.by, "parts": list(split.parts), "seed": split.seed},
        "plan": source.recipe.plan.fingerprint,
        "selection": hashlib.sha256(source.selection.canonical_json).hexdigest(),
        "dead_letters": source.dead_letters_sha256,
    }


def _written(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


_SAYS = {
    "version": "of another version of shardgen",
    "plan": "of another plan",
    "selection": "with other samples left out",
    "dead_letters": "with other dead letters",
}


def _refuse_foreign(out: Path, document: dict[str, Any]) -> bool:
    """Whether the same export is there; PlanConflict for anything else but an empty or a missing folder."""
    refuse_unusable_folder(out, makes=1, otherwise="choose another folder")
    path, found = out / REQUEST, entries(out)
    if not any(entry.name == REQUEST for entry in found) and not is_there(path):
        foreign = [entry.name for entry in found if not _BEGUN.fullmatch(entry.name)]
        if foreign:
            raise PlanConflict(
                f"{out}: is not empty, and is not an export ({foreign[0]} lies there)",
                hint="choose a new folder; export creates it",
            )
        return False
    _refuse_another(path, document)
    beside = {STATS, CARD} if document["split"] is None else {STATS, CARD, SPLITS_TABLE}
    for entry in found:
        if entry.name in beside and entry.is_dir(follow_symlinks=False):
            raise in_the_way(Path(entry.path))
    return True


def _refuse_another(path: Path, document: dict[str, Any]) -> None:
    """PlanConflict unless `export.json` says the same."""
    other = PlanConflict(
        f"{path}: was not written by shardgen", hint="choose a new folder; export creates it"
    )
    with storing(path):
        data = read_regular(path, limit=_MAX_REQUEST_BYTES, follow=False)
    try:
        found = parse_json(data)
    except ValueError as error:
        raise other from error
    if not isinstance(found, dict) or not found.keys() >= document.keys():
        raise other
    changes = {
        name: _SAYS.get(name) or f"with {name} {_shown(value)}, not {_shown(document.get(name))}"
        for name, value in found.items()
        if (name, value) not in document.items()
    }
    if changes:
        moved_on = (
            " (an export with --partial goes on only until the run has stored more)"
            if changes.keys() & {"selection", "dead_letters"}
            else ""
        )
        raise PlanConflict(
            f"{path.parent}: holds another export: {'; '.join(changes.values())}",
            hint=f"choose a new folder, or remove that one: rm -r {quote(str(path.parent))}{moved_on}",
        )


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep others from writing the same export at once. Raises TransientError while somebody does."""
    with storing(out / REQUEST):
        descriptor = os.open(out / REQUEST, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise TransientError(
                    f"{out}: another command is exporting to it", hint="wait until it has finished"
                ) from error
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def _put(
    files: DiskFiles,
    path: Path,
    pieces: Iterable[bytes],
    *,
    name: Callable[[DiskFiles, Path, Path], object] = rename_durably,
) -> None:
    """Write a file beside its place, sync it, and let it have its name."""
    with storing(path), staged_beside(path, files=files) as (descriptor, staged):
        for piece in pieces:
            files.write(descriptor, piece)
        files.fsync(descriptor)
        name(files, staged, path)


def _card(source: SampleSource, result: ExportResult) -> bytes:
    kind = FORMATS[result.request.format]
    recipe = source.recipe
    is_split = result.request.split is not None
    names = [one.name for one in result.splits]
    configs = {name: kind.patterns(recipe, name, f"{name}/" if is_split else "") for name in names}
    rows = [
        (one.name, f"{one.samples:,}", f"{one.photographs:,}", f"{one.files:,}", f"{one.size_bytes:,}")
        for one in result.splits
    ]
    about = kind.files + "\n" + table(rows) + dropped_samples(result.request.split, result.dropped)
    return export_card(source.card(), files=about, configs=configs)

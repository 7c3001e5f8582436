"""Where an export takes its samples from: a finished zip, or a run's receipts and artifacts."""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.check import stored_samples
from shardgen.artifacts.zip_records import BrokenZip
from shardgen.dataset.bodies import BodyReader, Piece
from shardgen.dataset.card import dataset_card
from shardgen.dataset.labels import label_rows, rows_of
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.dataset.merge import DEAD_LETTERS_HEADER, MergeInputs, survey_inputs
from shardgen.dataset.metadata import Metadata
from shardgen.dataset.opened_zip import OpenedZip, stop_of
from shardgen.dataset.output import CARD, DEAD_LETTERS, LABELS, METADATA, PLAN, STATS
from shardgen.dataset.read_ahead import ReadAhead
from shardgen.dataset.selecting import KeptSums, LeftOut, kept_receipts, which_in
from shardgen.dataset.statistics import statistics, stats_json
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import Facts, Receipt
from shardgen.domain.selection import Selection
from shardgen.errors import ArtifactCorrupt
from shardgen.recipes.base import Recipe
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import parse_plan
from shardgen.storage.files import storage_error

_NUMBERS_AT_ONCE = 4096
_BYTES_AT_ONCE = 4 << 20

Choose = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Which of these samples, ascending, are wanted; called once for each, in order."""


@dataclass(frozen=True, slots=True)
class Found:
    """A stored sample: its files in the order of the outputs, and its row of `metadata.csv`."""

    number: int
    files: list[bytes]
    row: bytes


class SampleSource(ABC):
    """The stored samples of a data set, ascending, in memory that does not grow with their number."""

    recipe: Recipe
    selection: Selection
    stored: int
    size_bytes: int
    """At least what the files of all samples take."""
    dead_letters: int
    dead_letters_sha256: str
    """Of the bytes of `dead_letters.csv`."""

    @abstractmethod
    def numbers(self) -> Iterator[NDArray[np.int64]]:
        """The numbers of all stored samples, some thousands at once; no file is read."""

    @abstractmethod
    def samples(self, choose: Choose) -> Iterator[Found]:
        """The samples that are wanted, checked. Raises ArtifactMissing, ArtifactCorrupt, StorageFailed."""

    @abstractmethod
    def stats(self) -> bytes:
        """The bytes of `stats.json`; asked for when `samples` has come to its end."""

    @abstractmethod
    def card(self) -> bytes:
        """The bytes of the data set's `README.md`; asked for when `samples` has come to its end."""


class ZipSource(SampleSource):
    """A zip that `merge` has written, front to back. Raises ArtifactCorrupt for any other."""

    def __init__(self, path: Path) -> None:
        """Raises InputMissing, StorageFailed, too."""
        self._zip = OpenedZip(path)
        try:
            with self._reading():
                plan = parse_plan(self._zip.member(PLAN), where=f"{path}: {PLAN}")
                self.recipe = recipe_of(plan, beside=self._zip.beside)
                self.selection = self._zip.selection(plan)
                self._dead = self._zip.dead_letters(plan)
                self._table = MemberTable(plan)
                self._metadata = Metadata(self.recipe)
                self.size_bytes = self._zip.tail.entries[LABELS].offset
                self.dead_letters_sha256 = hashlib.sha256(self._zip.member(DEAD_LETTERS)).hexdigest()
            self._refuse_miscount()
        except BaseException:
            self._zip.close()
            raise
        self.dead_letters = len(self._dead)
        self.stored = self.selection.kept.count - self.dead_letters

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._zip.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        path = self._zip.path
        try:
            yield
        except BrokenZip as error:
            raise ArtifactCorrupt(f"{path}: {error}", hint=f"shardgen verify {quote(str(path))}") from error
        except OSError as error:
            raise storage_error(error, path) from error

    def _images(self) -> Iterator[MemberColumns]:
        """The entries of all images, those of some thousand samples at once."""
        with self._reading():
            yield from self._zip.images(self._table, self._dead, self.selection)

    def numbers(self) -> Iterator[NDArray[np.int64]]:
        """From the directory, whose every byte is compared."""
        for columns in self._images():
            yield columns.samples

    def samples(self, choose: Choose) -> Iterator[Found]:
        """Some megabytes at once; rows of `metadata.csv` are read past those that are not wanted."""
        rows = self._rows()
        for columns in self._images():
            wanted = choose(columns.samples)
            mine = list(islice(rows, len(wanted)))
            if len(mine) != len(wanted):
                raise self._wrong(METADATA, "ends too early")
            for first, end in self._parts(columns):
                if wanted[first:end].any():
                    yield from self._files(columns, first, np.flatnonzero(wanted[first:end]), end, mine)
        if next(rows, None) is not None:
            raise self._wrong(METADATA, "has too many rows")

    def _refuse_miscount(self) -> None:
        with self._reading():
            if wrong := self._zip.miscount(self._table, self._dead, self.selection):
                raise BrokenZip(wrong)

    def _wrong(self, name: str, fact: str) -> ArtifactCorrupt:
        path = self._zip.path
        return ArtifactCorrupt(f"{path}: {name}: {fact}", hint=f"shardgen verify {quote(str(path))}")

    def _rows(self) -> Iterator[bytes]:
        """The rows of `metadata.csv`, whose CRC is compared at the end."""
        rows = rows_of(self._checked(METADATA))
        if next(rows, b"") != self._metadata.header:
            raise self._wrong(METADATA, "has another header")
        yield from rows

    def _checked(self, name: str) -> Iterator[bytes]:
        crc = 0
        with self._reading():
            for piece in self._zip.pieces(name):
                crc = zlib.crc32(piece, crc)
                yield piece
        if crc != self._zip.tail.entries[name].crc:
            raise self._wrong(name, "its bytes do not match its CRC")

    def _parts(self, columns: MemberColumns) -> Iterator[tuple[int, int]]:
        """Runs of samples that are read at once: some megabytes, or one sample that is larger."""
        starts = columns.offsets[:, 0]
        first = 0
        while first < len(starts):
            end = max(first + 1, int(np.searchsorted(starts, starts[first] + _BYTES_AT_ONCE)))
            yield first, end
            first = end

    def _files(
        self, columns: MemberColumns, first: int, places: NDArray[np.int64], end: int, rows: list[bytes]
    ) -> Iterator[Found]:
        """The wanted samples of a run, at these places in it, after headers and CRCs passed."""
        part = MemberColumns(
            samples=columns.samples[first:end],
            crcs=columns.crcs[first:end],
            sizes=columns.sizes[first:end],
            offsets=columns.offsets[first:end] - columns.offsets[first, 0],
        )
        start = int(columns.offsets[first, 0])
        with self._reading():
            body = self._zip.read(start, start + stop_of(self._table, part))
            if not self._table.has_local_headers(part, np.frombuffer(body, np.uint8)):
                raise BrokenZip(f"from sample {part.samples[0]} on: a local header is not the directory's")
        starts = (part.offsets + self._table.header_sizes(part.samples))[places].tolist()
        sizes, crcs = part.sizes[places].tolist(), part.crcs[places].tolist()
        for row, place in enumerate(places.tolist()):
            number = int(part.samples[place])
            files = [body[at : at + size] for at, size in zip(starts[row], sizes[row], strict=True)]
            if list(map(zlib.crc32, files)) != crcs[row]:
                raise self._wrong(f"sample {number}", "its bytes do not match their CRC")
            row_of_it = rows[first + place]
            if not row_of_it.startswith(self._metadata.start(number)):
                raise self._wrong(METADATA, f"its row of sample {number} begins unlike any row of the plan")
            yield Found(number, files, row_of_it)

    def stats(self) -> bytes:
        """Those of the zip."""
        with self._reading():
            return self._zip.member(STATS)

    def card(self) -> bytes:
        """That of the zip."""
        with self._reading():
            return self._zip.member(CARD)


class RunSource(SampleSource):
    """What a run has recorded, with the selection that a merge of it would have."""

    def __init__(self, inputs: MergeInputs) -> None:
        """Raises RunIncomplete, RunHasHoles, InvalidSettings or ReceiptConflict, as a merge does."""
        self._inputs = inputs
        self.recipe = inputs.recipe
        survey = survey_inputs(inputs)
        self.selection, self.stored = survey.selection, survey.stored
        self.dead_letters, self.size_bytes = survey.dead, survey.artifact_bytes
        self._left_out = survey.selection.left_out
        self._sums = KeptSums(inputs.recipe, inputs.store, self._left_out)
        digest = hashlib.sha256(DEAD_LETTERS_HEADER.encode())
        for letter in inputs.source.dead_letters():
            if letter.sample not in self._left_out:
                digest.update(f"{letter.sample},{letter.reason.value}\n".encode())
        self.dead_letters_sha256 = digest.hexdigest()

    def numbers(self) -> Iterator[NDArray[np.int64]]:
        """From the receipts alone."""
        parts: list[NDArray[np.int64]] = []
        count = 0
        for receipts in kept_receipts(self._inputs.plan, self._inputs.source, self._left_out):
            samples, kept = self._kept(receipts)
            parts.append(samples if kept is None else samples[kept])
            count += len(parts[-1])
            if count >= _NUMBERS_AT_ONCE:
                yield np.concatenate(parts)
                parts, count = [], 0
        if count:
            yield np.concatenate(parts)

    def _kept(self, receipts: list[Receipt]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """The samples that these receipts store, and which of them are not left out; None: all."""
        samples = stored_samples(self._inputs.plan, receipts)
        kept = ~which_in(self._left_out, samples) if self._left_out else None
        return samples, None if kept is None or kept.all() else kept

    def samples(self, choose: Choose) -> Iterator[Found]:
        """Artifact by artifact, each one's sha256 compared; one of which nothing is wanted is not read."""
        inputs = self._inputs
        with ReadAhead(inputs.store) as store:
            self._sums = KeptSums(inputs.recipe, store, self._left_out)
            taken = _Taken()
            reader = BodyReader(store, MemberTable(inputs.plan), taken)
            has_facts = bool(inputs.recipe.fact_columns)
            page = _Page(inputs.recipe, self.selection)
            for group in store.over(self._groups_to_read(choose), lambda group: group.receipts[0].artifact):
                receipts, samples, kept, wanted = group
                if kept is not None:
                    self._sums.add(receipts, is_whole=False)
                if not wanted.any():
                    continue
                records = [receipt.record for receipt in receipts]
                facts = reader.add(receipts[0].artifact, records, samples, kept=kept, facts=has_facts)
                if taken.found:  # the buffer was full, so all before this artifact has been passed on
                    yield from page.rows_with(taken)
                page.add(receipts, facts)
                taken.wanted.append(wanted)
            reader.flush()
            yield from page.rows_with(taken)

    def _groups_to_read(self, choose: Choose) -> Iterator[_Group]:
        """Those of which something is wanted, or decoded for its sums; the sums of others are added here."""
        inputs = self._inputs
        for receipts in kept_receipts(inputs.plan, inputs.source, self._left_out):
            samples, kept = self._kept(receipts)
            if kept is None:
                self._sums.add(receipts, is_whole=True)
            wanted = choose(samples if kept is None else samples[kept])
            if kept is not None or wanted.any():
                yield _Group(receipts, samples, kept, wanted)

    def stats(self) -> bytes:
        """As a merge counts them."""
        return stats_json(statistics(self._inputs.plan, self._sums.total()))

    def card(self) -> bytes:
        """As a merge writes it, but for a contact sheet."""
        return dataset_card(
            self.recipe,
            statistics(self._inputs.plan, self._sums.total()),
            selection=self.selection,
            dead_letters=self.dead_letters,
            has_sheet=False,
            own=self._inputs.card,
        )


class _Group(NamedTuple):
    """Receipts of an artifact and the samples that they store.

    Which of these are `kept` (None: all), and which of the kept ones are `wanted`.
    """

    receipts: list[Receipt]
    samples: NDArray[np.int64]
    kept: NDArray[np.bool_] | None
    wanted: NDArray[np.bool_]


class _Taken:
    """The sink of a BodyReader: copies the files of samples that are wanted."""

    def __init__(self) -> None:
        self.wanted: list[NDArray[np.bool_]] = []
        """For each artifact that is in the reader's buffer."""
        self.found: list[tuple[NDArray[np.bool_], NDArray[np.int64], list[list[bytes]]]] = []

    def add_piece(self, piece: Piece) -> None:
        """Copy what is wanted before the memory is filled anew."""
        wanted = np.concatenate(self.wanted)
        self.wanted.clear()
        rows = np.flatnonzero(wanted).tolist()
        self.found.append((wanted, piece.columns.samples, [piece.files(row) for row in rows]))


class _Page:
    """The receipts of artifacts that lie in the reader's buffer, for the labels of their samples."""

    def __init__(self, recipe: Recipe, selection: Selection) -> None:
        self._recipe, self._left_out = recipe, selection.left_out
        self._metadata = Metadata(recipe)
        self._receipts: list[Receipt] = []
        self._facts: dict[SampleIndex, tuple[int, ...]] = {}

    def add(self, receipts: list[Receipt], facts: Facts) -> None:
        self._receipts += receipts
        self._facts |= facts

    def rows_with(self, taken: _Taken) -> Iterator[Found]:
        """The samples that were taken since the last time, with their rows."""
        text = "".join(map(self._labels, self._receipts))
        rows = list(rows_of([self._metadata.rows(text.encode())]))
        start = 0
        for wanted, samples, files in taken.found:
            places = np.flatnonzero(wanted)
            numbers = samples[places].tolist()
            for place, number, of_it in zip(places.tolist(), numbers, files, strict=True):
                yield Found(number, of_it, rows[start + place])
            start += len(wanted)
        taken.found.clear()
        self._receipts.clear()
        self._facts.clear()

    def _labels(self, receipt: Receipt) -> str:
        record = receipt.record
        dead = {letter.sample for letter in record.dead_letters}
        without = LeftOut(dead, self._left_out) if self._left_out else dead
        return label_rows(self._recipe, record.batch, without=without, facts=self._facts)

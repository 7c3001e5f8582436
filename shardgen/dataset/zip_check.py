"""A final zip read back against the plan inside it, in flat memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np

from shardgen.artifacts.zip_records import BrokenZip, local_header, read_entries
from shardgen.dataset.labels import first_wrong_row
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.dataset.metadata import first_wrong_metadata
from shardgen.dataset.opened_zip import OpenedZip, StrayEntries, stop_of
from shardgen.dataset.output import (
    LABELS,
    METADATA,
    PLAN,
    SELECTION,
    STATS,
    ZipTail,
)
from shardgen.dataset.selecting import LeftOut, strays_in
from shardgen.dataset.statistics import read_statistics, statistics, stats_json
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import PLAN_FILE_NAME, Output, Plan, PlanFile
from shardgen.domain.receipt import OutputSums
from shardgen.domain.sample import member_name
from shardgen.domain.selection import Selection
from shardgen.errors import ArtifactCorrupt, SampleError
from shardgen.recipes.base import Recipe
from shardgen.storage.files import storage_error
from shardgen.storage.lines import LineFile

_BYTES_AT_ONCE = 8 << 20
_STATS_BYTES = 1 << 16
_FINDINGS_MAX = 1000  # a zip of a million broken members needs no longer list


class ZipCheck:
    """One pass over a zip; what is wrong is collected as (subject, fact) in `findings`."""

    def __init__(
        self,
        path: Path,
        *,
        decode: bool,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._path = path
        self._decode = decode
        self._on_progress = on_progress
        self._zip = OpenedZip(path)
        self._sums: dict[str, OutputSums] = {}
        self.findings: list[tuple[str, str]] = []
        self.samples = 0
        self.left_out = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._zip.close()

    def found(self, subject: str, fact: str) -> None:
        """Note something that is wrong."""
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append((subject, fact))

    def beside(self, file: PlanFile) -> LineFile:
        """Open a file that the plan names inside the zip. Raises ArtifactCorrupt when it is not that one."""
        return self._zip.beside(file)

    def read_plan(self) -> bytes | None:
        """Read `plan.json`; None, with a finding, when these bytes are no final zip."""
        try:
            return self._zip.member(PLAN)
        except BrokenZip as error:
            self.found(str(self._path), str(error))
            return None
        except OSError as error:
            raise storage_error(error, self._path) from error

    def run(self, recipe: Recipe) -> None:
        """Check everything behind the plan."""
        plan = recipe.plan
        self._sums = {output.name: OutputSums.zero(output.channels) for output in plan.outputs}
        try:
            tail = self._zip.tail
            if not self._has_files(recipe, tail):
                return
            dead = set(self._zip.dead_letters(plan))
            selection = self._selection(recipe, dead)
            self._tail_members(tail)
            self._files_of_samples(recipe, dead, selection)
            self._labels(recipe, tail, dead, selection)
            self._stats(plan, tail, plan.samples - len(dead) - selection.left_out.count)
        except BrokenZip as error:
            self.found(str(self._path), str(error))
        except OSError as error:
            raise storage_error(error, self._path) from error

    def _has_files(self, recipe: Recipe, tail: ZipTail) -> bool:
        """Whether the files that the plan names are here, and no others; what is wrong is noted."""
        before = len(self.findings)
        for file in recipe.files:
            try:
                recipe.beside(file)
            except ArtifactCorrupt as error:
                self.found(file.name, str(error).removeprefix(f"{file.name}: "))
        named = {file.name for file in recipe.files}
        for name in filter(PLAN_FILE_NAME.fullmatch, tail.entries):
            if name not in named:
                self.found(name, "is not named in plan.json")
        return len(self.findings) == before

    def _selection(self, recipe: Recipe, dead: set[int]) -> Selection:
        selection = self._zip.selection(recipe.plan)
        self.left_out = selection.in_words
        twice = next((sample for sample in sorted(dead) if sample in selection.left_out), None)
        if twice is not None:
            self.found(SELECTION, f"lists sample {twice}, which is a dead letter")
        if stray := strays_in(recipe, selection):
            self.found(SELECTION, stray)
        return selection

    def _tail_members(self, tail: ZipTail) -> None:
        self._zip.check_order()
        for name in tail.entries:
            # Read by row, or before.
            if name not in (LABELS, METADATA) and not PLAN_FILE_NAME.fullmatch(name):
                try:
                    self._zip.member(name)
                except BrokenZip as error:
                    self.found(name, str(error).removeprefix(f"{name}: "))

    def _files_of_samples(self, recipe: Recipe, dead: set[int], selection: Selection) -> None:
        table, kept = MemberTable(recipe.plan), selection.kept.count
        try:
            for columns in self._zip.images(table, dead, selection):
                self._bodies(recipe, table, columns)
                self.samples += len(columns.samples)
                self._on_progress(self.samples, kept)
        except StrayEntries as stray:
            stop = self._zip.tail.directory.offset + self._zip.tail.directory_size
            rest = self._zip.read(stray.start, stop)
            self._name_differences(recipe.plan, dead, selection, stray.first, rest)
        except BrokenZip as error:
            self.found(LABELS, str(error).removeprefix(f"{LABELS}: "))
        if wrong := self._zip.miscount(table, dead, selection):
            self.found(str(self._path), wrong)

    def _bodies(self, recipe: Recipe, table: MemberTable, columns: MemberColumns) -> None:
        stops = np.append(columns.offsets[1:, 0], stop_of(table, columns))
        row = 0
        while row < len(stops):
            start = int(columns.offsets[row, 0])
            end = max(row + 1, int(np.searchsorted(stops, start + _BYTES_AT_ONCE, side="right")))
            body = self._zip.read(start, int(stops[end - 1]))
            part = MemberColumns(
                samples=columns.samples[row:end],
                crcs=columns.crcs[row:end],
                sizes=columns.sizes[row:end],
                offsets=columns.offsets[row:end] - start,
            )
            if not table.has_local_headers(part, np.frombuffer(body, np.uint8)):
                first, last = int(part.samples[0]), int(part.samples[-1])
                self.found(str(self._path), f"samples {first}-{last}: a local header is not the directory's")
            self._contents(recipe, table, part, memoryview(body))
            row = end

    def _contents(self, recipe: Recipe, table: MemberTable, part: MemberColumns, body: memoryview) -> None:
        starts = (part.offsets + table.header_sizes(part.samples)).ravel().tolist()
        sizes, crcs = part.sizes.ravel().tolist(), part.crcs.ravel().tolist()
        for index, (start, size, crc) in enumerate(zip(starts, sizes, crcs, strict=True)):
            data = body[start : start + size]
            row, column = divmod(index, table.width)
            output = recipe.plan.outputs[column]
            if zlib.crc32(data) != crc:
                name = _name(recipe.plan, int(part.samples[row]), output)
                self.found(name, "its bytes do not match its CRC")
            elif self._decode:
                try:
                    self._sums[output.name] += recipe.recount(output, bytes(data))
                except SampleError as error:
                    self.found(_name(recipe.plan, int(part.samples[row]), output), str(error))

    def _name_differences(
        self, plan: Plan, dead: set[int], selection: Selection, first: int, data: bytes
    ) -> None:
        """Name every image from sample `first` on that is missing, there twice, or not where it should be."""
        expected = _ExpectedImages(plan, dead, selection, first)
        left_out = LeftOut(dead, selection.left_out)
        wanted = expected.following(len(plan.outputs) * first)
        missing: set[int] = set()
        before = len(self.findings)
        for entry in read_entries(data):
            image = _image_of(plan, entry.name)
            while wanted is not None and image is not None and wanted < image:
                if len(missing) == _FINDINGS_MAX:
                    wanted = expected.following(image)
                    break
                missing.add(wanted)
                wanted = expected.following(wanted + 1)
            if image is None or image // len(plan.outputs) in left_out:
                self.found(entry.name, "does not belong in this zip")
            elif image == wanted:
                wanted = expected.following(image + 1)
            elif image in missing:
                missing.remove(image)
                self.found(entry.name, "is not where it should be")
            else:
                self.found(entry.name, "is there twice")
        behind = [] if wanted is None else islice(expected.from_(wanted), _FINDINGS_MAX)
        for image in [*sorted(missing), *behind]:
            self.found(
                _name(plan, image // len(plan.outputs), plan.outputs[image % len(plan.outputs)]), "is missing"
            )
        if len(self.findings) == before:
            self.found(str(self._path), f"from sample {first} on: members do not follow each other")

    def _labels(self, recipe: Recipe, tail: ZipTail, dead: set[int], selection: Selection) -> None:
        for name in (LABELS, METADATA):
            entry = tail.entries[name]
            found = self._zip.read(entry.offset, entry.data_offset)
            if found != local_header(entry):
                self.found(name, "its local header is not the directory's")
        without = LeftOut(dead, selection.left_out) if selection.kinds else dead
        labels = self._zip.pieces(LABELS)
        if wrong := first_wrong_row(recipe, labels, without=without, selection=selection):
            self.found(LABELS, wrong)
            return  # the other file is made of this one
        if wrong := first_wrong_metadata(recipe, self._zip.pieces(LABELS), self._zip.pieces(METADATA)):
            self.found(METADATA, wrong)

    def _stats(self, plan: Plan, tail: ZipTail, stored: int) -> None:
        if tail.entries[STATS].size > _STATS_BYTES:
            self.found(STATS, "cannot be read")
            return
        data = self._zip.member(STATS)
        try:
            found = read_statistics(data, plan)
        except ValueError as error:
            self.found(STATS, f"cannot be read ({error})")
            return
        wrong = [name for name, one in found.items() if one.images != stored]
        if wrong:
            self.found(STATS, f"counts other than {stored:,} images of {', '.join(wrong)}")
        elif self._decode and data != stats_json(statistics(plan, self._sums)):
            self.found(STATS, "its numbers are not those of the images")


class _ExpectedImages:
    """The images that a plan should have, counted from 0, without those of the dead and the left out."""

    def __init__(self, plan: Plan, dead: set[int], selection: Selection, first: int) -> None:
        self._width = len(plan.outputs)
        self._stop = self._width * plan.samples
        self._dead = dead
        self._left_out = selection.left_out
        self._first = self._width * first

    def following(self, image: int) -> int | None:
        """The first one from `image` on; None behind the last."""
        image = max(image, self._first)
        sample = image // self._width
        while sample in self._dead or sample in self._left_out:
            sample = self._left_out.next_gap(sample + (sample in self._dead))
            image = self._width * sample
        return image if image < self._stop else None

    def from_(self, image: int) -> Iterator[int]:
        """All from `image` on."""
        wanted = self.following(image)
        while wanted is not None:
            yield wanted
            wanted = self.following(wanted + 1)


def _name(plan: Plan, sample: int, output: Output) -> str:
    return member_name(output, SampleIndex(sample), digits=plan.name_digits)


def _image_of(plan: Plan, name: str) -> int | None:
    """Which file a name is, counted through the whole plan; None for any other name."""
    folder, _, rest = name.partition("/")
    number = rest.rpartition("/")[2].partition(".")[0]
    column = next((at for at, output in enumerate(plan.outputs) if output.name == folder), None)
    if column is None or not number.isdecimal() or len(number) > 15:
        return None
    sample = int(number)
    if sample >= plan.samples or _name(plan, sample, plan.outputs[column]) != name:
        return None
    return len(plan.outputs) * sample + column

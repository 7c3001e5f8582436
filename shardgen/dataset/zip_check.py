"""A final zip read back against the plan inside it, in flat memory."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.zip_records import BrokenZip, Entry, local_header, read_entries
from shardgen.dataset.labels import first_wrong_row
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.dataset.metadata import first_wrong_metadata
from shardgen.dataset.output import (
    DEAD_LETTERS,
    LABELS,
    METADATA,
    PLAN,
    SELECTION,
    STATS,
    ZipTail,
    read_at,
    read_member,
    read_selection,
    read_tail,
)
from shardgen.dataset.selecting import LeftOut, strays_in
from shardgen.dataset.statistics import statistics, stats_json
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import PLAN_FILE_NAME, Output, Plan, PlanFile
from shardgen.domain.receipt import DeadLetterReason, OutputSums
from shardgen.domain.sample import member_name
from shardgen.domain.selection import Selection
from shardgen.errors import ArtifactCorrupt, InputMissing, SampleError
from shardgen.recipes.base import Recipe
from shardgen.storage.bounded import parse_json
from shardgen.storage.files import DiskFiles, storage_error
from shardgen.storage.lines import LineFile

DEAD_LETTERS_HEADER = "sample,reason"
_SAMPLES_AT_ONCE = 1024
_BYTES_AT_ONCE = 8 << 20
_LABELS_AT_ONCE = 1 << 20
_STATS_BYTES = 1 << 16
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
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
        self._files = DiskFiles()
        self._tail: ZipTail | None = None
        self._sums: dict[str, OutputSums] = {}
        self.findings: list[tuple[str, str]] = []
        self.samples = 0
        self.left_out = ""
        try:
            self._descriptor = self._files.open(path)
        except FileNotFoundError as error:
            raise InputMissing(f"{path}: is not there", hint="shardgen merge RUN_DIR -o ZIP") from error
        except OSError as error:
            raise storage_error(error, path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._files.close(self._descriptor)

    def found(self, subject: str, fact: str) -> None:
        """Note something that is wrong."""
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append((subject, fact))

    def read_plan(self) -> bytes | None:
        """Read `plan.json`; None, with a finding, when these bytes are no final zip."""
        try:
            self._tail = read_tail(self._descriptor, self._files.size(self._descriptor), files=self._files)
            return self._read_member(self._tail.entries[PLAN])
        except BrokenZip as error:
            self.found(str(self._path), str(error))
            return None
        except OSError as error:
            raise storage_error(error, self._path) from error

    def beside(self, file: PlanFile) -> LineFile:
        """Open a file that the plan names inside the zip. Raises ArtifactCorrupt when it is not that one."""
        entry = None if self._tail is None else self._tail.entries.get(file.name)
        if entry is None or entry.stop > self._files.size(self._descriptor):
            raise ArtifactCorrupt(f"{file.name}: plan.json names it, and it is not here")
        header = local_header(entry)

        def read(offset: int, size: int) -> bytes:
            return os.pread(self._descriptor, size, entry.data_offset + offset)

        try:
            lines = LineFile(read, file.bytes, lines=file.lines)
        except ValueError as error:
            raise ArtifactCorrupt(f"{file.name}: {error}") from error
        except OSError as error:
            raise storage_error(error, self._path) from error
        if (entry.size, entry.crc) != (lines.size, lines.crc) or read(-len(header), len(header)) != header:
            raise ArtifactCorrupt(f"{file.name}: its bytes are not those of the directory")
        if lines.sha256 != file.sha256:
            raise ArtifactCorrupt(f"{file.name}: not the file that plan.json names")
        return lines

    def _read_member(self, entry: Entry) -> bytes:
        return read_member(self._descriptor, entry, files=self._files)

    def run(self, recipe: Recipe) -> None:
        """Check everything behind the plan."""
        plan = recipe.plan
        self._sums = {output.name: OutputSums.zero(output.channels) for output in plan.outputs}
        tail = self._tail
        if tail is None:
            raise ValueError("read the plan first")
        try:
            if not self._has_files(recipe, tail):
                return
            dead = self._dead_letters(plan, tail)
            selection = self._selection(recipe, tail, dead)
            self._tail_members(tail)
            self._files_of_samples(recipe, tail, dead, selection)
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

    def _dead_letters(self, plan: Plan, tail: ZipTail) -> set[int]:
        text = self._read_member(tail.entries[DEAD_LETTERS]).decode(errors="replace")
        header, *rows = text.splitlines() or [""]
        dead: list[int] = []
        reasons = set(DeadLetterReason)
        for row in rows:
            sample, _, reason = row.partition(",")
            if not _NUMBER.fullmatch(sample) or int(sample) >= plan.samples or reason not in reasons:
                raise BrokenZip(f"{DEAD_LETTERS}: has a row {row[:100]!r}")
            dead.append(int(sample))
        if header != DEAD_LETTERS_HEADER or dead != sorted(set(dead)):
            raise BrokenZip(f"{DEAD_LETTERS}: has another header, or samples out of order")
        return set(dead)

    def _selection(self, recipe: Recipe, tail: ZipTail, dead: set[int]) -> Selection:
        planned = recipe.plan.samples
        selection = read_selection(self._descriptor, tail, planned=planned, files=self._files)
        self.left_out = selection.in_words
        twice = next((sample for sample in sorted(dead) if sample in selection.left_out), None)
        if twice is not None:
            self.found(SELECTION, f"lists sample {twice}, which is a dead letter")
        if stray := strays_in(recipe, selection):
            self.found(SELECTION, stray)
        return selection

    def _tail_members(self, tail: ZipTail) -> None:
        stop = tail.entries[LABELS].offset
        for entry in tail.entries.values():
            if entry.offset != stop:
                raise BrokenZip(f"{entry.name}: starts at byte {entry.offset} (expected {stop})")
            stop = entry.stop
            # Read by row, or before.
            if entry.name not in (LABELS, METADATA) and not PLAN_FILE_NAME.fullmatch(entry.name):
                try:
                    self._read_member(entry)
                except BrokenZip as error:
                    self.found(entry.name, str(error).removeprefix(f"{entry.name}: "))
        if stop != tail.directory.offset:
            raise BrokenZip(
                f"its members end at byte {stop}, its directory starts at {tail.directory.offset}"
            )

    def _files_of_samples(self, recipe: Recipe, tail: ZipTail, dead: set[int], selection: Selection) -> None:
        plan, table = recipe.plan, MemberTable(recipe.plan)
        kept = selection.kept.count
        members = table.width * (kept - len(dead))
        in_zip = tail.directory.members - len(tail.entries)
        zip64_from = members - self._zip64_members(table, dead, selection, tail)
        position, offset, done = 0, 0, 0
        for samples in _stored(dead, selection):
            border = max(0, zip64_from - done)
            size = table.central_size(samples, zip64_from=border)
            start = tail.directory.offset + position
            size = min(size, tail.directory_size - position)
            data = read_at(self._files, self._descriptor, start, start + size)
            columns = self._columns(table, data, samples, border=border, start=offset)
            if columns is None:
                stop = tail.directory.offset + tail.directory_size
                rest = read_at(self._files, self._descriptor, start, stop)
                self._name_differences(plan, dead, selection, int(samples[0]), rest)
                break
            self._bodies(recipe, table, columns)
            position += size
            done += table.width * len(samples)
            offset = self._stop_of(table, columns)
            self.samples += len(samples)
            self._on_progress(self.samples, kept)
        if in_zip != members:
            says = (
                f"plan, dead letters and {SELECTION} say" if selection.kinds else "plan and dead letters say"
            )
            self.found(str(self._path), f"holds {in_zip:,} images, {says} {members:,}")
        elif done == members and offset != tail.entries[LABELS].offset:
            self.found(LABELS, f"starts at byte {tail.entries[LABELS].offset}, the images end at {offset}")

    def _zip64_members(self, table: MemberTable, dead: set[int], selection: Selection, tail: ZipTail) -> int:
        """How many members, the last ones, have entries with a zip64 extra: each one is 12 bytes longer."""
        size = 0
        for samples in _stored(dead, selection):
            size += table.central_size(samples, zip64_from=table.width * len(samples))
            if size > tail.directory_size:  # the plan may claim any number of samples
                break
        return max(0, tail.directory_size - size) // 12

    def _columns(
        self, table: MemberTable, data: bytes, samples: NDArray[np.int64], *, border: int, start: int
    ) -> MemberColumns | None:
        """Read and check entries whose first local header is at `start`; None when one byte differs."""
        try:
            crcs, sizes = table.read_central(data, samples, zip64_from=border)
        except BrokenZip:
            return None
        stops = table.stops(samples, sizes) + start
        starts = np.empty_like(stops)
        starts.ravel()[0] = start
        starts.ravel()[1:] = stops.ravel()[:-1]
        expected = MemberColumns(samples=samples, crcs=crcs, sizes=sizes, offsets=starts)
        first_far = starts.ravel()[border] if border < starts.size else int(stops[-1, -1])
        return expected if table.render_central(expected, zip64_offset=int(first_far)) == data else None

    def _stop_of(self, table: MemberTable, columns: MemberColumns) -> int:
        last = table.header_sizes(columns.samples[-1:])[0, -1] + columns.sizes[-1, -1]
        return int(columns.offsets[-1, -1] + last)

    def _bodies(self, recipe: Recipe, table: MemberTable, columns: MemberColumns) -> None:
        stops = np.append(columns.offsets[1:, 0], self._stop_of(table, columns))
        row = 0
        while row < len(stops):
            start = int(columns.offsets[row, 0])
            end = max(row + 1, int(np.searchsorted(stops, start + _BYTES_AT_ONCE, side="right")))
            body = read_at(self._files, self._descriptor, start, int(stops[end - 1]))
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
                self.found(entry.name, "does not belong into this zip")
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
            found = read_at(self._files, self._descriptor, entry.offset, entry.data_offset)
            if found != local_header(entry):
                self.found(name, "its local header is not the directory's")
        without = LeftOut(dead, selection.left_out) if selection.kinds else dead
        labels = self._pieces(tail.entries[LABELS])
        if wrong := first_wrong_row(recipe, labels, without=without, selection=selection):
            self.found(LABELS, wrong)
            return  # the other file is made of this one
        labels, metadata = (self._pieces(tail.entries[name]) for name in (LABELS, METADATA))
        if wrong := first_wrong_metadata(recipe, labels, metadata):
            self.found(METADATA, wrong)

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        for start in range(entry.data_offset, entry.stop, _LABELS_AT_ONCE):
            stop = min(start + _LABELS_AT_ONCE, entry.stop)
            yield read_at(self._files, self._descriptor, start, stop)

    def _stats(self, plan: Plan, tail: ZipTail, stored: int) -> None:
        if tail.entries[STATS].size > _STATS_BYTES:
            self.found(STATS, "does not read")
            return
        names = [output.name for output in plan.outputs if output.full_scale is not None]
        data = self._read_member(tail.entries[STATS])
        try:
            content: Any = parse_json(data)
            images = {name: content[name]["images"] for name in names}
        except (ValueError, KeyError, TypeError, IndexError):
            self.found(STATS, "does not read")
            return
        wrong = [name for name in names if images[name] != stored]
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


def _stored(dead: set[int], selection: Selection) -> Iterator[NDArray[np.int64]]:
    """The samples that have images, ascending, some hundreds at once."""
    parts: list[NDArray[np.int64]] = []
    count = 0
    for first, end in selection.kept.pairs:
        for start in range(first, end, _SAMPLES_AT_ONCE):
            part = np.arange(start, min(start + _SAMPLES_AT_ONCE, end), dtype=np.int64)
            if dead:
                part = part[[sample not in dead for sample in part.tolist()]]
            parts.append(part)
            count += len(part)
            if count >= _SAMPLES_AT_ONCE:
                yield np.concatenate(parts)
                parts, count = [], 0
    if count:
        yield np.concatenate(parts)


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

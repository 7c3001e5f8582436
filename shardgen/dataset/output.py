"""The final zip as a file: its last members, and the check that it replaces nothing foreign."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from shardgen.artifacts.zip_records import (
    CENTRAL,
    END_RECORDS_MAX,
    BrokenZip,
    Directory,
    Entry,
    local_header,
    read_end,
    read_entries,
)
from shardgen.domain.plan import PLAN_FILE_NAME, Plan
from shardgen.domain.selection import Ranges, Selection
from shardgen.domain.wording import counted
from shardgen.errors import PlanConflict, StorageFailed
from shardgen.storage.bounded import parse_json
from shardgen.storage.files import DiskFiles, refuse_unusable_folder, storage_error

LABELS = "labels.csv"
METADATA = "metadata.csv"
STATS = "stats.json"
DEAD_LETTERS = "dead_letters.csv"
SELECTION = "selection.json"
PLAN = "plan.json"
CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"
TAIL_MEMBERS = (LABELS, METADATA, STATS, DEAD_LETTERS, SELECTION, PLAN, CARD, CONTACT_SHEET)
_OPTIONAL = {SELECTION, CONTACT_SHEET}
MAX_MEMBER_BYTES = 1 << 28  # of a plan; every other member that is read at once is smaller
# Eight entries, and one for each file that the plan names: 100 bytes each, with a zip64 extra 128.
_TAIL_DIRECTORY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipTail:
    """What a final zip holds behind its images; `directory_size` is that of the images' entries."""

    directory: Directory
    directory_size: int
    entries: dict[str, Entry]


def read_tail(descriptor: int, size: int, *, files: DiskFiles, replacing: bool = False) -> ZipTail:
    """Find the last members of a zip without reading its directory of a million entries; BrokenZip.

    For who is `replacing` it, one that an earlier version merged is good enough.
    """
    directory = read_end(read_at(files, descriptor, max(0, size - END_RECORDS_MAX), size), size)
    stop = directory.offset + directory.size
    start = max(directory.offset, stop - _TAIL_DIRECTORY_BYTES)
    data = read_at(files, descriptor, start, stop)
    first = data.rfind(LABELS.encode()) - CENTRAL.size
    if first < 0:
        raise BrokenZip(f"holds no {LABELS}")
    entries = {entry.name: entry for entry in read_entries(data[first:])}
    wanted = [name for name in TAIL_MEMBERS if name in entries or name not in _OPTIONAL]
    behind_plan = wanted.index(PLAN) + 1
    wanted[behind_plan:behind_plan] = filter(PLAN_FILE_NAME.fullmatch, entries)
    earlier = [name for name in wanted if name != METADATA]
    if list(entries) == earlier and not replacing:
        raise BrokenZip(f"holds no {METADATA}: an earlier version merged it, so merge it again")
    if list(entries) not in (wanted, earlier):
        raise BrokenZip(f"ends with {', '.join(entries)} (expected {', '.join(TAIL_MEMBERS)})")
    return ZipTail(directory=directory, directory_size=start + first - directory.offset, entries=entries)


def read_member(descriptor: int, entry: Entry, *, files: DiskFiles) -> bytes:
    """Read the bytes of one small member after its local header and CRC passed; BrokenZip."""
    # Sizes are what the directory says, and that may be anything.
    if entry.size > MAX_MEMBER_BYTES or entry.stop > files.size(descriptor):
        raise BrokenZip(f"{entry.name}: {entry.size:,} bytes at {entry.offset:,} are more than there can be")
    data = read_at(files, descriptor, entry.offset, entry.stop)
    header = local_header(entry)
    content = data[len(header) :]
    if not data.startswith(header) or len(content) != entry.size or zlib.crc32(content) != entry.crc:
        raise BrokenZip(f"{entry.name}: its bytes are not those of the directory")
    return content


def read_at(files: DiskFiles, descriptor: int, start: int, stop: int) -> bytes:
    """Read the bytes from start to stop, fewer only at the file's end."""
    buffer = bytearray(max(0, min(stop, files.size(descriptor)) - start))
    return bytes(buffer[: files.read_into(descriptor, memoryview(buffer), start)])


def read_selection(descriptor: int, tail: ZipTail, *, planned: int, files: DiskFiles) -> Selection:
    """What a zip of so many planned samples leaves out; BrokenZip when its `selection.json` is not ours."""
    if SELECTION not in tail.entries:
        return Selection(planned=planned)
    data = read_member(descriptor, tail.entries[SELECTION], files=files)
    try:
        found = Selection.of_document(parse_json(data), planned=planned)
    except ValueError as error:
        raise BrokenZip(f"{SELECTION}: {error}") from error
    if not found.kinds or found.canonical_json != data:
        raise BrokenZip(f"{SELECTION}: lists nothing, or not as merge writes it")
    return found


def refuse_foreign_output(output: Path, selection: Selection, plan: Plan, *, files: DiskFiles) -> None:
    """PlanConflict unless nothing is at `output`, or a data set of this plan that may be replaced.

    It may be when it leaves out samples for every reason for which the new one does: nothing replaces a whole
    data set but a whole one, or one of the plan as it has grown since that holds as much. Nobody who was
    excluded comes back by an `--exclude` of another.
    """
    try:
        descriptor = files.open(output)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, output) from error
    try:
        tail = read_tail(descriptor, files.size(descriptor), files=files, replacing=True)
        found = hashlib.sha256(read_member(descriptor, tail.entries[PLAN], files=files)).hexdigest()
        is_ours = found in plan.fingerprints
        earlier = plan.until(plan.fingerprints.index(found) + 1).samples if is_ours else plan.samples
        there = read_selection(descriptor, tail, planned=earlier, files=files) if is_ours else selection
    except (BrokenZip, IsADirectoryError) as error:
        raise _foreign(output, "is not a data set of this run") from error
    except OSError as error:
        raise storage_error(error, output) from error
    finally:
        files.close(descriptor)
    if not is_ours:
        raise _foreign(output, f"holds another plan's data set ({found[:12]}…, not {plan.fingerprint[:12]}…)")
    _refuse_loss(output, selection, there, earlier)


def _refuse_loss(output: Path, new: Selection, there: Selection, earlier: int) -> None:
    """PlanConflict when the data set there, of the first `earlier` samples, has what the new one has not."""
    # What the plan has grown by since is pending in it.
    grown = there.pending | Ranges([(earlier, new.planned)] if earlier < new.planned else [])
    kinds = there.kinds | ({"pending"} if grown else set())
    lost = (new.left_out - grown) - there.excluded
    if lacking := sorted(new.kinds - kinds) or (["pending"] if lost and not there.kinds else []):
        what = "the whole data set" if not there.kinds else "a data set"
        of = "this run" if earlier == new.planned else f"this run's first {earlier:,} samples"
        raise _foreign(output, f"holds {what} of {of} without {' or '.join(lacking)} samples left out")
    if new.excluded and (back := there.excluded - new.excluded):
        raise PlanConflict(
            f"{output}: {counted(back.count, 'sample')} that it leaves out would come back, "
            "so it is not replaced",
            hint="name every source to leave out with --exclude, or choose another name with -o",
        )


def refuse_full_disk(
    output: Path,
    needed_bytes: int,
    *,
    files: DiskFiles,
    folder: Path | None = None,
    otherwise: str = "write to another disk with -o",
) -> None:
    """StorageFailed when the disk of `output` has too little room, InputMissing without a folder to use.

    `folder` is what is on that disk already, if that is not where `output` lies.
    """
    folder = folder or output.parent
    refuse_unusable_folder(folder, makes=0, otherwise="choose another folder with -o")
    try:
        free = files.free_bytes(folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    if free < needed_bytes:
        raise StorageFailed(
            f"{output}: needs {needed_bytes:,} bytes free on its disk, there are {free:,}",
            hint=f"free {needed_bytes - free:,} bytes, or {otherwise}",
        )


def _foreign(output: Path, fact: str) -> PlanConflict:
    return PlanConflict(f"{output}: {fact}, so it is not replaced", hint="choose another name with -o")

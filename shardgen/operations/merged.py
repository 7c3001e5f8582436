"""Which zips were merged here, noted so that people see what is finished. No command depends on it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardgen.coordination.report import Report
from shardgen.domain.plan import Plan
from shardgen.errors import ShardgenError
from shardgen.settings.plan_file import replace_file
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.bounded import parse_json, read_regular
from shardgen.storage.files import make_folders, storing

if TYPE_CHECKING:  # it brings numpy, which `status` does without
    from shardgen.dataset.merge import MergeResult

FILE_NAME = "merged.json"
_MAX_BYTES = 1 << 20
_KEPT = 20  # zips, the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A zip as it was when it was merged, without `excluded` and `pending` samples; `path` is absolute."""

    path: str
    size_bytes: int
    sha256: str
    fingerprint: str
    samples_stored: int
    dead_letters: int
    excluded: int
    pending: int

    @property
    def is_there(self) -> bool:
        """Whether the file is still there, of the same size; its bytes are for `verify`."""
        try:
            return Path(self.path).stat().st_size == self.size_bytes
        except OSError:
            return False


def note_merged(run: RunDirectory, plan: Plan, result: MergeResult) -> None:
    """Note it first, in the place of an earlier zip of that name; a note that fails costs nothing else."""
    note = Merged(
        path=str(result.path.resolve()),
        size_bytes=result.size_bytes,
        sha256=result.sha256,
        fingerprint=plan.fingerprint,
        samples_stored=result.samples_stored,
        dead_letters=result.dead_letters,
        excluded=result.selection.excluded.count,
        pending=result.selection.pending.count,
    )
    others = [one for one in read_merged(run) if one.path != note.path]
    document = {"zips": [asdict(one) for one in (note, *others)][:_KEPT]}
    path = run.notes / FILE_NAME
    with suppress(ShardgenError, OSError), storing(path):
        make_folders(path.parent)
        replace_file(path, json.dumps(document, indent=1).encode())


def read_merged(run: RunDirectory) -> list[Merged]:
    """The zips that were noted, newest first; nothing where there is no note, or none that can be read."""
    try:
        document: Any = parse_json(read_regular(run.notes / FILE_NAME, limit=_MAX_BYTES))
        return [_parsed(one) for one in document["zips"]]
    except (OSError, ShardgenError, ValueError, TypeError, LookupError):
        return []


def finished_zip(run: RunDirectory, found: Report) -> Merged | None:
    """The zip of all that is stored, if it was merged here and is still there; None while work is left."""
    if found.pending:
        return None
    wanted = (found.plan.fingerprint, found.stored)
    for one in read_merged(run):
        if (one.fingerprint, one.samples_stored) == wanted and one.is_there:
            return one
    return None


def _parsed(document: Any) -> Merged:
    found = Merged(**document)
    if any(type(getattr(found, field.name)).__name__ != field.type for field in fields(Merged)):
        raise TypeError(f"{document}: not what `note_merged` writes")
    return found

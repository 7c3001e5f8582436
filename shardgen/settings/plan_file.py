"""`plan.json`: the only reader of plans from outside (the run directory, the manifest, a zip)."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shardgen.domain.limits import plan_problem
from shardgen.domain.plan import (
    EARLIER,
    PLAN_FILE_NAME,
    PLAN_FORMAT,
    Block,
    Document,
    Output,
    Plan,
    PlanFile,
    Shards,
)
from shardgen.errors import (
    InputMissing,
    InvalidSettings,
    ManifestBusy,
    ManifestCorrupt,
    ManifestMismatch,
    PlanConflict,
)
from shardgen.recipes.registry import find_kind, recipe_of
from shardgen.storage.atomic import rename_durably, staged_beside
from shardgen.storage.bounded import Irregular, how_to_read, parse_json, read_regular
from shardgen.storage.files import FILE_MODE, DiskFiles, entries, storage_error, storing
from shardgen.storage.lines import LineFile

FILE_NAME = "plan.json"
NEXT = "plan.json.next"
"""A plan that is to take the place of `plan.json`, from before the manifest takes it until it is renamed."""
_LOCK = ".plan.lock"
_LOCK_SECONDS, _LOCK_PAUSE_SECONDS = 30.0, 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
MAX_BYTES = 1 << 28  # a photograph takes about 250 bytes


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid")

    samples: int
    sources: dict[str, Any]


class _Envelope(BaseModel):
    """Types are not checked strictly here: what was not written just so is not in canonical form."""

    model_config = ConfigDict(extra="forbid")

    format: int
    recipe: dict[str, Any]
    outputs: tuple[Output, ...]
    shards: Shards
    blocks: Annotated[tuple[_Block, ...], Field(min_length=1)]


_ENVELOPE = TypeAdapter(_Envelope)
_OTHER_COPY = "use another copy of it"
_RESTORE = "move it away; then `shardgen plan RUN_DIR` writes it again from the same photographs and settings"

_GET = (
    "on the machine that planned, `shardgen plan RUN_DIR` writes it again; on another one, "
    "copy it from there, where it lies beside plan.json"
)
_GET_SHARED = (
    "wait until the folder has synced; if it is lost everywhere, `shardgen plan RUN_DIR` writes it again "
    "on the machine that planned"
)


def parse_plan(text: str | bytes, *, where: str, hint: str = _OTHER_COPY) -> Plan:
    """Check a plan's JSON; `where` and `hint` go into its errors. Raises ManifestMismatch or ManifestCorrupt.

    A plan that reads is one that could have been made here: its numbers stay within what planning allows,
    and its sources' names inside their folders.
    """
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ManifestCorrupt(f"{where}: not JSON ({error})", hint=hint) from error
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, int) and found != PLAN_FORMAT:
        raise ManifestMismatch(
            f"{where}: plan format {str(found)[:20]}, this shardgen reads format {PLAN_FORMAT}",
            hint="upgrade shardgen on this machine to the version that made the plan"
            if found > PLAN_FORMAT
            else EARLIER,
        )
    try:
        plan = _plan(_ENVELOPE.validate_python(document))
    except (ValidationError, InvalidSettings, TypeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ManifestCorrupt(f"{where}: not a plan ({reason})", hint=hint) from error
    if plan.canonical_json != (text.encode() if isinstance(text, str) else text):
        raise ManifestCorrupt(f"{where}: not in canonical form, so it was edited by hand", hint=hint)
    problem = plan_problem(plan) or recipe_of(plan).problem()
    if problem is not None:
        raise ManifestCorrupt(f"{where}: not a plan ({problem})", hint=hint)
    return plan


def read_plan(run_dir: Path, name: str = FILE_NAME) -> Plan | None:
    """The run directory's plan, or None when nothing was planned yet; or what is to take its place."""
    path = run_dir / name
    try:
        text = read_regular(path, limit=MAX_BYTES)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InputMissing(f"{path}: a folder, not a file", hint=_RESTORE) from None
    except OSError as error:
        raise InputMissing(
            f"{path}: cannot be read ({error.strerror})", hint=how_to_read(error, path, otherwise=_RESTORE)
        ) from error
    return parse_plan(text, where=str(path), hint=_RESTORE)


def open_beside(run_dir: Path, file: PlanFile, *, is_shared_folder: bool = False) -> LineFile:
    """Open a file that the run directory's plan names.

    Raises InputMissing, PlanConflict for another, StorageFailed for a disk that fails.
    """
    path = run_dir / file.name
    get_it = _GET_SHARED if is_shared_folder else _GET
    try:
        found = LineFile.open(path, size=file.bytes, lines=file.lines)
    except FileNotFoundError:
        raise InputMissing(f"{path}: is not there, and the plan needs it", hint=get_it) from None
    except ValueError:
        found = None
    except (Irregular, IsADirectoryError, PermissionError) as error:
        raise InputMissing(
            f"{path}: cannot be read ({error.strerror})", hint=how_to_read(error, path, otherwise=get_it)
        ) from error
    except OSError as error:
        raise storage_error(error, path) from error
    if found is None or found.sha256 != file.sha256:
        raise PlanConflict(f"{path}: not the file that the plan names", hint=get_it)
    return found


def write_beside(run_dir: Path, files: Mapping[str, bytes]) -> None:
    """Write files that a plan will name, durably, unless they are there; under the planning lock."""
    for name, data in files.items():
        _put_lines(run_dir / name, LineFile.of(data))


def copy_beside(run_dir: Path, folder: Path, file: PlanFile) -> None:
    """Copy a file that the plan names into a folder, durably. Raises as `open_beside` does."""
    if not run_dir.samefile(folder):
        _put_lines(folder / file.name, open_beside(run_dir, file))


def _put_lines(path: Path, lines: LineFile) -> None:
    with storing(path):
        with suppress(FileNotFoundError, Irregular, ValueError):
            if LineFile.open(path, size=lines.size).sha256 == lines.sha256:
                return
        _replace(path, lines.pieces())


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file, durably, in one step, over whatever has its name. Raises OSError."""
    _replace(path, [data])


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    disk = DiskFiles()
    with staged_beside(path, files=disk) as (descriptor, staged):
        for piece in pieces:
            disk.write(descriptor, piece)
        disk.fsync(descriptor)
        rename_durably(disk, staged, path)


def remove_unnamed(run_dir: Path) -> None:
    """Remove such files that neither `plan.json` nor what is to take its place names; under the lock."""
    found = [entry.name for entry in entries(run_dir) if PLAN_FILE_NAME.fullmatch(entry.name)]
    if not found:
        return
    plans = [plan for name in (FILE_NAME, NEXT) if (plan := read_plan(run_dir, name)) is not None]
    if not plans:  # the plan is elsewhere, and says which of them count
        return
    named = {file.name for plan in plans for file in recipe_of(plan).files}
    for name in sorted(set(found) - named):
        with storing(run_dir / name):
            (run_dir / name).unlink(missing_ok=True)


@contextmanager
def planning_lock(run_dir: Path) -> Iterator[None]:
    """Held by whoever replaces `plan.json`, or writes, renames or removes `plan.json.next`.

    Waited for up to half a minute, then ManifestBusy. Its file goes with it; one that a kill has left holds
    nobody up. Where the file system has no locks, there is none.
    """
    path = run_dir / _LOCK
    with storing(run_dir / FILE_NAME):
        descriptor = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        if _lock(descriptor) and _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise ManifestBusy(
                f"{path.parent}: another command has been changing its plan for {_LOCK_SECONDS:g} s",
                hint="wait until it has ended, then run the command again",
            )
        time.sleep(_LOCK_PAUSE_SECONDS)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file has its name: who held the lock before has removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _plan(envelope: _Envelope) -> Plan:
    """Make the recipe's own values of its parts. Raises ValidationError, ValueError or InvalidSettings."""
    kind = find_kind(str(envelope.recipe.get("kind")))
    document, sources = _adapter(kind.document), _adapter(kind.sources)
    recipe: Document = document.validate_python(envelope.recipe)
    if recipe.outputs != envelope.outputs:
        raise ValueError("its outputs are not those of its recipe")
    return Plan(
        recipe=recipe,
        outputs=envelope.outputs,
        shards=envelope.shards,
        blocks=tuple(
            Block(samples=block.samples, sources=sources.validate_python(block.sources))
            for block in envelope.blocks
        ),
    )


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

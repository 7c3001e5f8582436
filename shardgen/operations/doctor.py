"""Diagnose: what this machine has, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import shlex
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import sqlalchemy

from shardgen import __version__
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.store import ArtifactStore
from shardgen.coordination.artifact_folder import is_recognised, open_store
from shardgen.coordination.open import open_directory, open_run, probed
from shardgen.depth import device
from shardgen.depth.densedepth.family import RELEASED, SHIPPED
from shardgen.depth.densedepth.weights_file import HDF5_SIGNATURE
from shardgen.domain.wording import counted
from shardgen.errors import (
    ChecksFailed,
    CorruptionError,
    InputMissing,
    ShardgenError,
    StorageFailed,
    missing_image_library,
)
from shardgen.machine import gpus
from shardgen.machine.cores import usable_cores
from shardgen.machine.file_systems import file_system_of, has_trusted_locks, hosted_runtime, is_on_drive
from shardgen.machine.memory import available_memory
from shardgen.manifest.port import Operator
from shardgen.manifest.sqlite import SqliteFile
from shardgen.manifest.urls import is_bucket, is_meant_as_bucket
from shardgen.operations.status import report
from shardgen.recipes.base import Folders, Recipe
from shardgen.settings.run_directory import RunDirectory
from shardgen.sources.checking import COPY_THEM
from shardgen.storage.cache import CACHE_VARIABLE, cache_folder
from shardgen.storage.files import is_file, is_folder, is_there, storage_error
from shardgen.storage.released import cached_path

_RECORDS_SECONDS = 5.0
_FETCHED = ": weights are fetched into it"
_SHOWN = 3  # of the photographs that are not as planned


class Verdict(StrEnum):
    """Whether something is a fact, worth a look, or would fail."""

    FACT = ""
    LOOK = "look"
    FAILS = "FAILS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that was looked at."""

    subject: str
    fact: str
    verdict: Verdict = Verdict.FACT
    hint: str = ""


def diagnose(run_dir: str | Path | None) -> Iterator[Line]:
    """Look at this machine and, if one is named, at a run directory; yields lines as they are known."""
    yield Line(
        subject="shardgen", fact=f"{__version__}, Python {platform.python_version()} on {sys.platform}"
    )
    yield Line(
        subject="libraries",
        fact=f"SQLAlchemy {sqlalchemy.__version__}, SQLite {sqlite3.sqlite_version}, "
        f"{_of_extra('obstore', 'buckets', 'bucket')}, {_of_extra('psycopg', 'PostgreSQL', 'postgres')}",
    )
    yield _image_libraries()
    yield Line(subject="hosted runtime", fact=hosted_runtime() or "none that we know")
    device_line = _device()
    if device_line.verdict is Verdict.FAILS and run_dir is not None and not _computes(run_dir):
        device_line = replace(
            device_line, verdict=Verdict.LOOK, fact=f"{device_line.fact}; this run needs none"
        )
    yield device_line
    memory = available_memory()
    yield Line(
        subject="memory",
        fact=f"{memory.free / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
        + ("" if memory.limit is None else ", the limit of this container"),
        verdict=Verdict.LOOK if memory.free < 3e9 else Verdict.FACT,
        hint="the full network needs about 3 GB a worker" if memory.free < 3e9 else "",
    )
    yield from _weights()
    if run_dir is not None:
        yield from _run(run_dir)


def refusal(lines: Iterable[Line]) -> ChecksFailed | None:
    """What to raise of these lines: the subjects that would fail, and what to do about the first."""
    failing = [line for line in lines if line.verdict is Verdict.FAILS]
    if not failing:
        return None
    subjects = ", ".join(dict.fromkeys(line.subject for line in failing))
    hint = next((line.hint for line in failing if line.hint), "")
    return ChecksFailed(
        f"{counted(len(failing), 'check')} failed: {subjects}",
        hint=hint or "correct what is marked FAILS, then run doctor again",
    )


def _of_extra(library: str, use: str, extra: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"no {library} (for {use}: the extra [{extra}])"


def _computes(run_dir: str | Path) -> bool:
    """Whether a device has something to do in this run; what is wrong with it is said elsewhere."""
    try:
        return open_directory(run_dir).local is not None
    except ShardgenError:
        return True


def _image_libraries() -> Line:
    try:
        from shardgen.imaging.codec import VERSIONS  # noqa: PLC0415 - what is looked at may not load
    except ImportError as error:
        unfit = missing_image_library(error)
        return Line(subject="image libraries", fact=str(unfit), verdict=Verdict.FAILS, hint=unfit.hint)
    return Line(
        subject="image libraries", fact=", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    )


def _device() -> Line:
    try:
        found = device.prepare("auto")
    except ShardgenError as error:
        return Line(subject="device", fact=str(error), verdict=Verdict.FAILS, hint=error.hint)
    pays = found.kind == "gpu" or device.has_bfloat16()
    fast = (
        '; precision "fast" is worth it here'
        if pays
        else '; precision "float32": without bfloat16 "fast" is refused'
    )
    listed = gpus.visible_gpus(gpus.list_gpus(), os.environ)
    unused = found.kind == "cpu" and bool(listed)
    return Line(
        subject="device",
        fact=f"{found.model}, {usable_cores()} cores, TensorFlow {found.version}{fast}"
        + (f"; these variables are set and change bytes: {found.switches}" if found.switches else "")
        + (f"; it cannot use {', '.join(map(str, listed))}" if unused else ""),
        verdict=Verdict.LOOK if unused else Verdict.FACT,
        hint='pip install "shardgen[gpu]", or run with --device cpu' if unused else "",
    )


def _weights() -> Iterator[Line]:
    try:
        folder = cache_folder()
    except ShardgenError as error:
        yield Line(subject="cache", fact=str(error), verdict=Verdict.LOOK, hint=f"{error.hint}{_FETCHED}")
    else:
        yield from _cache(folder)
    for name in SHIPPED:
        yield Line(subject=f"weights {name}", fact="in the package")


def _cache(folder: Path) -> Iterator[Line]:
    for name, released in RELEASED.items():
        path = cached_path(released)
        fetch_them = f"shardgen weights fetch {name}"
        problem = _weights_problem(path)
        if problem is None:
            yield Line(subject=f"weights {name}", fact="not fetched", hint=fetch_them)
        elif problem:
            yield Line(
                subject=f"weights {name}",
                fact=f"{path}: {problem}",
                verdict=Verdict.FAILS,
                hint=f"rm -f {shlex.quote(str(path))}; {fetch_them}",
            )
        else:
            yield Line(subject=f"weights {name}", fact=str(path))
    if not _takes_files(_nearest(folder)):
        yield Line(
            subject="cache",
            fact=f"{folder}: cannot be written",
            verdict=Verdict.LOOK,
            hint=f"export {CACHE_VARIABLE}=DIR, a folder of yours{_FETCHED}",
        )


def _weights_problem(path: Path) -> str | None:
    """What the first bytes of a weights file tell, None when it is not there; no more of it is read."""
    try:
        if not is_file(path):
            return None
        with path.open("rb") as file:
            head = file.read(len(HDF5_SIGNATURE))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except StorageFailed as error:
        return str(error).removeprefix(f"{path}: ")
    return "" if head == HDF5_SIGNATURE else f"not HDF5 (it starts with {head!r})"


def _run(run_dir: str | Path) -> Iterator[Line]:
    try:
        if is_meant_as_bucket(str(run_dir)) and isinstance(run_dir, str):
            yield from _store(run_dir)
        run = open_directory(run_dir)
        if is_on_drive(run.path):
            yield _on_drive(is_sqlite=run.settings.manifest_url().startswith("sqlite:"))
        if is_bucket(run.url):
            if not run.elsewhere:
                yield from _store(run.url)
            yield from _bucket(run)
            return
        folders = run.folders({})
        backend, store = run.database.backend, open_store(run)
    except ShardgenError as error:
        yield Line(subject=str(run_dir), fact=str(error), verdict=Verdict.FAILS, hint=error.hint)
        return
    lines = [_source_folder(kind, folder) for kind, folder in folders.items()]
    yield from lines
    if isinstance(backend, SqliteFile):
        yield _file_system("manifest", backend.path, sqlite=True)
    else:
        yield Line(subject="manifest", fact=backend.shown)
    if isinstance(store, FolderStore):
        yield _file_system("artifacts", store.root, sqlite=False)
    else:
        try:
            yield from _store(store.shown)
        except ShardgenError as error:
            yield Line(subject="artifacts", fact=str(error), verdict=Verdict.FAILS, hint=error.hint)
            return
    yield from _planned(run, folders if all(line.verdict is Verdict.FACT for line in lines) else None, store)


def _bucket(run: RunDirectory) -> Iterator[Line]:
    """What is planned and made there, and whether this machine could take part."""
    folders: Folders | None = None
    try:
        folders = run.folders({})
    except InputMissing as error:  # a machine that only looks or merges needs none
        yield Line(subject="sources", fact=str(error), verdict=Verdict.LOOK, hint=error.hint)
    lines = [_source_folder(kind, folder) for kind, folder in (folders or {}).items()]
    yield from (
        replace(line, verdict=Verdict.LOOK) if line.verdict is Verdict.FAILS and run.elsewhere else line
        for line in lines
    )
    if folders and all(line.verdict is Verdict.FACT for line in lines):
        yield from _sources(folders, run.recipe(run.plan()))
    shown = report(run)
    yield Line(subject="plan", fact=f"{shown.plan.samples:,} samples, {shown.pending:,} pending")


def _store(url: str) -> Iterator[Line]:
    """What a bucket's store does with the requests that a run rests on."""
    found = probed(url)
    for row in found.rows:
        if not row.is_good and row.is_vital:
            continue  # the refusal names it
        yield Line(
            subject="bucket",
            fact=str(row),
            verdict=Verdict.FACT if row.is_good else Verdict.LOOK,
            hint="" if row.is_good else "without that right `shardgen sweep` cannot work",
        )
    yield Line(subject="bucket", fact=f"{url}, tried in {found.requests} requests")
    found.refuse()


def _source_folder(kind: str, folder: Path) -> Line:
    where = f"--{kind} DIR says where it is on this machine"
    try:
        there = is_folder(folder)
    except ShardgenError as error:
        return Line(subject="sources", fact=str(error), verdict=Verdict.FAILS, hint=f"{error.hint}; {where}")
    return Line(
        subject="sources",
        fact=str(folder) if there else f"{folder}: not there",
        verdict=Verdict.FACT if there else Verdict.FAILS,
        hint="" if there else where,
    )


def _planned(run: RunDirectory, folders: Folders | None, store: ArtifactStore) -> Iterator[Line]:
    """What was planned and made; the sources are compared if folders are given."""
    try:
        if folders is not None:
            yield from _sources(folders, run.recipe(run.plan()))
        found = report(run)
        yield Line(subject="plan", fact=f"{found.plan.samples:,} samples, {found.pending:,} pending")
        with open_run(run).own_records() as own:
            if own.manifest is None:
                return
            yield from _records(own.manifest.operator)
            if own.store is None:
                return
            own.store.refuse_unreadable()
            is_ours = is_recognised(own.store, own.manifest.folder)
        if not is_ours:
            yield Line(
                subject="artifacts",
                fact=f"{store.shown}: not the folder that this run's workers write to",
                verdict=Verdict.FAILS,
                hint=store.other_place,
            )
    except CorruptionError as error:
        yield Line(subject="records", fact=str(error), verdict=Verdict.FAILS, hint=error.hint)
    except StorageFailed as error:
        yield Line(subject="plan", fact=str(error), verdict=Verdict.FAILS, hint=error.hint)
    except ShardgenError as error:
        is_lost = isinstance(error, InputMissing) and _holds_artifacts(store)
        yield Line(
            subject="plan",
            fact=f"{error}, but there are artifacts" if is_lost else str(error),
            verdict=Verdict.FAILS if is_lost else Verdict.LOOK,
            hint=error.hint,
        )


def _records(operator: Operator) -> Iterator[Line]:
    """Whether the manifest agrees with itself, and its file is undamaged, as far as some seconds can tell."""
    damage = operator.damage(seconds=_RECORDS_SECONDS)
    damage.refuse(operator.shown)
    audit = operator.audit(seconds=_RECORDS_SECONDS)
    audit.refuse(operator.shown)
    is_cut = not (damage.is_complete and audit.is_complete)
    if is_cut:
        fact = f"checked for only {_RECORDS_SECONDS:g} s; shardgen verify RUN_DIR checks longer"
    elif damage.is_looked_for:
        fact = "undamaged; counters and receipts agree"
    else:
        fact = "counters and receipts agree"
    yield Line(subject="records", fact=fact)


def _sources(folders: Folders, recipe: Recipe) -> Iterator[Line]:
    """A line if planned sources are gone or of another size; their content is not read."""
    problems = recipe.source_problems(folders)
    if problems:
        more = f"; … and {len(problems) - _SHOWN:,} more" if problems[_SHOWN:] else ""
        yield Line(
            subject="sources",
            fact=f"{len(problems):,} not as planned: {'; '.join(problems[:_SHOWN])}{more}",
            verdict=Verdict.FAILS,
            hint=COPY_THEM,
        )


def _holds_artifacts(store: ArtifactStore) -> bool:
    try:
        return any(True for _ in store.names())
    except ShardgenError:
        return False


def _on_drive(*, is_sqlite: bool) -> Line:
    return Line(
        subject="run directory",
        fact='on Google Drive, so [manifest] url must be "folder:" or a database server',
        verdict=Verdict.LOOK if is_sqlite else Verdict.FACT,
        hint="other runtimes cannot see a SQLite file on this one's disk" if is_sqlite else "",
    )


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in it; that one has no name and is gone at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists, or that cannot be looked at."""
    return next(one for one in (path, *Path(os.path.realpath(path)).parents) if _may_exist(one))


def _may_exist(path: Path) -> bool:
    try:
        return is_there(path)
    except StorageFailed:
        return True


def _file_system(subject: str, path: Path, *, sqlite: bool) -> Line:
    existing = _nearest(path)
    try:
        free = psutil.disk_usage(str(existing)).free
    except OSError as error:
        unfit = storage_error(error, path)
        return Line(subject=subject, fact=str(unfit), verdict=Verdict.FAILS, hint=unfit.hint)
    kind = file_system_of(existing)
    refused = sqlite and not has_trusted_locks(kind)
    writable = os.access(existing, os.W_OK)
    verdict = Verdict.FAILS if refused or not writable else Verdict.LOOK if free < 5e9 else Verdict.FACT
    hint = (
        'put the manifest on a local disk; for several machines: "folder:" or a database server'
        if refused
        else ""
        if writable
        else f"let this user write to {existing}"
    )
    return Line(
        subject=subject, fact=f"{path} on {kind}, {free / 1e9:.1f} GB free", verdict=verdict, hint=hint
    )

"""`shardgen.toml`: the only reader of user settings, and the text that `init` writes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from shardgen.domain.claims import FolderPolicy
from shardgen.domain.lease import LeasePolicy
from shardgen.domain.limits import MAX_BATCH, MAX_SAMPLES, MAX_SLICE_BATCHES
from shardgen.domain.plan import Plan, Shards, differences
from shardgen.domain.wording import counted, nearest
from shardgen.errors import InputMissing, InvalidSettings
from shardgen.manifest.urls import is_bucket
from shardgen.recipes.base import RecipeKind, RecipeTables, Table
from shardgen.recipes.registry import DEFAULT, find_kind, kinds
from shardgen.settings.choices import understood
from shardgen.settings.problems import KnownKeys, problems_in
from shardgen.settings.secrets import expanded, named_in
from shardgen.storage.bounded import how_to_read, parse_toml, read_regular

FILE_NAME = "shardgen.toml"
MAX_BYTES = 1 << 16
_MAX_PROBLEMS = 20  # named in one message
_LINE_MAX = 200  # characters
_MAX_RUNS = 20  # named in one hint
_MAX_LEVELS = 3  # below the folder that was typed
_MAX_LOOKED_AT = 20_000  # files and folders

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class RecipeTable(Table):
    """Which kind of recipe the other tables are of."""

    kind: str = DEFAULT


class ShardsTable(Table):
    """Samples per shard, batches per slice, samples per batch."""

    size: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 100_000
    slice_batches: Annotated[int, Field(ge=1, le=MAX_SLICE_BATCHES)] = 16
    batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 32


class ManifestTable(Table):
    """Where the manifest lives; `${NAME}` is taken from the environment."""

    url: Annotated[str, Field(min_length=1)] = "sqlite:///manifest.sqlite"


class ArtifactsTable(Table):
    """A folder, relative to the run directory, that every worker and merge can reach.

    With a bucket in `[manifest] url` leave it as it is: artifacts go into the bucket.
    """

    url: Annotated[str, Field(min_length=1)] = "artifacts"


class LeaseTable(Table):
    """Lease times in seconds, and how many deaths without progress block a slice.

    `max_dead_share` is per cent of the finished samples.
    """

    seconds: Seconds = 120
    heartbeat_seconds: Seconds = 30
    stall_seconds: Seconds = 600
    max_attempts: Annotated[int, Field(ge=1, le=1_000_000)] = 6
    max_dead_share: Annotated[float, Field(ge=0, le=100)] = 100

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                f"seconds must be at least 3 heartbeats (found seconds = {self.seconds:g}, "
                f"heartbeat_seconds = {self.heartbeat_seconds:g}): one late beat would lose the slice"
            )
        return self


class FolderTable(Table):
    """A shared folder (`[manifest] url = "folder:"`): times in seconds; see docs/colab.md."""

    segment_seconds: Seconds = 300
    segment_batches: Annotated[int, Field(ge=1, le=1024)] = 32
    settle_seconds: Annotated[float, Field(ge=0, le=86_400)] = 180
    silent_seconds: Seconds = 3600
    scan_seconds: Seconds = 60

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.silent_seconds < 3 * self.segment_seconds:
            raise ValueError(
                f"silent_seconds must be at least 3 times segment_seconds (found {self.silent_seconds:g} and "
                f"{self.segment_seconds:g}): a worker shows nothing before its segment is full"
            )
        return self


class CardTable(Table):
    """What the user says in the data set's README: its title and licence, a line each, and Markdown."""

    title: Annotated[str, Field(max_length=_LINE_MAX)] = ""
    licence: Annotated[str, Field(max_length=_LINE_MAX)] = ""
    text: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in (("title", self.title), ("licence", self.licence)):
            if not value.isprintable():
                raise ValueError(f"{name}: must be one line of text")
        return self


class EngineTables(Table):
    """The tables that belong to no recipe."""

    recipe: RecipeTable = Field(default_factory=RecipeTable)
    shards: ShardsTable = Field(default_factory=ShardsTable)
    manifest: ManifestTable = Field(default_factory=ManifestTable)
    artifacts: ArtifactsTable = Field(default_factory=ArtifactsTable)
    lease: LeaseTable = Field(default_factory=LeaseTable)
    folder: FolderTable = Field(default_factory=FolderTable)
    card: CardTable = Field(default_factory=CardTable)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything in `shardgen.toml`: the engine's tables and those of its kind of recipe."""

    kind: RecipeKind
    tables: RecipeTables
    engine: EngineTables

    @property
    def shards_plan(self) -> Shards:
        """The plan's part of `[shards]`."""
        return Shards(**self.engine.shards.model_dump())

    @property
    def lease_policy(self) -> LeasePolicy:
        """`[lease]` as times."""
        return LeasePolicy(
            duration=timedelta(seconds=self.engine.lease.seconds),
            heartbeat=timedelta(seconds=self.engine.lease.heartbeat_seconds),
            stall=timedelta(seconds=self.engine.lease.stall_seconds),
            max_attempts=self.engine.lease.max_attempts,
            max_dead_share=self.engine.lease.max_dead_share,
        )

    @property
    def folder_policy(self) -> FolderPolicy:
        """`[folder]` as times."""
        return FolderPolicy(
            segment=timedelta(seconds=self.engine.folder.segment_seconds),
            segment_batches=self.engine.folder.segment_batches,
            settle=timedelta(seconds=self.engine.folder.settle_seconds),
            silent=timedelta(seconds=self.engine.folder.silent_seconds),
            scan=timedelta(seconds=self.engine.folder.scan_seconds),
        )

    @property
    def named_variables(self) -> set[str]:
        """The variables of the environment that the settings take a part of a url from."""
        return named_in(self.engine.manifest.url)

    def manifest_url(self) -> str:
        """`[manifest] url` with its `${NAME}` parts taken from the environment.

        Raises InvalidSettings when a named variable is not set, or when a password is written out; with a
        bucket also for artifacts elsewhere, which lie under its url.
        """
        url = expanded(self.engine.manifest.url, where=f"{FILE_NAME}: [manifest] url")
        if is_bucket(url) and self.engine.artifacts != ArtifactsTable():
            raise InvalidSettings(
                f"{FILE_NAME}: [artifacts] url: with a bucket in [manifest] url the artifacts lie there, too",
                hint="remove the line from [artifacts]; for artifacts elsewhere: [manifest] url = a database",
            )
        return url

    def at(self, manifest_url: str) -> Settings:
        """The same settings with another `[manifest] url`."""
        tables = {"manifest": ManifestTable(url=manifest_url)}
        return replace(self, engine=self.engine.model_copy(update=tables))

    def in_run_directory(self) -> Settings:
        """The same settings with a SQLite manifest and the artifacts in the run directory itself."""
        tables = {"manifest": ManifestTable(), "artifacts": ArtifactsTable()}
        return replace(self, engine=self.engine.model_copy(update=tables))


def settings_differences(plan: Plan, settings: Settings) -> list[str]:
    """Where the settings would give another plan (`compose.grid: 5x4 -> 4x4`); sources are not read."""
    if plan.recipe.kind != settings.kind.name:
        return [f"recipe.kind: {plan.recipe.kind} -> {settings.kind.name}"]
    lines = differences(plan.recipe, settings.tables.document(plan.recipe))
    return lines + differences(plan.shards, settings.shards_plan, prefix="shards")


def _other_run(run_dir: Path) -> str:
    """Who leaves out the run directory, or names a folder above it, is told the run directories there."""
    found = [shlex.quote(str(path)) for path in islice(_runs_below(run_dir), _MAX_RUNS + 1)]
    if found:
        more = ", and more" if len(found) > _MAX_RUNS else ""
        which = "the run directory" if len(found) == 1 else "one of the run directories here"
        return f"name {which}: {', '.join(found[:_MAX_RUNS])}{more}"
    if like := _like(run_dir):
        return f"did you mean {shlex.quote(str(like))}?"
    if run_dir.is_dir() and run_dir != Path():
        return "check the name; a new one: shardgen init NEW_DIR --foregrounds DIR --backgrounds DIR"
    return "shardgen init RUN_DIR --foregrounds DIR --backgrounds DIR"


def _like(run_dir: Path) -> Path | None:
    """The run directory beside it whose name is most like that of one that is not there."""
    if not run_dir.exists():
        with suppress(OSError), os.scandir(run_dir.parent) as entries:
            runs = [one.name for one in islice(entries, _MAX_LOOKED_AT) if Path(one, FILE_NAME).is_file()]
            if name := nearest(run_dir.name, runs):
                return run_dir.parent / name
    return None


def _runs_below(folder: Path) -> Iterator[Path]:
    """Run directories some levels below a folder, the nearest first; no link is followed.

    A few thousand names are looked at and no more: below may be a whole disk, or all photographs.
    """
    level, looked_at = [folder], 0
    for _ in range(_MAX_LEVELS):
        below: list[Path] = []
        for path in level:
            with suppress(OSError), os.scandir(path) as entries:
                for entry in entries:
                    looked_at += 1
                    if looked_at > _MAX_LOOKED_AT:
                        return
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        below.append(Path(entry))
        runs = {path for path in below if (path / FILE_NAME).is_file()}
        yield from sorted(runs)
        level = sorted(set(below) - runs)


def read_settings(run_dir: Path) -> Settings:
    """Read `RUN_DIR/shardgen.toml`. Raises InputMissing, or InvalidSettings for all wrong keys at once."""
    path = run_dir / FILE_NAME
    try:
        # Some editors put a mark before the first line.
        text = read_regular(path, limit=MAX_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise InputMissing(
            f"{path}: there is no such file, so this is not a run directory", hint=_other_run(run_dir)
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{path}: not UTF-8 text ({error.reason})", hint="save it as UTF-8") from error
    except IsADirectoryError:
        raise InputMissing(
            f"{path}: a folder, not a file",
            hint="move it away, then: shardgen init RUN_DIR --foregrounds DIR --backgrounds DIR",
        ) from None
    except OSError as error:
        other = "put a text file there, as `shardgen init` writes it"
        raise InputMissing(
            f"{path}: cannot be read ({error.strerror})", hint=how_to_read(error, path, otherwise=other)
        ) from error
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise InvalidSettings(
            f"{path}: not valid TOML: {error}",
            hint=f"correct that line; `shardgen init` in an empty folder writes a commented {FILE_NAME}",
        ) from error
    return parse_settings(document, where=str(path))


def parse_settings(document: Mapping[str, object], *, where: str, option: str = "") -> Settings:
    """Check a parsed TOML document; `where` names it in errors, `option` in hints if it is none's file.

    Raises InvalidSettings; with several problems its `problems` has them all, each with a hint.
    """
    named = document.get("recipe")
    name = named.get("kind", DEFAULT) if isinstance(named, Mapping) else DEFAULT
    try:
        kind = find_kind(name if isinstance(name, str) else DEFAULT)
    except InvalidSettings as error:
        raise InvalidSettings(f"{where}: {error}", hint=error.hint) from None
    ours = {key: value for key, value in document.items() if key in EngineTables.model_fields}
    theirs = {key: value for key, value in document.items() if key not in ours}
    errors: list[ValidationError] = []
    tables = _checked(kind.tables, understood(kind.tables, theirs), errors)
    engine = _checked(EngineTables, ours, errors)
    if tables is not None and engine is not None:
        return Settings(kind=kind, tables=tables, engine=engine)
    elsewhere = {
        name: other.name
        for other in kinds()
        if other is not kind
        for table, keys in other.tables().model_dump().items()
        for name in (table, *(f"{table}.{key}" for key in keys))
    }
    known = KnownKeys.of(kind.tables, EngineTables, elsewhere=elsewhere)
    problems = [problem for error in errors for problem in problems_in(error, known, option=option)]
    raise _refusal(problems, where=where, corrected=option or FILE_NAME) from errors[0]


def _refusal(problems: Sequence[tuple[str, str]], *, where: str, corrected: str) -> InvalidSettings:
    """One problem is the error itself; of several each is listed with its own hint."""
    if len(problems) == 1:
        problem, hint = problems[0]
        hint = hint or f"correct {corrected}, then run the same command again"
        return InvalidSettings(f"{where}: {problem}", hint=hint, problems=(problem,))
    shown = problems[:_MAX_PROBLEMS]
    names = ", ".join(problem.partition(": ")[0] for problem, _ in shown)
    more = f", and {len(problems) - len(shown):,} more" if problems[_MAX_PROBLEMS:] else ""
    return InvalidSettings(
        f"{where}: {counted(len(problems), 'setting')} cannot be used: {names}{more}",
        hint="correct each of them, then run the same command again",
        problems=tuple(f"{problem}; {hint}" if hint else problem for problem, hint in shown),
    )


_Checked = TypeVar("_Checked", bound=Table)


def _checked(
    tables: type[_Checked], document: Mapping[str, object], errors: list[ValidationError]
) -> _Checked | None:
    try:
        # JSON mode is strict about types ("5" is no number) yet knows lists as tuples and strings as enums.
        return tables.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        errors.append(error)
        return None

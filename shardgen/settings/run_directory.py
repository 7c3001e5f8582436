"""A run directory: its settings, its plan, and where its sources, manifest and artifacts are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from shardgen.artifacts.folder_store import FolderStore
from shardgen.domain.plan import Plan, PlanFile
from shardgen.domain.receipt import Receipt
from shardgen.errors import InputMissing, InvalidSettings, MachineUnfit, PlanConflict, ShardgenError
from shardgen.manifest import port
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, read_stored_plan
from shardgen.manifest.schema import StoredPlan
from shardgen.manifest.shared import PUBLISHED
from shardgen.manifest.sqlite import SqliteFile
from shardgen.manifest.urls import SHARED_FOLDER, has_own_index, is_bucket, refuse_mistyped_bucket
from shardgen.recipes.base import Folders, Recipe
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import open_beside, parse_plan, read_plan
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.settings.settings import Settings, read_settings, settings_differences
from shardgen.storage.cache import CACHE_VARIABLE, cache_folder, index_folder
from shardgen.storage.files import entries, refuse_unusable_folder
from shardgen.storage.lines import LineFile


class ManifestElsewhere(Protocol):
    """Who opens manifests that are no databases."""

    def open(self, run: RunDirectory, plan: Plan) -> port.Manifest:
        """Open the manifest of this plan."""
        ...

    def is_begun(self, run: RunDirectory) -> bool:
        """Whether a worker has claimed a slice."""
        ...

    def check(self, run: RunDirectory) -> None:
        """Refuse what cannot be written, or not be trusted, before anything is planned."""
        ...

    def rebuild(self, run: RunDirectory, plan: Plan, receipts: Iterable[Receipt]) -> None:
        """Let the record be these receipts, in batch order, each made of a whole artifact."""
        ...


ELSEWHERE: dict[str, ManifestElsewhere] = {}
"""By the scheme of `[manifest] url`."""
LOGS = "logs"
OTHER_DIRECTORY = "use a new directory for the other plan"
OTHER_PREFIX = f"{OTHER_DIRECTORY}, with another prefix in its [manifest] url"
"""Of a run in a bucket."""


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """A run directory with readable settings; it may not be planned yet.

    Its two files are read when it is opened and never again. `plan_file` is what `plan.json` was then: None
    when there was none; an error waits for whoever needs a plan. `is_current`: it is known to be the plan
    that counts.

    `elsewhere` is the url of the bucket that named it, if one did: then `path` is a folder of this machine's
    cache, with what was fetched.
    """

    path: Path
    settings: Settings
    plan_file: Plan | ShardgenError | None
    is_current: bool = False
    elsewhere: str = ""

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Read the settings, and the plan if there is one. Raises InputMissing or InvalidSettings."""
        settings = read_settings(path)
        try:
            return cls(path=path, settings=settings, plan_file=read_plan(path))
        except ShardgenError as error:
            return cls(path=path, settings=settings, plan_file=error)

    def planned(self, plan: Plan) -> RunDirectory:
        """The same directory with this plan in it: for whoever has written it since."""
        return replace(self, plan_file=plan, is_current=True)

    @cached_property
    def database(self) -> DatabaseUrl:
        """Where the manifest is."""
        return DatabaseUrl(url=self.settings.manifest_url(), run_dir=self.path, index=self.index)

    @cached_property
    def url(self) -> str:
        """The manifest's URL, for whoever asks of what kind it is; "" when it cannot be told."""
        try:
            return self.settings.manifest_url()
        except InvalidSettings:  # whoever opens the manifest is told what is wrong with its URL
            return ""

    @property
    def named(self) -> str:
        """What to type for it in a command."""
        return self.elsewhere or str(self.path)

    @property
    def for_another(self) -> str:
        """What to do to have another plan beside this one."""
        return OTHER_PREFIX if is_bucket(self.url) else OTHER_DIRECTORY

    @property
    def results(self) -> Path:
        """Where a result goes that no option names: nobody looks for one in a cache."""
        return Path() if self.elsewhere else self.path

    @property
    def notes(self) -> Path:
        """Where this machine notes what only people ask for: never in a folder that others write to."""
        return (self.index if has_own_index(self.url) else None) or self.path

    @cached_property
    def log_folders(self) -> tuple[Path, ...]:
        """Where workers of this machine keep their logs of a planned run: the first that can be written."""
        first = self.notes / LOGS
        if self.notes != self.path or (plan := self.current_plan) is None:
            return (first,)
        try:
            return first, index_folder(self.path, plan.fingerprint) / LOGS
        except MachineUnfit:  # no cache folder
            return (first,)

    @property
    def manifest_elsewhere(self) -> ManifestElsewhere | None:
        """Who opens this run's manifest, if that is no database."""
        return ELSEWHERE.get(self.url.partition("://")[0])

    @property
    def is_shared_folder(self) -> bool:
        """Whether this directory is a folder that machines share with nothing else (`folder:`)."""
        return self.url == SHARED_FOLDER

    @cached_property
    def index(self) -> Path | None:
        """This machine's own folder for a planned run without a database; None for any other."""
        if not has_own_index(self.url) or (plan := self.plan_here()) is None:
            return None
        return index_folder(self.path, plan.fingerprint)

    @cached_property
    def artifacts(self) -> Path:
        """The artifact folder; of a shared folder this machine's own, where batches wait for a segment.

        Only for `coordination`, whose `open_store` knows of buckets, too.
        """
        if self.is_shared_folder:
            if self.index is None:
                raise InputMissing(f"{self.path}: nothing is planned here yet", hint="shardgen plan RUN_DIR")
            return self.index / "artifacts"
        url = self.settings.engine.artifacts.url
        if "://" in url:
            scheme = url.partition("://")[0]  # the rest may hold a secret
            raise InvalidSettings(
                f"[artifacts] url: {scheme}:// is not known; it is a folder, or a bucket (s3, gs, az)",
                hint='url = "artifacts"',
            )
        folder = self.path / _with_home(url, where=f"{self.path / SETTINGS}: [artifacts] url")
        refuse_mistyped_bucket(url, folder, where="[artifacts] url")
        return folder

    def check_outputs(self) -> None:
        """Look at the folder of the manifest before anything is written.

        Raises InvalidSettings for one that this version does not know, InputMissing for one that cannot be
        written.
        """
        if (elsewhere := self.manifest_elsewhere) is not None:
            elsewhere.check(self)
            return
        if has_own_index(self.url):  # it lies there by the plan that is not made yet
            refuse_unusable_folder(
                cache_folder(), makes=None, otherwise=f"name another folder: export {CACHE_VARIABLE}=DIR"
            )
        elif isinstance(backend := self.database.backend, SqliteFile):
            other = "correct [manifest] url in shardgen.toml"
            refuse_unusable_folder(backend.path.parent, makes=None, otherwise=other)

    def folders(self, given: Folders) -> Folders:
        """This machine's source folders: as given by options, by the environment, else by the settings.

        The variable of `foregrounds` is `$SHARDGEN_FOREGROUNDS`. Raises InputMissing for one not named,
        InvalidSettings for one given that this kind of recipe does not have.
        """
        kinds, written = self.settings.kind.folders, self.settings.tables.source_folders()
        for kind in given:
            if kind not in kinds:
                known = " ".join(f"--{one} DIR" for one in kinds)
                raise InvalidSettings(
                    f'--{kind}: a run of [recipe] kind = "{self.settings.kind.name}" takes no {kind}',
                    hint=f"leave it out, or name what the run takes: {known}",
                )
        return {kind: self._folder(kind, given.get(kind), written[kind]) for kind in kinds}

    def _folder(self, kind: str, option: Path | None, setting: str) -> Path:
        name = f"SHARDGEN_{kind.upper()}"
        variable = os.environ.get(name)
        if option is not None:
            return option
        if variable:
            return Path(variable)
        if self.elsewhere and not Path(setting).is_absolute():  # a folder of the machine that planned
            raise InputMissing(
                f"{kind}: no folder is named on this machine", hint=f"add --{kind} DIR, or export {name}=DIR"
            )
        if not setting:
            raise InputMissing(
                f"{kind}: no folder is named, neither by an option nor in shardgen.toml",
                hint=f"add --{kind} DIR, or set [sources] {kind}",
            )
        return self.path / _with_home(setting, where=f"{self.path / SETTINGS}: [sources] {kind}")

    @cached_property
    def local(self) -> object:
        """What the settings say of this machine alone, as the recipe knows it."""
        where = self.path / SETTINGS

        def resolve(setting: str, name: str) -> Path:
            table, _, key = name.partition(".")
            return self.path / _with_home(setting, where=f"{where}: [{table}] {key}")

        return self.settings.tables.local(resolve)

    def plan_here(self) -> Plan | None:
        """What `plan.json` was at the opening, None if there was none. Raises what was wrong with it."""
        if isinstance(self.plan_file, ShardgenError):
            raise self.plan_file
        return self.plan_file

    def plan(self) -> Plan:
        """The plan of this run. The manifest's counts: `plan.json` if that is the same, or of another run.

        So a machine needs no `plan.json`, and an older one of this run does no harm. Raises InputMissing when
        nothing was planned, PlanConflict when the settings would plan otherwise.
        """
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        plan = self.current_plan
        if plan is None:
            raise InputMissing(f"{self.path}: nothing is planned here yet", hint="shardgen plan RUN_DIR")
        self.check_settings(plan)
        return plan

    @cached_property
    def current_plan(self) -> Plan | None:
        """The plan that counts, whatever the settings say by now; None when nothing was planned."""
        plan = self.plan_here()
        if self.is_current or (stored := self._stored) is None:
            return plan
        if plan is not None and plan.fingerprint not in stored.earlier:
            return plan  # the same; or whoever opens the manifest is told that it is another run's
        return self.parse_stored(stored)

    @cached_property
    def _stored(self) -> StoredPlan | None:
        if has_own_index(self.url):  # it was made of `plan.json`, and lies where that says
            return None
        plan = self.plan_here()
        return read_stored_plan(self.database, "" if plan is None else plan.fingerprint)

    def parse_stored(self, stored: StoredPlan) -> Plan:
        """The plan that the manifest holds."""
        return parse_plan(stored.text, where=f"{self.database.backend.shown}: its plan")

    @property
    def is_begun(self) -> bool:
        """Whether something is made of the plan, so that no other can take its place.

        On a shared folder: whether a worker has joined; in a bucket: whether one has claimed a slice. Without
        a manifest: whether there are artifacts, as there may be in a bucket.
        """
        if (elsewhere := self.manifest_elsewhere) is not None:
            return elsewhere.is_begun(self)
        if has_own_index(self.url):
            return not self.is_shared_folder or bool(entries(self.path / PUBLISHED))
        if self._stored is not None:
            return self._stored.has_receipts
        if is_bucket(self.settings.engine.artifacts.url):
            return True
        return any(True for _ in FolderStore(self.artifacts).names())

    def check_settings(self, plan: Plan) -> None:
        """Refuse settings that would give another plan. Raises PlanConflict with the differences."""
        changed = settings_differences(plan, self.settings)
        if changed:
            raise PlanConflict(
                f"{self.path}: shardgen.toml differs from the plan: {'; '.join(changed)}",
                hint=f"undo that in shardgen.toml, or {self.for_another}"
                if self.is_begun
                else "shardgen plan RUN_DIR accepts the change, since nothing is made yet; or undo it",
                problems=tuple(changed),
            )

    def recipe(self, plan: Plan, drafted: Mapping[str, bytes] | None = None) -> Recipe:
        """The recipe of a plan whose files lie here, or are `drafted` and not written yet."""

        def beside(file: PlanFile) -> LineFile:
            if drafted is not None and file.name in drafted:
                return LineFile.of(drafted[file.name])
            return open_beside(self.path, file, is_shared_folder=self.is_shared_folder)

        return recipe_of(plan, beside=beside)

    def manifest(self, plan: Plan, *, read_only: bool = False) -> port.Manifest:
        """Open the manifest of this plan."""
        if (elsewhere := self.manifest_elsewhere) is not None:
            return elsewhere.open(self, plan)
        return self.database_manifest(plan, read_only=read_only)

    def database_manifest(self, plan: Plan, *, read_only: bool = False) -> Manifest:
        """Open the manifest of this plan that is a database; of a shared folder this machine's index."""
        return Manifest(self.database, plan, read_only=read_only)


def _with_home(setting: str, *, where: str) -> Path:
    """A path whose `~` is the user's own folder, or `~NAME` that of another."""
    try:
        return Path(setting).expanduser()
    except RuntimeError:
        raise InvalidSettings(
            f"{where}: {setting!r}: this machine does not know that user's home folder",
            hint="write the whole path",
        ) from None

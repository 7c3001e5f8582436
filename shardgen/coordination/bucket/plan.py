"""The plan in a bucket: which one counts, how it is put there, and how a machine gets it.

`plan/<number>.json` is a version of the plan, each created once; of several the highest counts. Whoever
leases first creates the number after it, an entry that says "begun", and no version follows that. So of a
planner and a worker at the same moment one gets the number, and the other meets it.
`plan/<fingerprint>.<number>.toml` are the settings that a plan was made of, and the files that it names lie
beside; they are there before the version that needs them, so whatever a killed `plan` leaves is nothing, or
is a plan that counts.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardgen.coordination.base import PutPlan, refused_plan
from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.objects import Objects
from shardgen.coordination.bucket.probe import PROBE
from shardgen.domain.plan import Plan, PlanFile
from shardgen.domain.steps import OnStep, PlanStep, ignore_step
from shardgen.errors import InputMissing, ManifestCorrupt, ManifestMismatch, PlanConflict
from shardgen.manifest.session import planned_anew
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import FILE_NAME, MAX_BYTES, open_beside, parse_plan, replace_file
from shardgen.settings.run_directory import OTHER_DIRECTORY, OTHER_PREFIX, RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.settings.settings import MAX_BYTES as MAX_SETTINGS_BYTES
from shardgen.settings.settings import read_settings
from shardgen.storage.bounded import Irregular, read_regular
from shardgen.storage.files import make_folders, storing

PLAN = "plan"
_VERSION = re.compile(rf"{PLAN}/([0-9]{{4}}|[1-9][0-9]{{4,8}})\.json")
_BEGUN = re.compile(rb'\{"begun":"([0-9a-f]{64})"\}')
_SETTINGS = re.compile(rf"{PLAN}/(?P<print>[0-9a-f]{{16}})\.(?P<number>[0-9]{{4,9}})\.toml")
_ATTEMPTS = 20  # against other commands that plan or begin at the same time


@dataclass(slots=True)
class Found:
    """What lies in `plan/`: the highest version, whether it was begun, and each plan's last settings."""

    objects: Objects
    last: int = 0
    begun: str = ""  # a fingerprint
    settings: dict[str, int] = field(default_factory=dict)  # by the first 16 digits of a fingerprint
    sizes: dict[str, int] = field(default_factory=dict)

    def is_counting(self, plan: Plan) -> bool:
        """Whether this plan is the one that counts."""
        return self.begun == plan.fingerprint if self.begun else self.holds(self.last, plan)

    def holds(self, number: int, plan: Plan) -> bool:
        """Whether a version is this plan: read only if it has as many bytes."""
        key, data = _version(number), plan.canonical_json
        return self.sizes.get(key) == len(data) and self.objects.read(key) == data

    def plan(self) -> Plan:
        """The plan that counts. Raises ManifestCorrupt for one that is damaged, or not what was begun."""
        key = _version(self.last)
        shown = f"{self.objects.shown}/{key}"
        plan = parse_plan(_bytes(self.objects, self, key, limit=MAX_BYTES), where=shown)
        if self.begun not in ("", plan.fingerprint):
            raise ManifestCorrupt(f"{shown}: not the plan that was begun", hint=_put_back(self.objects))
        return plan


def find(objects: Objects) -> Found:
    """Look at what is there: one listing, and once somebody has begun one small object more."""
    found = Found(objects)
    for one in objects.listed(PLAN):
        if match := _VERSION.fullmatch(one.key):
            found.last = max(int(match[1]), found.last)
        elif match := _SETTINGS.fullmatch(one.key):
            found.settings[match["print"]] = max(int(match["number"]), found.settings.get(match["print"], 0))
        found.sizes[one.key] = one.size_bytes
    key = _version(found.last)
    if found.sizes.get(key) == len(begun_entry("0" * 64)):
        entry = _BEGUN.fullmatch(_bytes(objects, found, key, limit=found.sizes[key]))
        if entry is not None:
            found.begun, found.last = entry[1].decode("ascii"), found.last - 1
            if _version(found.last) not in found.sizes:
                raise ManifestCorrupt(
                    f"{objects.shown}/{key}: names a plan that is not there", hint=_put_back(objects)
                )
    return found


def begun_entry(fingerprint: str) -> bytes:
    """What lies under the number after a plan's once somebody has begun it: the same whoever has."""
    return f'{{"begun":"{fingerprint}"}}'.encode("ascii")


def is_begun(objects: Objects) -> bool:
    """Whether a worker has leased, or was about to."""
    return bool(find(objects).begun)


def begin(objects: Objects, plan: Plan) -> None:
    """For a worker, before its first lease: let no other plan count from now on.

    Raises PlanConflict when another one counts: it was planned anew since this process looked.
    """
    for _ in range(_ATTEMPTS):
        found = find(objects)
        if not found.is_counting(plan):
            break
        if found.begun or objects.create(_version(found.last + 1), begun_entry(plan.fingerprint)):
            return
    raise planned_anew(objects.shown)


def put_plan(
    objects: Objects, run: RunDirectory, plan: Plan, *, grows: bool = False, on_step: OnStep = ignore_step
) -> PutPlan:
    """Make `plan` the one that counts, with what it names and the settings at hand. Twice is harmless.

    Killed at any step, it is repaired by doing it again. Raises PlanConflict when somebody has begun another
    one, or when something that is none of ours lies under the prefix; ManifestMismatch for one that `grows`.
    """
    if grows:
        raise ManifestMismatch(f"{objects.shown}: a plan in a bucket cannot grow", hint=OTHER_PREFIX)
    found, before = find(objects), None
    if not found.last:
        _refuse_strangers(objects)
    for _ in range(_ATTEMPTS):
        if found.last and found.is_counting(plan):
            before = before or plan
            _put_settings(objects, run, found, plan)  # what of them is no plan may be changed at any time
            break
        if found.last:
            before = found.plan()
            if found.begun:
                raise refused_plan(run, before, plan)
        _put_beside(objects, run, found, plan)
        on_step(PlanStep.FILES_WRITTEN)
        _put_settings(objects, run, found, plan)
        on_step(PlanStep.NEXT_WRITTEN)
        if objects.create(_version(found.last + 1), plan.canonical_json):
            on_step(PlanStep.PLAN_WRITTEN)
            break
        found = find(objects)
    else:
        raise PlanConflict(
            f"{objects.shown}: another machine is making a different plan at the same time",
            hint="let one machine plan, then run the command again",
        )
    _write(run.path / FILE_NAME, plan.canonical_json)
    on_step(PlanStep.MANIFEST_CREATED)
    return PutPlan(before=before, is_new=before is None)


def fetch(objects: Objects, folder: Path) -> RunDirectory:
    """For a machine that has nothing but the url: a run directory of it in a folder of this machine's cache.

    Raises InputMissing when nothing is planned there.
    """
    found = find(objects)
    if not found.last:
        raise InputMissing(
            f"{objects.shown}: nothing is planned there yet",
            hint=f"check the url; or start a run there: shardgen init people --bucket {objects.shown}",
        )
    plan = found.plan()
    key = _settings(plan, found.settings.get(_short(plan), 0))
    settings = _bytes(objects, found, key, limit=MAX_SETTINGS_BYTES)
    with storing(folder):
        make_folders(folder)
    _write(folder / SETTINGS, settings)
    _get_beside(objects, found, folder, plan)
    _write(folder / FILE_NAME, plan.canonical_json)
    return RunDirectory(
        path=folder,
        settings=read_settings(folder).at(objects.shown),
        plan_file=plan,
        is_current=True,
        elsewhere=objects.shown,
    )


def refresh(objects: Objects, run: RunDirectory) -> RunDirectory:
    """A run directory whose settings name the bucket, with the plan that counts there, if one does.

    Raises PlanConflict for a `plan.json` that was never the bucket's.
    """
    found = find(objects)
    here = run.plan_here()
    if not found.last:
        return replace(run, is_current=False)
    if here is not None and found.is_counting(here):
        _get_beside(objects, found, run.path, here)
        return replace(run, is_current=True)
    plan = found.plan()
    if here is not None and not any(found.holds(number, here) for number in range(1, found.last)):
        raise PlanConflict(
            f"{run.path / FILE_NAME}: is the plan of another run than {objects.shown} holds",
            hint=f"name another prefix in [manifest] url, or {OTHER_DIRECTORY}",
        )
    _get_beside(objects, found, run.path, plan)
    _write(run.path / FILE_NAME, plan.canonical_json)
    return run.planned(plan)


def _short(plan: Plan) -> str:
    return plan.fingerprint[:16]


def _version(number: int) -> str:
    return f"{PLAN}/{number:04d}.json"


def _settings(plan: Plan, number: int) -> str:
    return f"{PLAN}/{_short(plan)}.{number:04d}.toml"


def _put_back(objects: Objects) -> str:
    return f"restore what was in {objects.shown}/{PLAN}/; or plan again under another prefix"


def _bytes(objects: Objects, found: Found, key: str, *, limit: int) -> bytes:
    """An object that was listed. Raises ManifestCorrupt for one that is gone, or larger than any of ours."""
    size = found.sizes.get(key)
    data = None if size is None or size > limit else objects.read(key)
    if data is None:
        fact = (
            "is not there" if size is None or size <= limit else f"has {size:,} bytes, more than any of ours"
        )
        raise ManifestCorrupt(
            f"{objects.shown}/{key}: {fact}", hint="on the machine that planned: shardgen plan RUN_DIR"
        )
    return data


def _refuse_strangers(objects: Objects) -> None:
    """A prefix without a plan must be empty, but for what a killed plan or probe has left."""
    for page in objects.pages(""):
        for one in page:
            folder = one.key.partition("/")[0]
            if folder not in (PLAN, PROBE):
                what = (
                    "holds a run without its plan"
                    if folder in _OURS
                    else "is not empty, but holds no run of shardgen"
                )
                raise PlanConflict(
                    f"{objects.shown}: {what} ({one.key})",
                    hint=f'name an empty prefix in [manifest] url, such as "{objects.shown}-2"',
                )


_OURS = (protocol.CLAIMS, protocol.RECEIPTS, protocol.WORKERS, protocol.MICRO_BATCHES)


def _put_beside(objects: Objects, run: RunDirectory, found: Found, plan: Plan) -> None:
    """Create the files that the plan names; their names hold the beginnings of their digests."""
    for file in recipe_of(plan).files:
        key = f"{PLAN}/{file.name}"
        if found.sizes.get(key) != file.bytes:
            data = b"".join(open_beside(run.path, file).pieces())
            if not objects.create(key, data):
                raise _spoilt(objects, file)


def _get_beside(objects: Objects, found: Found, folder: Path, plan: Plan) -> None:
    for file in recipe_of(plan).files:
        path = folder / file.name
        if path.is_file() and path.stat().st_size == file.bytes:  # whoever opens it compares its digest
            continue
        _write(path, _bytes(objects, found, f"{PLAN}/{file.name}", limit=file.bytes))


def _spoilt(objects: Objects, file: PlanFile) -> PlanConflict:
    return PlanConflict(
        f"{objects.shown}/{PLAN}/{file.name}: its content is not what the plan says",
        hint="remove that object, then run the command again",
    )


def _put_settings(objects: Objects, run: RunDirectory, found: Found, plan: Plan) -> None:
    """Create the next version of the settings, unless the last is the same."""
    with storing(run.path / SETTINGS):
        text = read_regular(run.path / SETTINGS, limit=MAX_SETTINGS_BYTES)
    number = found.settings.get(_short(plan), 0)
    if number and objects.read(_settings(plan, number)) == text:
        return
    while not objects.create(_settings(plan, number + 1), text):
        number += 1


def _write(path: Path, data: bytes) -> None:
    """Write a file unless it is there; several processes may, at the same time."""
    with storing(path):
        with suppress(FileNotFoundError, Irregular):
            if read_regular(path, limit=MAX_BYTES) == data:
                return
        replace_file(path, data)

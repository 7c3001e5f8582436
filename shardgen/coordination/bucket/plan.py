"""The plan in a bucket: which one counts, how one gets there, and how a machine gets it from there.

`plan/<number>.<fingerprint>.json` is a plan, `plan/<fingerprint>.<number>.toml` the settings that it was made
of, and the files that it names lie beside; each is created once. Of several plans the highest counts, until
`plan/begun` names one: whoever leases first creates that. So a plan and a worker never need to look at each
other, and whatever a killed `plan` leaves is nothing, or is a plan that counts.
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
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import FILE_NAME, MAX_BYTES, open_beside, parse_plan, replace_file
from shardgen.settings.run_directory import OTHER_DIRECTORY, RunDirectory
from shardgen.settings.settings import FILE_NAME as SETTINGS
from shardgen.settings.settings import MAX_BYTES as MAX_SETTINGS_BYTES
from shardgen.settings.settings import read_settings
from shardgen.storage.bounded import Irregular, read_regular
from shardgen.storage.files import make_folders, storing

PLAN = "plan"
_BEGUN = f"{PLAN}/begun"
_PLAN = re.compile(rf"{PLAN}/(?P<number>[0-9]{{4,9}})\.(?P<print>[0-9a-f]{{16}})\.json")
_SETTINGS = re.compile(rf"{PLAN}/(?P<print>[0-9a-f]{{16}})\.(?P<number>[0-9]{{4,9}})\.toml")
_ATTEMPTS = 20  # against other commands that plan at the same time


@dataclass(slots=True)
class Found:
    """What lies in `plan/`: the number of each plan and settings by the beginning of a fingerprint; files."""

    plans: dict[str, int] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    begun: str = ""

    @property
    def counting(self) -> str:
        """The beginning of the fingerprint of the plan that counts; "" while there is none."""
        return self.begun or max(self.plans, key=lambda one: (self.plans[one], one), default="")


def find(objects: Objects) -> Found:
    """Look at what is there: one listing, and once somebody has begun one small object more."""
    found = Found()
    for one in objects.listed(PLAN):
        if match := _PLAN.fullmatch(one.key):
            found.plans[match["print"]] = max(int(match["number"]), found.plans.get(match["print"], 0))
        elif match := _SETTINGS.fullmatch(one.key):
            found.settings[match["print"]] = max(int(match["number"]), found.settings.get(match["print"], 0))
        found.sizes[one.key] = one.size_bytes
    if _BEGUN in found.sizes:
        found.begun = _short((objects.read(_BEGUN) or b"").decode("ascii", "replace"))
        if found.begun not in found.plans:
            raise ManifestCorrupt(
                f"{objects.shown}/{_BEGUN}: names a plan that is not there",
                hint=f"put back what lay in {objects.shown}/{PLAN}/; or plan anew under another prefix",
            )
    return found


def is_begun(objects: Objects) -> bool:
    """Whether a worker has leased, or was about to."""
    return objects.size(_BEGUN) is not None


def begin(objects: Objects, plan: Plan) -> None:
    """For a worker, before its first lease: let no other plan count from now on.

    Raises PlanConflict when another one counts: it was planned anew since this process looked.
    """
    found, ours = find(objects), _short(plan.fingerprint)
    counting = found.counting
    if counting == ours and not found.begun and not objects.create(_BEGUN, plan.fingerprint.encode()):
        counting = find(objects).counting
    if counting != ours:
        raise PlanConflict(
            f"{objects.shown}: was planned anew since this command began", hint="run the same command again"
        )


def put_plan(
    objects: Objects, run: RunDirectory, plan: Plan, *, grows: bool = False, on_step: OnStep = ignore_step
) -> PutPlan:
    """Make `plan` the one that counts, with what it names and the settings at hand. Twice is harmless.

    Killed at any step, it is repaired by doing it again. Raises PlanConflict when somebody has begun another
    one, or when something that is none of ours lies under the prefix; ManifestMismatch for one that `grows`.
    """
    if grows:
        raise ManifestMismatch(f"{objects.shown}: a plan in a bucket cannot grow", hint=OTHER_DIRECTORY)
    ours = _short(plan.fingerprint)
    found = find(objects)
    before = plan if found.counting == ours else None
    if not found.counting:
        _refuse_strangers(objects)
    for _ in range(_ATTEMPTS):
        if found.counting == ours:
            break
        if found.counting:
            before = before or _read(objects, found, found.counting)
            if found.begun:
                raise refused_plan(run, before, plan)
        _put_beside(objects, run, found, plan)
        on_step(PlanStep.FILES_WRITTEN)
        _put_settings(objects, run, found, ours)
        on_step(PlanStep.NEXT_WRITTEN)
        number = max(found.plans.values(), default=0) + 1
        objects.create(_plan_key(number, ours), plan.canonical_json)
        on_step(PlanStep.PLAN_WRITTEN)
        found = find(objects)
    else:
        raise PlanConflict(
            f"{objects.shown}: others plan it at the same time, and otherwise",
            hint="let one machine plan, then run the command again",
        )
    _put_settings(objects, run, found, ours)  # what of them is no plan may be changed at any time
    _write(run.path / FILE_NAME, plan.canonical_json)
    on_step(PlanStep.MANIFEST_CREATED)
    return PutPlan(before=before, is_new=before is None)


def fetch(objects: Objects, folder: Path) -> RunDirectory:
    """For a machine that has nothing but the url: a run directory of it in a folder of this machine's cache.

    Raises InputMissing when nothing is planned there.
    """
    found = find(objects)
    if not found.counting:
        raise InputMissing(
            f"{objects.shown}: nothing is planned there yet",
            hint=f'in a run directory with [manifest] url = "{objects.shown}": shardgen plan DIR',
        )
    plan, ours = _read(objects, found, found.counting), found.counting
    key = f"{PLAN}/{ours}.{found.settings.get(ours, 0):04d}.toml"
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
    ours = "" if here is None else _short(here.fingerprint)
    if not found.counting or found.counting == ours:
        if here is not None and found.counting:
            _get_beside(objects, found, run.path, here)
        return replace(run, is_current=bool(found.counting))
    if here is not None and ours not in found.plans:
        raise PlanConflict(
            f"{run.path / FILE_NAME}: is the plan of another run than {objects.shown} holds",
            hint=f"name another prefix in [manifest] url, or {OTHER_DIRECTORY}",
        )
    plan = _read(objects, found, found.counting)
    _get_beside(objects, found, run.path, plan)
    _write(run.path / FILE_NAME, plan.canonical_json)
    return run.planned(plan)


def _short(fingerprint: str) -> str:
    return fingerprint[:16]


def _plan_key(number: int, short: str) -> str:
    return f"{PLAN}/{number:04d}.{short}.json"


def _read(objects: Objects, found: Found, short: str) -> Plan:
    key = _plan_key(found.plans[short], short)
    data = _bytes(objects, found, key, limit=MAX_BYTES)
    plan = parse_plan(data, where=f"{objects.shown}/{key}")
    if _short(plan.fingerprint) != short:
        raise ManifestCorrupt(
            f"{objects.shown}/{key}: not the plan that its name says", hint="plan anew under another prefix"
        )
    return plan


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
                    else "is not empty, and no run of shardgen"
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
        f"{objects.shown}/{PLAN}/{file.name}: other bytes than the plan's are there",
        hint="remove that object, then run the command again",
    )


def _put_settings(objects: Objects, run: RunDirectory, found: Found, short: str) -> None:
    """Create the next version of the settings, unless the last is the same."""
    with storing(run.path / SETTINGS):
        text = read_regular(run.path / SETTINGS, limit=MAX_SETTINGS_BYTES)
    number = found.settings.get(short, 0)
    if number and objects.read(f"{PLAN}/{short}.{number:04d}.toml") == text:
        return
    while not objects.create(f"{PLAN}/{short}.{number + 1:04d}.toml", text):
        number += 1
    found.settings[short] = number + 1


def _write(path: Path, data: bytes) -> None:
    """Write a file unless it is there; several processes may, at the same time."""
    with storing(path):
        with suppress(FileNotFoundError, Irregular):
            if read_regular(path, limit=MAX_BYTES) == data:
                return
        replace_file(path, data)

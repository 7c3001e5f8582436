"""Preview: a contact sheet of samples spread over the plan, before hours are spent on all of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardgen.artifacts.check import OnProgress
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.wording import Say, counted
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, SampleError
from shardgen.operations.plan import draft_plan
from shardgen.recipes.base import DeviceChoice, Encoded, Files, Folders, Maker, PlanEvents, Recipe, Station
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import settings_differences
from shardgen.storage.atomic import publish_file
from shardgen.storage.files import is_file, is_folder, is_there, refuse_unusable_folder, storage_error

PNG_NAME = "preview.png"
_PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """How many samples, from which folders, drawn where (None: `RUN_DIR/preview.png`).

    `every` names a folder of which each photograph is to be seen, however many samples that takes.
    """

    samples: int = 20
    every: str = ""
    folders: Folders = field(default_factory=dict)
    output: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewEvents:
    """Who hears of the plan that is made first, if one is, of the network, and of samples done and wanted."""

    plan: PlanEvents = field(default_factory=PlanEvents)
    doing: Say = lambda _what: None
    on_sample: OnProgress = lambda _done, _wanted: None


def draw_preview(
    run: RunDirectory,
    request: PreviewRequest,
    *,
    choice: DeviceChoice,
    say: Say,
    events: PreviewEvents | None = None,
) -> Path:
    """Make samples just as a worker would, and draw them; replaces an earlier preview. Returns its path.

    Before `plan`, and for changed settings that `plan` would still take, it plans in memory; it writes
    nothing but the picture.
    """
    events = events or PreviewEvents()
    folders = run.folders(request.folders)
    path = request.output or run.results / PNG_NAME
    refuse_picture(path, *folders.values(), option="-o")
    recipe = _recipe_of(run, folders, events.plan)
    numbers = recipe.to_look_at(request.samples, every=request.every)
    station = Station(folders=folders, local=run.local, device=choice, doing=events.doing)
    maker = recipe.open_maker(station)
    events.on_sample(0, len(numbers))
    drawn: list[tuple[int, Files]] = []
    for done, number in enumerate(numbers, start=1):
        try:
            encoded = _make(maker, number)
        except SampleError as error:
            say(f"sample {number}: left out: {error}")
            continue
        drawn.append((number, encoded.files))
        events.on_sample(done, len(numbers))
    if not drawn:
        raise PlanConflict("no sample of the preview could be made", hint="look at the reasons above")
    sheet = recipe.contact_sheet(drawn)
    if sheet is None:
        raise PlanConflict(f"{recipe.plan.recipe.kind}: this recipe makes no pictures to show")
    path.unlink(missing_ok=True)
    publish_file(path, sheet)
    say(f"{counted(len(drawn), 'sample')} drawn")
    return path


def _recipe_of(run: RunDirectory, folders: Folders, events: PlanEvents) -> Recipe:
    planned = run.current_plan
    if planned is not None and (run.is_begun or not settings_differences(planned, run.settings)):
        return run.recipe(run.plan())
    plan, draft = draft_plan(run, folders, events=events)
    if draft.lacks is not None:
        raise draft.lacks
    return run.recipe(plan, draft.files)


def _make(maker: Maker[Any, Any], sample: SampleIndex) -> Encoded:
    prepared = maker.prepare(sample)
    computed = maker.compute([prepared], between=lambda _done: None)[0]
    if isinstance(computed, SampleError):
        raise computed
    return maker.encode(sample, prepared, computed)


def refuse_picture(path: Path, *sources: Path, option: str) -> None:
    """Say before long work that a PNG, named with `option`, could not be written there.

    Refuses to replace what is no PNG, to put one among the photographs in `sources`, and a name that promises
    another format than the one that is written.
    """
    example = f"{option} {PNG_NAME}"
    other_folder = f"choose another folder with {option}"
    refuse_unusable_folder(path.parent, makes=0, otherwise=other_folder)
    if is_folder(path):
        raise InputMissing(f"{path}: a folder, not a picture", hint=f"name a PNG: {example}")
    other_name = f"choose another name with {option}, such as {example}"
    for folder in sources:
        if folder.resolve() in path.resolve().parents:
            raise PlanConflict(f"{path}: lies in a folder of photographs", hint=other_folder)
    if is_there(path) and not (is_file(path) and _start_of(path) == _PNG_START):
        raise PlanConflict(f"{path}: is not a PNG, so it is not replaced", hint=other_name)
    if path.suffix.lower() != ".png":
        raise InvalidSettings(
            f"{path}: the picture is a PNG, so its name must end in .png",
            hint=f"{option} {shlex.quote(str(path.with_suffix('.png')))}",
        )


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_PNG_START))
    except OSError as error:
        raise storage_error(error, path) from error

"""Init: a new run directory with its commented settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from shardgen.depth.base import FILE
from shardgen.depth.families import DEFAULT
from shardgen.domain.wording import nearest
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, StorageFailed, WrongOption
from shardgen.machine.file_systems import is_on_drive
from shardgen.manifest.urls import SHARED_FOLDER, check_bucket_url, is_meant_as_bucket
from shardgen.recipes.base import Folders
from shardgen.recipes.registry import DEFAULT_PRESET, find_preset, presets
from shardgen.settings.settings import FILE_NAME, parse_settings
from shardgen.settings.template import setting_names, settings_text
from shardgen.storage.atomic import publish_file
from shardgen.storage.bounded import parse_toml
from shardgen.storage.files import is_file, is_folder, is_there, make_folders

# Between machines that share nothing but a folder a claim is seen minutes late, so slices are large.
_SHARED_FOLDER = {"manifest.url": '"folder:"', "shards.slice_batches": "256"}


def shared_place(run_dir: Path | str, *, bucket: str | None, shared_folder: bool) -> str:
    """What several machines will share: the url of a bucket, `folder:` for the run directory itself, or "".

    On a mounted Google Drive it is the folder, since a database gets damaged there. Raises WrongOption.
    """
    if is_meant_as_bucket(str(run_dir)):
        raise WrongOption("run_dir", f"must be a folder on this machine; add --bucket {run_dir}")
    if bucket is not None and shared_folder:
        raise WrongOption("bucket", "machines share a bucket or, with --shared-folder, a folder")
    return bucket or (SHARED_FOLDER if shared_folder or is_on_drive(Path(run_dir)) else "")


def initialise(  # noqa: PLR0913 - where, of what, and which settings
    run_dir: Path,
    folders: Folders,
    *,
    preset: str = DEFAULT_PRESET,
    weights: str | None = None,
    shared: str = "",
    changes: Mapping[str, str] | None = None,
) -> Path:
    """Write `RUN_DIR/shardgen.toml`, folders and a weights file as absolute paths. Returns its path.

    `weights` is as in `[depth] weights`, a path relative to the current folder; None: the preset's. `shared`
    is what several machines share: `folder:`, the run directory itself, or the url of a bucket. `changes` are
    other values than the preset's, as TOML, by key (`compose.grid`: `[2, 2]`). Raises InputMissing when a
    source folder or the weights file is not named or not there, InvalidSettings for what the preset does not
    have and for values that are not allowed, PlanConflict when there are settings already.
    """
    values = dict(_SHARED_FOLDER) if shared == SHARED_FOLDER else {}
    if shared not in ("", SHARED_FOLDER):
        check_bucket_url(shared, where="--bucket")
        values = {"manifest.url": f'"{shared}"'}
    _refuse_folders(preset, folders)
    if weights is not None:
        weights = _written_weights(preset, weights)
    path = run_dir / FILE_NAME
    text = settings_text(
        preset=preset,
        weights=weights,
        changes=values | _written_changes(preset, changes or {}),
        **{kind: folder.resolve() for kind, folder in folders.items()},
    )
    if changes:
        parse_settings(parse_toml(text), where="--set", option="--set")
    try:
        make_folders(run_dir)
    except FileExistsError:
        raise InputMissing(
            f"{run_dir}: a file, not a folder", hint="give the new run directory another name"
        ) from None
    except OSError as error:
        raise StorageFailed(
            f"{run_dir}: cannot be made ({error.strerror})", hint="name a folder that you may write to"
        ) from error
    if not publish_file(path, text.encode()):
        raise PlanConflict(
            f"{path}: there are settings here already",
            hint="edit that file and run `shardgen plan RUN_DIR`, or name a new run directory",
        )
    return path


def _refuse_folders(preset: str, folders: Folders) -> None:
    """Take all folders that the preset's recipe needs, and no other."""
    wanted = find_preset(preset)[0].folders
    for kind in folders:
        if kind not in wanted:
            takes = next((name for name, (other, _) in presets().items() if kind in other.folders), preset)
            raise InvalidSettings(
                f"--{kind}: preset {preset} takes no {kind}", hint=f"leave it out, or: {_command(takes)}"
            )
    if missing := [f"--{kind}" for kind in wanted if kind not in folders]:
        raise InputMissing(f"preset {preset} needs {' and '.join(missing)}", hint=_command(preset))
    for kind, folder in folders.items():
        _refuse_folder(kind, folder)


def _command(preset: str) -> str:
    options = (f"--{kind} DIR" for kind in find_preset(preset)[0].folders)
    return " ".join(["shardgen init RUN_DIR --preset", preset, *options])


def _refuse_folder(kind: str, folder: Path) -> None:
    if not is_folder(folder):
        if is_there(folder):
            raise InputMissing(
                f"{folder}: a file, not a folder of {kind}",
                hint=f"name the folder that it is in: --{kind} DIR",
            )
        raise InputMissing(
            f"{folder}: the folder of {kind} does not exist", hint=f"make it, or name another: --{kind} DIR"
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InvalidSettings(
            f"{folder!r}: not a UTF-8 name, so it cannot be written into {FILE_NAME}",
            hint="rename the folder",
        ) from None


def _written_changes(preset: str, changes: Mapping[str, str]) -> dict[str, str]:
    """The values as TOML; what is none is meant as a string."""
    written, known = {}, setting_names(preset)
    for name, value in changes.items():
        if name.startswith("sources.") and name.removeprefix("sources.") != "mask":
            raise InvalidSettings(
                f"--set {name}: folders have their own options",
                hint=f"--{name.removeprefix('sources.')} DIR",
            )
        if name not in known:
            meant = nearest(name, known)
            raise InvalidSettings(
                f"--set {name}: preset {preset} has no such setting",
                hint=f"did you mean --set {shlex.quote(f'{meant}={value}')}?"
                if meant
                else "--set TABLE.KEY=VALUE, as in --set compose.grid=[2,2]; without --set, "
                "`shardgen init` writes them all, each with a comment",
            )
        try:
            is_toml = list(parse_toml(f"value = {value}")) == ["value"]
        except ValueError:
            is_toml = False
        written[name] = value if is_toml else json.dumps(value, ensure_ascii=False)
    return written


def _written_weights(preset: str, weights: str) -> str:
    """What `[depth] weights` will say: a name as it is, a file by its whole path."""
    if "depth.weights" not in setting_names(preset):
        raise InvalidSettings(
            f"--weights: preset {preset} makes no depth", hint="leave --weights out, or name another --preset"
        )
    hint = "--weights nyu, kitti, small, or a file's path"
    try:
        name = DEFAULT.plan_name(weights)
    except ValueError as error:
        raise InvalidSettings(f"--weights: {error}", hint=hint) from error
    if name != FILE:
        return name
    if not is_file(Path(weights)):
        if near := DEFAULT.meant(weights):
            hint = f"did you mean --weights {near}? Known are nyu, kitti, small, or a file's path"
        raise InputMissing(f"{weights}: no such weights file", hint=hint)
    return str(Path(weights).resolve())

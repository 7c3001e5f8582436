"""A worker's check at its start: the files in its folders are those of the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shardgen.errors import InputMissing, MachineUnfit, PlanConflict, SourceUndecodable
from shardgen.sources.folder import hash_file, list_folder, read_file
from shardgen.sources.inventory import Background, Foreground, MaskFile, Picture, Sources
from shardgen.storage.files import is_folder

if TYPE_CHECKING:
    from shardgen.imaging.codec import Photograph

_THREADS = 4  # reading and hashing; both release the interpreter
_SHOWN = 20  # lines
COPY_THEM = "copy the photographs that the plan was made from, or plan again in a new directory"


def check_against_plan(
    foregrounds: Path,
    backgrounds: Path,
    sources: Sources,
    *,
    on_file: Callable[[str, int], None] = lambda _name, _of: None,
) -> None:
    """Compare sizes, then hash every file; `on_file` hears of each hashed one, and how many there are.

    Further files do not matter. Raises PlanConflict naming what is missing or changed, InputMissing when a
    whole folder is not there.
    """
    for folder, what in ((foregrounds, "foregrounds"), (backgrounds, "backgrounds")):
        if not is_folder(folder):
            raise InputMissing(
                f"{folder}: the folder of {what} is not there",
                hint=f"give this machine's folder with --{what}",
            )
    problems = size_problems(foregrounds, backgrounds, sources)
    if not problems:
        files = list(_planned_files(foregrounds, backgrounds, sources))

        def hash_problem(planned: tuple[Path, str, _File]) -> str:
            folder, what, file = planned
            changed = hash_file(folder, file.name) != file.sha256
            on_file(file.name, len(files))
            return f"{what}/{file.name}: other content" if changed else ""

        with ThreadPoolExecutor(_THREADS, "check") as pool:
            problems = [problem for problem in pool.map(hash_problem, files) if problem]
    refuse_problems(problems)


def size_problems(foregrounds: Path, backgrounds: Path, sources: Sources) -> list[str]:
    """Planned files that are gone or of another size, a line each; none of them is opened."""
    files = _planned_files(foregrounds, backgrounds, sources)
    return [problem for folder, what, file in files if (problem := _size_problem(folder, what, file))]


def unknown_photographs(foregrounds: Path, backgrounds: Path, sources: Sources) -> list[str]:
    """Photographs in the folders that are not among the sources, as in `foregrounds/NAME`; none is opened.

    Mask files are none. Of a folder that is not there, or may not be read, nothing is known.
    """
    found = []
    for folder, what, planned in (
        (foregrounds, "foregrounds", sources.foregrounds),
        (backgrounds, "backgrounds", sources.backgrounds),
    ):
        known = {one.name for one in planned}
        with suppress(InputMissing):
            listing = list_folder(folder, what=what, with_masks=what == "foregrounds")
            found += [f"{what}/{name}" for name in listing.photographs if name not in known]
    return found


def picture_problems(folder: Path, pictures: Iterable[Picture]) -> list[str]:
    """Those of these pictures that are gone or of another size, a line each; none is opened.

    Raises InputMissing when the whole folder is not there.
    """
    if not is_folder(folder):
        raise InputMissing(
            f"{folder}: the folder of pictures is not there",
            hint="give this machine's folder with --pictures",
        )
    return [problem for one in pictures if (problem := _size_problem(folder, "pictures", one))]


def refuse_problems(problems: list[str]) -> None:
    """Raise PlanConflict if there are any, naming the first ones."""
    if problems:
        shown = problems[:_SHOWN]
        if len(problems) > _SHOWN:
            shown.append(f"… and {len(problems) - _SHOWN:,} more")
        raise PlanConflict(
            f"the source folders are not those of the plan: {'; '.join(shown)}",
            hint=COPY_THEM,
            problems=tuple(problems),
        )


def read_planned(folder: Path, file: _File) -> Photograph:
    """Read and decode a source file after comparing its size and sha256 with the plan's.

    Raises SampleError when it does not decode; PlanConflict for another file, InputMissing, StorageFailed.
    """
    from shardgen.imaging.codec import decode  # noqa: PLC0415 - who only compares sizes decodes nothing

    data = read_file(folder, file.name)
    if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise PlanConflict(
            f"{folder / file.name}: not the file that the plan was made from",
            hint="put the planned file back, or plan again in a new directory",
        )
    try:
        return decode(data)
    except (SourceUndecodable, MachineUnfit) as error:
        raise type(error)(f"{file.name}: {error}", hint=error.hint) from error


def unknown_pictures(folder: Path, known: Container[str]) -> list[str]:
    """Pictures in the folder whose names are not known, as in `pictures/NAME`; as `unknown_photographs`."""
    with suppress(InputMissing):
        listing = list_folder(folder, what="pictures", with_masks=False)
        return [f"pictures/{name}" for name in listing.photographs if name not in known]
    return []


_File = Picture | Foreground | Background | MaskFile


def _planned_files(
    foregrounds: Path, backgrounds: Path, sources: Sources
) -> Iterator[tuple[Path, str, _File]]:
    for foreground in sources.foregrounds:
        yield foregrounds, "foregrounds", foreground
        if foreground.mask_file is not None:
            yield foregrounds, "foregrounds", foreground.mask_file
    for background in sources.backgrounds:
        yield backgrounds, "backgrounds", background


def _size_problem(folder: Path, what: str, file: _File) -> str:
    try:
        size_bytes = (folder / file.name).stat().st_size
    except OSError as error:
        return f"{what}/{file.name}: {error.strerror}"
    return (
        "" if size_bytes == file.bytes else f"{what}/{file.name}: {size_bytes:,} bytes (plan: {file.bytes:,})"
    )

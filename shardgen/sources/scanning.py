"""From two folders of photographs to a checked inventory: every file read once, all problems in one go."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from shardgen.domain.plan import Background, Foreground, MaskFile, MaskMode, Sources
from shardgen.domain.wording import counted
from shardgen.errors import InputMissing, SampleError, SourcesRefused
from shardgen.imaging.codec import Photograph, decode
from shardgen.imaging.masks import prepare_foreground
from shardgen.sources.folder import Listing, list_folder, masked_stem, read_file, refuse_nested, stem_of

_MAX_THREADS = 4  # each holds one decoded photograph (up to 800 MB for the largest that is allowed)
_NAMED_OTHERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The checked sources; warnings ask for a look, notes say what was converted, one line per file."""

    sources: Sources
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFolders:
    """Where this machine keeps the photographs; never part of a plan."""

    foregrounds: Path
    backgrounds: Path


Source = TypeVar("Source", Foreground, Background)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked(Generic[Source]):
    """One file's outcome: an entry of the inventory, or problems."""

    entry: Source | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def scan(
    folders: SourceFolders,
    mask: MaskMode,
    canvas: tuple[int, int],
    *,
    threads: int,
    on_file: Callable[[str], None] = lambda _name: None,
) -> Inventory:
    """Check every photograph of both folders, as many at once as `threads`, but four at most.

    They are read and cut out as composing will do it, for a canvas of (width, height). `on_file` hears of
    each as it is done.

    Raises SourcesRefused naming every problem, and what was left out by its name; InputMissing for a missing
    or empty folder.
    """
    refuse_nested(folders.foregrounds, folders.backgrounds)
    foreground_files = list_folder(folders.foregrounds, what="foregrounds", with_masks=True)
    background_files = list_folder(folders.backgrounds, what="backgrounds", with_masks=False)
    _refuse_empty(folders.foregrounds, foreground_files, what="foregrounds")
    _refuse_empty(folders.backgrounds, background_files, what="backgrounds")

    def check_foreground(name: str) -> _Checked[Foreground]:
        checked = _check_foreground(folders.foregrounds, foreground_files, name, mask, canvas)
        on_file(name)
        return checked

    def check_background(name: str) -> _Checked[Background]:
        checked = _check_background(folders.backgrounds, name)
        on_file(name)
        return checked

    with ThreadPoolExecutor(min(_MAX_THREADS, threads), "scan") as pool:
        foregrounds = list(pool.map(check_foreground, foreground_files.photographs))
        backgrounds = list(pool.map(check_background, background_files.photographs))
    problems = [
        *_unnameable("foregrounds", foreground_files),
        *_unnameable("backgrounds", background_files),
        *(problem for outcome in foregrounds for problem in outcome.problems),
        *(problem for outcome in backgrounds for problem in outcome.problems),
    ]
    left_out = [*_left_out("foregrounds", foreground_files), *_left_out("backgrounds", background_files)]
    if problems:
        raise SourcesRefused(
            f"{counted(len(problems), 'problem')} in the source folders",
            hint="repair or remove these files, then plan again",
            problems=(*problems, *left_out),
        )
    sources = Sources(
        mask=mask,
        backgrounds=_entries(backgrounds),
        foregrounds=_entries(foregrounds),
    )
    return Inventory(
        sources=sources,
        warnings=(
            *_duplicates("foregrounds", sources.foregrounds),
            *_duplicates("backgrounds", sources.backgrounds),
            *_masks_of_nothing(foreground_files),
            *left_out,
        ),
        notes=tuple(
            [note for outcome in foregrounds for note in outcome.notes]
            + [note for outcome in backgrounds for note in outcome.notes]
        ),
    )


def _check_background(folder: Path, name: str) -> _Checked[Background]:
    problems: list[str] = []
    data = _read(folder, "backgrounds", name, problems)
    photo = None if data is None else _decoded("backgrounds", name, data, problems)
    if data is None or photo is None:
        return _Checked(entry=None, problems=tuple(problems))
    return _Checked(
        entry=Background(
            name=name, bytes=len(data), sha256=_sha256(data), width=photo.width, height=photo.height
        ),
        notes=_notes("backgrounds", name, photo),
    )


def _check_foreground(
    folder: Path, listing: Listing, name: str, mask: MaskMode, canvas: tuple[int, int]
) -> _Checked[Foreground]:
    problems: list[str] = []
    data = _read(folder, "foregrounds", name, problems)
    photo = None if data is None else _decoded("foregrounds", name, data, problems)
    mask_photo, mask_file = None, None
    mask_names = listing.mask_names(name) if mask in (MaskMode.AUTO, MaskMode.FILE) else []
    if len(mask_names) > 1:
        problems.append(f"foregrounds/{name}: more than one mask file ({', '.join(mask_names)})")
    elif mask_names:
        mask_data = _read(folder, "foregrounds", mask_names[0], problems)
        if mask_data is not None:
            mask_file = MaskFile(name=mask_names[0], bytes=len(mask_data), sha256=_sha256(mask_data))
            mask_photo = _decoded("foregrounds", mask_names[0], mask_data, problems)
    if data is None or photo is None or problems:
        return _Checked(entry=None, problems=tuple(problems))
    try:
        placed = prepare_foreground(photo, mask, mask_photo, canvas=canvas)
    except SampleError as error:
        return _Checked(entry=None, problems=(_problem("foregrounds", name, error),))
    return _Checked(
        entry=Foreground(
            name=name,
            bytes=len(data),
            sha256=_sha256(data),
            width=photo.width,
            height=photo.height,
            placed_width=placed.width,
            placed_height=placed.height,
            mask=placed.mode,
            mask_file=mask_file,
        ),
        notes=_notes("foregrounds", name, photo),
    )


def _read(folder: Path, what: str, name: str, problems: list[str]) -> bytes | None:
    """A file's bytes; None for one that this user may not read, which is a problem among others."""
    try:
        return read_file(folder, name)
    except InputMissing as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        reason = error.__cause__.strerror
        problems.append(f"{what}/{name}: cannot be read ({reason}) (give this user the right to read it)")
        return None


def _decoded(what: str, name: str, data: bytes, problems: list[str]) -> Photograph | None:
    try:
        return decode(data)
    except SampleError as error:
        problems.append(_problem(what, name, error))
        return None


def _problem(what: str, name: str, error: SampleError) -> str:
    return f"{what}/{name}: {error}" + (f" ({error.hint})" if error.hint else "")


def _notes(what: str, name: str, photo: Photograph) -> tuple[str, ...]:
    return tuple(f"{what}/{name}: {note}" for note in photo.notes)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entries(outcomes: Iterable[_Checked[Source]]) -> tuple[Source, ...]:
    return tuple(outcome.entry for outcome in outcomes if outcome.entry is not None)


def _refuse_empty(folder: Path, listing: Listing, *, what: str) -> None:
    if listing.photographs or listing.unnameable:
        return
    found = f" ({counted(len(listing.others), 'other file')})" if listing.others else ""
    raise InputMissing(
        f"{folder}: no photographs in the folder of {what}{found}",
        hint="put JPEG, PNG, WebP, BMP or TIFF files into it, or give another folder",
    )


def _unnameable(what: str, listing: Listing) -> list[str]:
    return [f"{what}/{name}: the file's name is not UTF-8 (rename it)" for name in listing.unnameable]


def _duplicates(what: str, entries: Sequence[Foreground] | Sequence[Background]) -> list[str]:
    names = defaultdict(list)
    for entry in entries:
        names[entry.sha256].append(entry.name)
    return [
        f"{what}: the same content {len(same)} times: {', '.join(same)}"
        for same in names.values()
        if same[1:]
    ]


def _masks_of_nothing(listing: Listing) -> list[str]:
    stems = {stem_of(name) for name in listing.photographs}
    return [
        f"foregrounds/{name}: a mask file without its photograph"
        for name in listing.masks
        if masked_stem(name) not in stems
    ]


def _left_out(what: str, listing: Listing) -> list[str]:
    if not listing.others:
        return []
    shown = ", ".join(listing.others[:_NAMED_OTHERS]) + (", …" if listing.others[_NAMED_OTHERS:] else "")
    return [f"{what}: {counted(len(listing.others), 'file')} left out, not photographs by name: {shown}"]

"""From two folders of photographs to a checked inventory: read every file once, list all problems at once."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from shardgen.domain.remarks import Remark, grouped
from shardgen.domain.wording import counted
from shardgen.errors import InputMissing, MachineUnfit, NoMask, SampleError, SourcesRefused
from shardgen.imaging.codec import Photograph, claimed_pixels, decode, probe
from shardgen.imaging.masks import CutOut, cut_out, cuts_out, mask_warning
from shardgen.imaging.options import MaskMode
from shardgen.imaging.own_masks import read_marks
from shardgen.sources.folder import (
    Listing,
    MaskNames,
    is_mask,
    list_folder,
    masked_stem,
    pair_masks,
    read_file,
    refuse_nested,
    stem_of,
)
from shardgen.sources.inventory import Background, Foreground, MaskFile, Picture, PictureList, Sources

# Of photographs that are decoded at a time. One takes up to 24 bytes a pixel while it is halved: 5 GB.
_PIXELS_AT_ONCE = 200_000_000
_FOREGROUNDS, _BACKGROUNDS, _PICTURES = "foregrounds", "backgrounds", "pictures"
_AT_ONCE = 1024  # pictures
# Folders look swapped when so many of the foregrounds have no mask, and more than so many backgrounds do.
_SWAPPED_UNMASKED, _SWAPPED_MASKED = 0.9, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The checked sources; warnings ask for a look, notes say what was converted.

    `covered_pixels` are those of each foreground's mask on the canvas, in the order of the sources; they are
    no part of a plan.
    """

    sources: Sources
    covered_pixels: tuple[int, ...]
    warnings: tuple[Remark, ...]
    notes: tuple[Remark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFolders:
    """Where this machine keeps the photographs; never part of a plan."""

    foregrounds: Path
    backgrounds: Path


class Keeper(Protocol):
    """Who wants to have some photographs once they are scanned, before they are let go. Thread-safe."""

    def expect(self, foregrounds: Sequence[str], backgrounds: Sequence[str]) -> None:
        """Hear which there are, in their order, before any is read."""
        ...

    def keep_foreground(self, name: str, whole: CutOut, placed: CutOut) -> None:
        """Take one that is without fault, as it was cut out and as large as it is placed."""
        ...

    def keep_background(self, name: str, photo: Photograph) -> None:
        """Take one that is without fault."""
        ...


Source = TypeVar("Source", Foreground, Background, Picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked(Generic[Source]):
    """One file's outcome: an entry of the inventory, or problems.

    `lacks_mask`: that is its problem. `is_cut_out`: it is a background with transparency or a mask file, or
    is such a file.
    """

    entry: Source | None
    problems: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
    notes: tuple[Remark, ...] = ()
    covered_pixels: int = 0
    is_cut_out: bool = False
    lacks_mask: bool = False


def scan(  # noqa: PLR0913 - of what, how, and who watches
    folders: SourceFolders,
    mask: MaskMode,
    fit: Callable[[CutOut], CutOut],
    *,
    threads: int,
    on_file: Callable[[str, int], None] = lambda _name, _of: None,
    keeper: Keeper | None = None,
) -> Inventory:
    """Check every photograph of both folders, in as many threads, but only so many large ones at once.

    They are read and cut out as composing will do it; `fit` makes a cut-out as large as it is placed, or
    raises ComposeFailed. `on_file` hears of each as it is done, and how many there are.

    Raises SourcesRefused naming every problem, and what was left out by its name; InputMissing for a missing
    or empty folder.
    """
    refuse_nested(folders.foregrounds, folders.backgrounds)
    foreground_files = list_folder(folders.foregrounds, what=_FOREGROUNDS, with_masks=True)
    background_files = list_folder(folders.backgrounds, what=_BACKGROUNDS, with_masks=False)
    _refuse_empty(folders.foregrounds, foreground_files, what=_FOREGROUNDS)
    _refuse_empty(folders.backgrounds, background_files, what=_BACKGROUNDS)
    names = pair_masks(foreground_files.photographs, foreground_files.masks)
    count = len(foreground_files.photographs) + len(background_files.photographs)
    checks = _Checks(folders, names, mask, fit, keeper)
    if keeper is not None:
        keeper.expect(foreground_files.photographs, background_files.photographs)

    def check_foreground(name: str) -> _Checked[Foreground]:
        checked = checks.foreground(name)
        on_file(name, count)
        return checked

    masked = {masked_stem(name) for name in filter(is_mask, background_files.photographs)}

    def check_background(name: str) -> _Checked[Background]:
        checked = checks.background(name, masked)
        on_file(name, count)
        return checked

    with ThreadPoolExecutor(threads, "scan") as pool:
        foregrounds = list(pool.map(check_foreground, foreground_files.photographs))
        backgrounds = list(pool.map(check_background, background_files.photographs))
    outcomes: list[_Checked[Foreground] | _Checked[Background]] = [*foregrounds, *backgrounds]
    problems = [
        *_unnameable(_FOREGROUNDS, foreground_files),
        *_unnameable(_BACKGROUNDS, background_files),
        *(problem for outcome in outcomes for problem in outcome.problems),
    ]
    strange = [
        *_strays(names),
        *_left_out(_FOREGROUNDS, foreground_files),
        *_left_out(_BACKGROUNDS, background_files),
    ]
    if problems:
        swapped = _look_swapped(foregrounds, backgrounds)
        raise SourcesRefused(
            f"{counted(len(problems), 'problem')} in the source folders{swapped}",
            hint="are the two folders swapped? Exchange them in [sources], then plan again"
            if swapped
            else "follow their hints, or repair or remove these files; then plan again",
            remarks=(*grouped(problems), *grouped(strange)),
        )
    sources = Sources(backgrounds=_entries(backgrounds), foregrounds=_entries(foregrounds))
    return Inventory(
        sources=sources,
        covered_pixels=tuple(outcome.covered_pixels for outcome in foregrounds),
        warnings=grouped(
            [
                *_duplicates(_FOREGROUNDS, sources.foregrounds),
                *_duplicates(_BACKGROUNDS, sources.backgrounds),
                *(warning for outcome in outcomes for warning in outcome.warnings),
                *strange,
            ]
        ),
        notes=grouped(note for outcome in outcomes for note in outcome.notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPictures:
    """A folder of pictures: the lines that the plan names, each a `Picture`, and warnings.

    `unreadable` of them have headers that do not read; the longest side of the others is in pixels.
    """

    lines: bytes
    sources: PictureList
    unreadable: int
    longest_side: int
    warnings: tuple[Remark, ...]


def scan_pictures(
    folder: Path, *, threads: int, on_file: Callable[[str, int], None] = lambda _name, _of: None
) -> FoundPictures:
    """Read every picture of a folder once, for its digest and the size in its headers; none is decoded.

    Keeps a line of each in memory. One that is damaged is planned: it costs a sample. Raises SourcesRefused
    for those that cannot be planned, by name; InputMissing for a missing or empty folder.
    """
    listing = list_folder(folder, what=_PICTURES, with_masks=False)
    _refuse_empty(folder, listing, what=_PICTURES)
    problems, warnings = [*_unnameable(_PICTURES, listing)], list[Remark]()
    lines = list[bytes]()
    seen, twice = set[int](), set[int]()
    names = listing.photographs
    pixels, longest_side = array("Q"), 0

    def check(name: str) -> _Checked[Picture]:
        checked = _check_picture(folder, name)
        on_file(name, len(names))
        return checked

    with ThreadPoolExecutor(threads, "scan") as pool:
        # Not all at once: what waits in the pool takes more memory than what comes of it.
        for start in range(0, len(names), _AT_ONCE):
            for checked in pool.map(check, names[start : start + _AT_ONCE]):
                problems += checked.problems
                warnings += checked.warnings
                if checked.entry is not None:
                    lines.append(checked.entry.line)
                    width, height = checked.entry.width, checked.entry.height
                    pixels.append(width * height)
                    longest_side = max(longest_side, width, height)
                    key = int(checked.entry.sha256[:16], 16)
                    (twice if key in seen else seen).add(key)
    strange = _left_out(_PICTURES, listing)
    if problems:
        raise SourcesRefused(
            f"{counted(len(problems), 'problem')} in the folder of {_PICTURES}",
            hint="follow their hints, or repair or remove these files; then plan again",
            remarks=(*grouped(problems), *grouped(strange)),
        )
    same = (one for one in map(Picture.of, lines if twice else ()) if int(one.sha256[:16], 16) in twice)
    data = b"".join([line + b"\n" for line in lines])
    return FoundPictures(
        lines=data,
        sources=PictureList.of(data, pixels=pixels),
        unreadable=pixels.count(0),
        longest_side=longest_side,
        warnings=grouped([*_duplicates(_PICTURES, same), *warnings, *strange]),
    )


def _check_picture(folder: Path, name: str) -> _Checked[Picture]:
    problems: list[Remark] = []
    data = _read(folder, _PICTURES, name, problems)
    if data is None:
        return _Checked(entry=None, problems=tuple(problems))
    width = height = 0
    warnings: tuple[Remark, ...] = ()
    try:
        width, height = probe(data)
    except MachineUnfit as error:
        return _Checked(entry=None, problems=(_problem(_PICTURES, name, error),))
    except SampleError as error:
        reason = f"will be a dead letter: {error}"
        warnings = (Remark(folder=_PICTURES, names=(name,), reason=reason, hint=error.hint),)
    entry = Picture(name=name, bytes=len(data), sha256=_sha256(data), width=width, height=height)
    return _Checked(entry=entry, warnings=warnings)


class _Budget:
    """Lets so many pixels be worked on at a time, in the order of asking; more of one photograph alone."""

    def __init__(self, pixels: int) -> None:
        self._most, self._taken = pixels, 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for these."""
        # Who waits keeps the turn, so that small ones do not pass a large one by for ever.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify()


class _Checks:
    """What is looked at of each photograph."""

    def __init__(
        self,
        folders: SourceFolders,
        names: MaskNames,
        mask: MaskMode,
        fit: Callable[[CutOut], CutOut],
        keeper: Keeper | None,
    ) -> None:
        self._folders, self._names = folders, names
        self._mask, self._fit = mask, fit
        self._keeper = keeper
        self._budget = _Budget(_PIXELS_AT_ONCE)

    def background(self, name: str, masked: Container[str]) -> _Checked[Background]:
        """Read and decode it; `masked` are names that mask files beside it are made of."""
        problems: list[Remark] = []
        data = _read(self._folders.backgrounds, _BACKGROUNDS, name, problems)
        if data is None:
            return _Checked(entry=None, problems=tuple(problems))
        with self._budget.taking(claimed_pixels(data)):
            return self._decoded_background(name, data, masked)

    def foreground(self, name: str) -> _Checked[Foreground]:
        """Read, decode and cut it out."""
        problems: list[Remark] = []
        data = _read(self._folders.foregrounds, _FOREGROUNDS, name, problems)
        with self._budget.taking(0 if data is None else claimed_pixels(data)):
            return self._decoded_foreground(name, data, problems)

    def _decoded_background(self, name: str, data: bytes, masked: Container[str]) -> _Checked[Background]:
        problems: list[Remark] = []
        photo = _decoded(_BACKGROUNDS, name, data, problems)
        if photo is None:
            return _Checked(entry=None, problems=tuple(problems))
        is_cut_out = cuts_out(photo.alpha)
        warnings = _said(_BACKGROUNDS, name, photo.warnings)
        if is_cut_out:
            warnings += _said(_BACKGROUNDS, name, ["its transparency is ignored: what it hides will show"])
        if is_mask(name):
            reason, hint = (
                "named like a mask, but used as a background",
                "move it to the foregrounds, or rename it",
            )
            warnings += (Remark(folder=_BACKGROUNDS, names=(name,), reason=reason, hint=hint),)
        if self._keeper is not None:
            self._keeper.keep_background(name, photo)
        return _Checked(
            entry=Background(
                name=name, bytes=len(data), sha256=_sha256(data), width=photo.width, height=photo.height
            ),
            warnings=warnings,
            notes=_said(_BACKGROUNDS, name, photo.notes),
            is_cut_out=is_cut_out or is_mask(name) or stem_of(name) in masked,
        )

    def _decoded_foreground(
        self, name: str, data: bytes | None, problems: list[Remark]
    ) -> _Checked[Foreground]:
        folder, names, mask = self._folders.foregrounds, self._names, self._mask
        photo = None if data is None else _decoded(_FOREGROUNDS, name, data, problems)
        mask_photo, mask_file, is_own = None, None, False
        takes_files = mask in (MaskMode.AUTO, MaskMode.FILE)
        problems += _name_problems(names, name, takes_files=takes_files)
        mask_names = names.of.get(name, ()) if takes_files else ()
        if len(mask_names) == 1:
            mask_data = _read(folder, _FOREGROUNDS, mask_names[0], problems)
            if mask_data is not None:
                mask_file = MaskFile(name=mask_names[0], bytes=len(mask_data), sha256=_sha256(mask_data))
                mask_photo = _decoded(_FOREGROUNDS, mask_names[0], mask_data, problems)
                is_own = read_marks(mask_data) is not None  # drawn over the photograph as it is seen
        if data is None or photo is None or problems:
            return _Checked(entry=None, problems=tuple(problems))
        try:
            whole = cut_out(photo, mask, mask_photo)
            placed = self._fit(whole)
        except SampleError as error:
            lacks_mask = isinstance(error, NoMask)
            if lacks_mask and name in names.misnamed.values():
                return _Checked(entry=None)  # that its mask has another name is said of the mask
            return _Checked(
                entry=None, problems=(_problem(_FOREGROUNDS, name, error),), lacks_mask=lacks_mask
            )
        warnings = _said(_FOREGROUNDS, name, photo.warnings)
        if placed.covered_pixels == placed.width * placed.height:
            warnings += _said(
                _FOREGROUNDS, name, ["its mask covers everything: the whole rectangle is placed"]
            )
        if mask_photo is not None and mask_file is not None:
            warnings += _said(_FOREGROUNDS, mask_file.name, mask_photo.warnings)
            if not is_own and (warning := mask_warning(photo, mask_photo)):
                hint = "check in the preview that they line up"
                warnings += (Remark(folder=_FOREGROUNDS, names=(name,), reason=warning, hint=hint),)
        if self._keeper is not None:
            self._keeper.keep_foreground(name, whole, placed)
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
            warnings=warnings,
            notes=_said(_FOREGROUNDS, name, photo.notes),
            covered_pixels=placed.covered_pixels,
        )


def _read(folder: Path, what: str, name: str, problems: list[Remark]) -> bytes | None:
    """A file's bytes; None for one that this user may not read, which is a problem among others."""
    try:
        return read_file(folder, name)
    except InputMissing as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        problems.append(
            Remark(
                folder=what,
                names=(name,),
                reason=f"cannot be read ({error.__cause__.strerror})",
                hint="give this user permission to read it",
            )
        )
        return None


def _decoded(what: str, name: str, data: bytes, problems: list[Remark]) -> Photograph | None:
    try:
        return decode(data)
    except (SampleError, MachineUnfit) as error:
        problems.append(_problem(what, name, error))
        return None
    except MemoryError:
        reason = "too large for the memory that this machine has left"
        hint = "use a smaller copy of it, or close other programs"
        problems.append(Remark(folder=what, names=(name,), reason=reason, hint=hint))
        return None


def _problem(what: str, name: str, error: SampleError | MachineUnfit) -> Remark:
    return Remark(folder=what, names=(name,), reason=str(error), hint=error.hint)


def _name_problems(names: MaskNames, name: str, *, takes_files: bool) -> Iterator[Remark]:
    if name in names.misnamed:
        yield Remark(
            folder=_FOREGROUNDS,
            names=(name,),
            details=(f"beside {names.misnamed[name]}",),
            reason="looks like a mask, but masks are named NAME.mask.png",
            hint="rename it NAME.mask.png; if it is a photograph, give it another name",
        )
    if not takes_files:
        return
    if name in names.contested:
        yield Remark(
            folder=_FOREGROUNDS,
            names=(name,),
            details=(", ".join(names.contested[name]),),
            reason="shares its mask file with another photograph",
            hint="rename all but one of the photographs, each mask like its photograph: NAME.mask.png",
        )
    if len(mask_names := names.of.get(name, ())) > 1:
        yield Remark(
            folder=_FOREGROUNDS,
            names=(name,),
            details=(", ".join(mask_names),),
            reason="more than one mask file",
            hint="keep one of them",
        )


def _said(what: str, name: str, phrases: Iterable[str]) -> tuple[Remark, ...]:
    return tuple(Remark(folder=what, names=(name,), reason=phrase) for phrase in phrases)


def _look_swapped(
    foregrounds: Sequence[_Checked[Foreground]], backgrounds: Sequence[_Checked[Background]]
) -> str:
    """What speaks for it that the two folders were confused; "" when nothing does."""
    unmasked = sum(outcome.lacks_mask for outcome in foregrounds)
    cut_out = sum(outcome.is_cut_out for outcome in backgrounds)
    if unmasked < _SWAPPED_UNMASKED * len(foregrounds) or cut_out <= _SWAPPED_MASKED * len(backgrounds):
        return ""
    return (
        f": {unmasked:,} of {counted(len(foregrounds), 'foreground')} without a mask, "
        f"but {cut_out:,} of {counted(len(backgrounds), 'background')} with transparency or a mask"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entries(outcomes: Iterable[_Checked[Source]]) -> tuple[Source, ...]:
    return tuple(outcome.entry for outcome in outcomes if outcome.entry is not None)


def _refuse_empty(folder: Path, listing: Listing, *, what: str) -> None:
    if listing.photographs or listing.unnameable:
        return
    others = len(listing.others) + sum(listing.left_over.values())
    found = f" ({counted(others, 'other file')})" if others else ""
    raise InputMissing(
        f"{folder}: no photographs in the folder of {what}{found}",
        hint="put JPEG, PNG, WebP, BMP or TIFF files into it, or give another folder",
    )


def _unnameable(what: str, listing: Listing) -> Iterator[Remark]:
    for name in listing.unnameable:
        yield Remark(folder=what, names=(name,), reason="the file's name is not UTF-8", hint="rename it")


def _duplicates(
    what: str, entries: Iterable[Foreground] | Iterable[Background] | Iterable[Picture]
) -> Iterator[Remark]:
    first: dict[str, str] = {}
    for entry in entries:
        original = first.setdefault(entry.sha256, entry.name)
        if original != entry.name:
            yield Remark(
                folder=what,
                names=(entry.name,),
                details=(original,),
                reason="the same content as …",
                hint="remove one of the two, unless its samples should count twice",
            )


def _strays(names: MaskNames) -> Iterator[Remark]:
    for name in names.stray:
        yield Remark(
            folder=_FOREGROUNDS,
            names=(name,),
            reason="a mask file without its photograph",
            hint="name it like its photograph: NAME.mask.png",
        )


def _left_out(what: str, listing: Listing) -> Iterator[Remark]:
    for name in listing.others:
        yield Remark(folder=what, names=(name,), reason="left out, not a photograph by its name")
    if count := sum(listing.left_over.values()):
        found = ", ".join(sorted(name for name, files in listing.left_over.items() if files))
        yield Remark(folder=what, reason=f"{counted(count, 'file')} left out, in system folders: {found}")

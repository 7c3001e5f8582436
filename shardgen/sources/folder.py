"""The names in a folder of photographs, in the order that determines sample numbers."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shardgen.errors import InputMissing, InvalidSettings, MachineUnfit, StorageFailed
from shardgen.storage.bounded import Irregular, open_regular, read_regular

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
        *(".heic", ".heif", ".hif", ".avif"),
    }
)
_MASK_MARK = ".mask"
_MISNAMED_MARKS = ("_mask", "-mask")
# What a NAS, a desktop or an archiver leaves behind in folders: thumbnails, deleted files, copies of old
# states. Names in lower case; those that begin with a dot are left out as hidden ones anyway, and named.
_LEFT_OVER_FOLDERS = frozenset(
    {
        *("@eadir", ".@__thumb", ".thumbnails", "__macosx", ".appledouble", ".picasaoriginals"),
        *("#recycle", "@recycle", "$recycle.bin", "recycler", ".trash", ".trashes", "network trash folder"),
        *("#snapshot", "@recently-snapshot", "system volume information", "lost+found"),
    }
)
_LEFT_OVER_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", ".ds_store", "icon\r"})
_HASH_STEP_BYTES = 1 << 20
MAX_FILE_BYTES = 2 << 30  # 200 megapixels of 16-bit RGBA without compression are 1.6 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a folder, names relative to it with '/', each tuple sorted by UTF-8 bytes.

    `masks` are files like `NAME.mask.png`; `others` are not photographs by their suffix, or no files but
    pipes and the like; `unnameable` are names that are not UTF-8, made printable. `left_over` counts the
    files in folders that nobody keeps photographs in, such as `@eaDir`, by the folder's name.
    """

    photographs: tuple[str, ...]
    masks: tuple[str, ...]
    others: tuple[str, ...]
    unnameable: tuple[str, ...]
    left_over: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskNames:
    """Which mask file is whose, by the names alone.

    `of` has the mask files of a photograph: more than one is too many. `contested` are photographs that share
    a mask file with others, and which. `misnamed` are files like `cat_mask.png` beside `cat.jpg`, with the
    name of the photograph. `stray` are mask files without a photograph.
    """

    of: Mapping[str, tuple[str, ...]]
    contested: Mapping[str, tuple[str, ...]]
    misnamed: Mapping[str, str]
    stray: tuple[str, ...]


def pair_masks(photographs: tuple[str, ...], masks: tuple[str, ...]) -> MaskNames:
    """Find the mask files of photographs: the same name up to the suffix, however its accents are encoded.

    A Mac writes `é` as two characters, others as one. Where two photographs have the same name but for that,
    each needs a mask file whose name is encoded as its own is.
    """
    photographs_of, masks_of = by_name(photographs, stem_of), by_name(masks, masked_stem)
    of: dict[str, tuple[str, ...]] = {}
    contested: dict[str, tuple[str, ...]] = {}
    for name, same in photographs_of.items():
        found = masks_of.get(name, ())
        exact = {one: tuple(mask for mask in found if masked_stem(mask) == stem_of(one)) for one in same}
        if len(same) == 1 or not found:
            of |= dict.fromkeys(same, found)
        elif all(exact.values()) and len({stem_of(one) for one in same}) == len(same):
            of |= exact
        else:
            contested |= {one: tuple(other for other in same if other != one) for one in same}
    misnamed = {}
    for name in photographs:
        stem = _canonical(stem_of(name))
        for mark in _MISNAMED_MARKS:
            if stem.lower().endswith(mark) and (beside := photographs_of.get(stem[: -len(mark)])):
                misnamed[name] = beside[0]
    stray = tuple(mask for mask in masks if _canonical(masked_stem(mask)) not in photographs_of)
    return MaskNames(of=of, contested=contested, misnamed=misnamed, stray=stray)


def list_folder(folder: Path, *, what: str, with_masks: bool) -> Listing:
    """List a folder and its subfolders, hidden and left-over ones left out; `what` names its role in errors.

    `with_masks` tells mask files from photographs. Raises InputMissing for a folder that is not there.
    """
    if not _is_folder(folder):
        raise InputMissing(
            f"{folder}: the folder of {what} is not there",
            hint=f"give the right folder with --{what} or in shardgen.toml under [sources]",
        )
    photographs, masks, others, unnameable = [], [], [], []
    left_over: dict[str, int] = {}
    for name in _walk(folder, left_over):
        if not name.isascii() and sys.getfilesystemencoding() != "utf-8":
            raise MachineUnfit(
                f"{folder}: this locale reads file names as {sys.getfilesystemencoding()}, not as UTF-8",
                hint="export PYTHONUTF8=1, then run it again",
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            unnameable.append(os.fsencode(name).decode("utf-8", "backslashreplace"))
            continue
        if _is_pipe(os.path.join(folder, name)) or os.path.splitext(name)[1].lower() not in SUFFIXES:  # noqa: PTH118, PTH122
            others.append(name)
        elif with_masks and is_mask(name):
            masks.append(name)
        else:
            photographs.append(name)
    return Listing(
        photographs=_sorted(photographs),
        masks=_sorted(masks),
        others=_sorted(others),
        unnameable=_sorted(unnameable),
        left_over=left_over,
    )


def stem_of(name: str) -> str:
    """Return a name without its suffix, folders included."""
    return PurePosixPath(name).with_suffix("").as_posix()


def is_mask(name: str) -> bool:
    """Whether it is named as mask files are: `NAME.mask.png`."""
    return stem_of(name).lower().endswith(_MASK_MARK)


def masked_stem(mask_name: str) -> str:
    """Return the name that a mask file's photograph has, without its suffix."""
    return stem_of(mask_name)[: -len(_MASK_MARK)]


def _canonical(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


def by_name(names: tuple[str, ...], stem: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Put together what has the same `stem`, however its accents are encoded."""
    result: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for name in names:
        result[_canonical(stem(name))] += (name,)
    return dict(result)


def refuse_nested(foregrounds: Path, backgrounds: Path) -> None:
    """Refuse folders of which one holds the other: every cut-out would become a background too."""
    one, other = foregrounds.resolve(), backgrounds.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise InvalidSettings(
            f"the folders of foregrounds ({foregrounds}) and backgrounds ({backgrounds}) overlap",
            hint="use two folders, neither inside the other",
        )


def read_file(folder: Path, name: str) -> bytes:
    """Read a source file; raises InputMissing when it or its folder is gone, else StorageFailed."""
    with _translated_errors(folder, name):
        return read_regular(folder / name, limit=MAX_FILE_BYTES)


def hash_file(folder: Path, name: str) -> str:
    """Sha256 of a source file, 64 hexadecimal digits; errors as `read_file`."""
    digest = hashlib.sha256()
    with _translated_errors(folder, name), os.fdopen(open_regular(folder / name), "rb") as file:
        while part := file.read(_HASH_STEP_BYTES):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _translated_errors(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except Irregular as error:
        raise InputMissing(f"{folder / name}: {error.strerror}", hint="take it out of the folder") from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise _missing(folder, name, error) from error
    except OSError as error:
        raise StorageFailed(
            f"{folder / name}: {error.strerror}", hint="check the disk and try again"
        ) from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder above it that may not be looked into
        return False


def _is_pipe(path: str) -> bool:
    """Whether to read it may take forever; what cannot be looked at is told by whoever reads it."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - a path object costs five times as much
    except OSError:
        return False


def _missing(folder: Path, name: str, error: OSError) -> InputMissing:
    if not _is_folder(folder):
        return InputMissing(f"{folder}: the folder is gone", hint="mount it again, or give its new path")
    return InputMissing(f"{folder / name}: {error.strerror}", hint="put the file back, or make it readable")


def _walk(folder: Path, left_over: dict[str, int]) -> Iterator[str]:
    """Yield relative file names with '/'; links to folders are followed, once. Adds to `left_over`."""
    seen = {_identity(folder)}
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        kept = []
        for name in sorted(folders):  # of two names of one folder the first is kept, however they are listed
            if name.lower() in _LEFT_OVER_FOLDERS:
                shown = os.fsencode(name).decode("utf-8", "backslashreplace")
                left_over[shown] = left_over.get(shown, 0) + _count_files(Path(root, name))
            elif not name.startswith(".") and (identity := _identity(Path(root, name))) not in seen:
                seen.add(identity)
                kept.append(name)
        folders[:] = kept
        # Once a folder: of hundreds of thousands of files each path object would cost more than its listing.
        below = Path(root).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in files:
            if not name.startswith(".") and name.lower() not in _LEFT_OVER_FILES:
                yield prefix + name


def _count_files(folder: Path) -> int:
    """How many lie in it and below, as far as it may be read."""
    return sum(len(files) for _root, _folders, files in os.walk(folder))


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        _refuse_unreadable(error)
        raise
    return status.st_dev, status.st_ino


def _refuse_unreadable(error: OSError) -> None:
    raise InputMissing(
        f"{error.filename}: {error.strerror}",
        hint="give this user permission to read the folder, or move it elsewhere",
    ) from error


def _sorted(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=str.encode))

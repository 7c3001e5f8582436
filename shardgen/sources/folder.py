"""What lies in a folder of photographs: names, in the one order that sample numbers are made from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shardgen.errors import InputMissing, InvalidSettings, StorageFailed
from shardgen.storage.bounded import Irregular, open_regular, read_regular

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"})
_MASK_MARK = ".mask"
_HASH_STEP_BYTES = 1 << 20
MAX_FILE_BYTES = 2 << 30  # 200 megapixels of 16-bit RGBA without compression are 1.6 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a folder, names relative to it with '/', each tuple sorted by UTF-8 bytes.

    `masks` are files like `NAME.mask.png`; `others` are not photographs by their suffix, or no files but
    pipes and the like; `unnameable` are names that are not UTF-8, made printable.
    """

    photographs: tuple[str, ...]
    masks: tuple[str, ...]
    others: tuple[str, ...]
    unnameable: tuple[str, ...]

    def mask_names(self, photograph: str) -> list[str]:
        """The mask files beside a photograph: the same name up to its suffix."""
        return [name for name in self.masks if masked_stem(name) == stem_of(photograph)]


def list_folder(folder: Path, *, what: str, with_masks: bool) -> Listing:
    """List a folder and its subfolders, hidden ones left out; `what` names its role in errors.

    `with_masks` tells mask files from photographs. Raises InputMissing for a folder that is not there.
    """
    if not _is_folder(folder):
        raise InputMissing(
            f"{folder}: the folder of {what} is not there",
            hint=f"give the right folder with --{what} or in shardgen.toml under [sources]",
        )
    photographs, masks, others, unnameable = [], [], [], []
    for name in _walk(folder):
        try:
            name.encode()
        except UnicodeEncodeError:
            unnameable.append(os.fsencode(name).decode("utf-8", "backslashreplace"))
            continue
        if _is_pipe(folder / name) or PurePosixPath(name).suffix.lower() not in SUFFIXES:
            others.append(name)
        elif with_masks and stem_of(name).lower().endswith(_MASK_MARK):
            masks.append(name)
        else:
            photographs.append(name)
    return Listing(
        photographs=_sorted(photographs),
        masks=_sorted(masks),
        others=_sorted(others),
        unnameable=_sorted(unnameable),
    )


def stem_of(name: str) -> str:
    """Return a name without its suffix, folders included."""
    return PurePosixPath(name).with_suffix("").as_posix()


def masked_stem(mask_name: str) -> str:
    """Return the name that a mask file's photograph has, without its suffix."""
    return stem_of(mask_name)[: -len(_MASK_MARK)]


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


def _is_pipe(path: Path) -> bool:
    """Whether to read it may take forever; what cannot be looked at is told by whoever reads it."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _missing(folder: Path, name: str, error: OSError) -> InputMissing:
    if not _is_folder(folder):
        return InputMissing(f"{folder}: the folder is gone", hint="mount it again, or give its new path")
    return InputMissing(f"{folder / name}: {error.strerror}", hint="put the file back, or let it be read")


def _walk(folder: Path) -> Iterator[str]:
    """Yield relative file names with '/'; links to folders are followed, once."""
    seen = {_identity(folder)}
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        kept = []
        for name in folders:
            identity = _identity(Path(root, name))
            if not name.startswith(".") and identity not in seen:
                seen.add(identity)
                kept.append(name)
        folders[:] = sorted(kept)
        for name in files:
            if not name.startswith("."):
                yield Path(root, name).relative_to(folder).as_posix()


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        _refuse_unreadable(error)
        raise
    return status.st_dev, status.st_ino


def _refuse_unreadable(error: OSError) -> None:
    raise InputMissing(
        f"{error.filename}: {error.strerror}", hint="let this user read the folder, or move it elsewhere"
    ) from error


def _sorted(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=str.encode))

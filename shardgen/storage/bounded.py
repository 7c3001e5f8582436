"""Bytes from outside: regular files only, up to a limit; JSON and TOML that fail in one way."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
import tomllib
from pathlib import Path

_PIECE_BYTES = 1 << 20
_FAILING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_MAX_DOTS = 200  # in one line of TOML


class Irregular(OSError):
    """Not a regular file, a link that is not to be followed, or larger than anything of ours."""


def open_regular(path: Path, *, follow: bool = True) -> int:
    """Open a regular file for reading. Raises OSError, or Irregular, which is one; returns a descriptor.

    A named pipe or a device is refused without waiting for it, and with `follow=False` so is a link.
    """
    # Opening a pipe would wait for its writer; of a regular file this flag changes nothing.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # a NUL in the name
        raise Irregular(errno.EINVAL, "impossible name", str(path)) from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise Irregular(errno.ELOOP, "a link, which is not followed", str(path)) from error
        if error.errno == errno.ENXIO:
            raise Irregular(errno.ENXIO, "not a regular file", str(path)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise Irregular(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path, *, limit: int, follow: bool = True) -> bytes:
    """Read a whole regular file of at most `limit` bytes; errors as `open_regular`, also for a larger one."""
    descriptor = open_regular(path, follow=follow)
    try:
        parts: list[bytes] = []
        found = limit + 1 if os.fstat(descriptor).st_size > limit else 0
        while found <= limit and (part := os.read(descriptor, min(_PIECE_BYTES, limit + 1 - found))):
            parts.append(part)
            found += len(part)
    finally:
        os.close(descriptor)
    if found > limit:
        raise Irregular(errno.EFBIG, f"more than {limit:,} bytes", str(path))
    return b"".join(parts)


def how_to_read(error: OSError, path: Path, *, otherwise: str) -> str:
    """What to do about a file that could not be read; `otherwise` when what lies there is none of ours."""
    if isinstance(error, PermissionError):
        return f"let this user read it: chmod u+r {shlex.quote(str(path))}"
    if error.errno in _FAILING:
        return "check that disk or mount, then run the command again"
    return otherwise


def parse_json(data: str | bytes) -> object:
    """Parse JSON; whatever is wrong with it, nesting and digits included, is ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_toml(text: str) -> dict[str, object]:
    """Parse TOML; whatever is wrong with it, nesting and digits included, is ValueError."""
    for number, line in enumerate(text.split("\n"), start=1):
        # The time that a dotted key takes grows with the square of its parts, and beyond.
        if line.count(".") > _MAX_DOTS:
            raise ValueError(f"more than {_MAX_DOTS} dots (at line {number})")
    try:
        document: dict[str, object] = tomllib.loads(text)
        json.dumps(document, default=str)  # a hexadecimal number of any length was read so far
    except RecursionError:
        raise ValueError("nested too deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError("a number of too many digits") from None
    return document

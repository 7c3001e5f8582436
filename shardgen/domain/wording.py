"""Words of messages that more than one layer writes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

# Control characters (C0 but tab and newline, DEL, C1), what turns the direction of writing, other ends of
# lines, and the lone surrogates that stand for bytes of a file name that are no UTF-8.
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
Say = Callable[[str], None]

_MAX_WORD = 100  # characters


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, whatever its case; "" if none is like it."""
    from difflib import get_close_matches  # noqa: PLC0415 - only who mistypes waits for it

    by_case = {one.lower(): one for one in known}
    found = get_close_matches(word[:_MAX_WORD].lower(), by_case, n=1)
    return by_case[found[0]] if found else ""


def typed(path: Path | str) -> str:
    """The path, or the url of a bucket, as it must be typed into a shell."""
    return shlex.quote(str(path) if ":" in str(path) else str(Path(path)))


def with_run_dir(command: str, run_dir: Path | str) -> str:
    """The command with this run directory in the place of RUN_DIR, so that it can be pasted."""
    return command.replace("RUN_DIR", typed(run_dir))


def printable(text: str) -> str:
    r"""The text with every order to a terminal written out, as in `\x1b[2J`; tabs and newlines stay."""
    return _ORDERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    r"""The same for a JSON document, where they stand inside strings only: `\u009b` is the same value."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def byte_unit(size_bytes: float) -> tuple[float, str]:
    """How many bytes the unit has that such a size is shown in, and its name: decimal, as disks are sold."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return factor, unit
    return 1.0, "bytes"


def sized(size_bytes: float) -> str:
    """`1.9 GB`, `512 bytes`."""
    factor, unit = byte_unit(size_bytes)
    return f"{size_bytes / factor:.{0 if factor == 1 else 1}f} {unit}"


def counted(count: int, thing: str) -> str:
    """`1 finding`, `2 findings`, `1,000 batches`."""
    plural = f"{thing}es" if thing.endswith("ch") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"


def duration(seconds: float | None) -> str:
    """`3 d 4 h`, `2 h 05 min`, `3 min 20 s`, `12 s`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole} s"

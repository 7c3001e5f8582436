"""Words of messages that more than one layer writes."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


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

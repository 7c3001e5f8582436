"""Patience with a manifest that a frozen neighbour keeps locked: longer than one timeout, not for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from shardgen.errors import ManifestBusy

_TRIES = 5  # of 30 s each: longer than that, and the slice had better be given back
Found = TypeVar("Found")


def patiently(call: Callable[[], Found], *, say: Callable[[str], None]) -> Found:
    """Call it until the manifest is free. Raises ManifestBusy in the end, and whatever else it raises."""
    for _ in range(_TRIES - 1):
        try:
            return call()
        except ManifestBusy as error:
            say(f"{error}; trying again")
    return call()

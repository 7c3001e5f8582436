"""Patience with a manifest that cannot be reached now: longer than one timeout, not for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from shardgen.errors import ManifestBusy

_TRIES = 5  # of 30 s each: longer than that, and the slice had better be given back
Found = TypeVar("Found")


def patiently(call: Callable[[], Found], *, say: Callable[[str], None]) -> Found:
    """Call it until the manifest is free. Raises ManifestBusy in the end, and whatever else it raises."""
    retrying = Retrying(
        retry=retry_if_exception_type(ManifestBusy),
        stop=stop_after_attempt(_TRIES),
        before_sleep=lambda state: say(f"{state.outcome and state.outcome.exception()}; trying again"),
        reraise=True,
    )
    return retrying(call)

"""Words of messages that more than one layer writes."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def counted(count: int, thing: str) -> str:
    """`1 finding`, `2 findings`, `1,000 batches`."""
    plural = f"{thing}es" if thing.endswith("ch") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"

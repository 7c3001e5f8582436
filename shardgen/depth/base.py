"""What a run asks of a depth network on one machine; imports nothing heavy, so that settings can say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """`[depth] weights` and `micro_batch` as this machine's settings have them.

    `name` is the plan's name of the weights, `written` what `shardgen.toml` says, `file` the path that it
    means, if it means one. `micro_batch` is how many images the network takes at once.
    """

    name: str
    written: str
    file: Path | None
    micro_batch: int | Literal["auto"]

"""`README.md` of an export: the data set's card, with the list of files after its introduction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from shardgen.dataset.card import yaml_head
from shardgen.dataset.export.splits import WHOLE, Split
from shardgen.domain.wording import counted

_FENCE = "---\n"
_COUNTS = "\n## Counts\n"
_SHEET = re.compile(r"^- `contact_sheet\.png`.*\n", re.MULTILINE)
_READING = re.compile(r"^## Reading it in Python\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def export_card(card: bytes, *, files: str, configs: Mapping[str, Sequence[str]]) -> bytes:
    """Write it: `files` says what lies there, `configs` which of it are whose split.

    `configs` go into the head, for who loads the folder with `datasets` or from the Hub.
    """
    head, body = _parted(card.decode())
    # In front of the last one stand the title and the user's own words, whatever these are.
    front, counts, rear = body.rpartition(_COUNTS)
    rear = _READING.sub("", _SHEET.sub("", rear)).replace(
        "\n## Layout\n", "\n## Layout of the zip that `shardgen merge` writes\n", 1
    )
    data_files = [
        {"split": "train" if name == WHOLE else name, "path": list(patterns)}
        for name, patterns in configs.items()
    ]
    of_whom = yaml_head({"configs": [{"config_name": "default", "data_files": data_files}]})
    named = of_whom.removeprefix(_FENCE)
    return f"{_FENCE}{head}{named}{front}\n## Files of this export\n\n{files}{counts}{rear}".encode()


def _parted(card: str) -> tuple[str, str]:
    """The lines of the head and the text behind it."""
    if not card.startswith(_FENCE):
        return "", card
    head, _, body = card.removeprefix(_FENCE).partition(f"\n{_FENCE}")
    return head + "\n", body


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """How much there is of each split."""
    lines = ["| split | samples | photographs | files | bytes |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def dropped_samples(split: Split | None, dropped: int) -> str:
    """What a split leaves out, and why."""
    if split is None:
        return ""
    return (
        f"\nNo photograph is in two splits: `splits.csv` says where each is (split by {split.by}, "
        f"seed {split.seed}). "
        f"Dropped, since their photographs are in several splits: {counted(dropped, 'sample')}.\n"
    )

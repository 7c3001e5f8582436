"""What a notebook has asked of Colab, in `$FAKE_JOURNAL`."""

import os
from pathlib import Path


def note(line: str) -> None:
    """Append a line."""
    with Path(os.environ["FAKE_JOURNAL"]).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def lines() -> list[str]:
    """All of them."""
    return Path(os.environ["FAKE_JOURNAL"]).read_text(encoding="utf-8").splitlines()

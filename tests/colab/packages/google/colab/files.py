"""Choosing files on one's own computer: those of a folder of `$FAKE_UPLOADS`, one folder after the other."""

import os
from pathlib import Path

from google.colab import journal

_ORDER = ("foregrounds", "backgrounds")


def upload() -> dict[str, bytes]:
    """As Colab's: the chosen files by name."""
    chosen = Path(os.environ["FAKE_UPLOADS"]) / _ORDER[journal.lines().count("upload")]
    journal.note("upload")
    return {path.name: path.read_bytes() for path in sorted(chosen.iterdir())}

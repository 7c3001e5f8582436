"""Python imports this at its start when this folder is on its path: no temporary folder, a nameless user."""

from __future__ import annotations

import pwd
import tempfile
from typing import NoReturn


def _nobody(number: int) -> NoReturn:
    raise KeyError(f"getpwuid(): uid not found: {number}")


pwd.getpwuid = _nobody
tempfile._candidate_tempdir_list = list  # type: ignore[attr-defined]

"""Notebooks: a `!command` in a cell has a terminal that only takes lines, and carriage returns within one."""

from __future__ import annotations

import os
from collections.abc import Mapping

_OF_NOTEBOOKS = (
    "COLAB_RELEASE_TAG",
    "JPY_PARENT_PID",
)  # every Colab runtime has the one, every kernel the other


def is_notebook(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a notebook's kernel, or was started by a cell of it."""
    return any(environment.get(name) for name in _OF_NOTEBOOKS)

"""A made-up `nvidia-smi`, for machines without a GPU."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest


def put_nvidia_smi(
    folder: Path, listing: str, monkeypatch: pytest.MonkeyPatch, *, exit_code: int = 0
) -> None:
    """Let the first `nvidia-smi` of the PATH be one that prints this listing, to `-L` only."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\n[ "$*" = -L ] || exit 2\nprintf %s {shlex.quote(listing)}\nexit {exit_code}\n',
        encoding="ascii",
    )
    program.chmod(0o755)
    if not os.environ["PATH"].startswith(f"{programs}:"):
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

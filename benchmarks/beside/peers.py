"""The other projects: in which versions, and which Python has them."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A distribution, the version of it that `install` takes, and what it needs besides for what we use."""

    name: str
    version: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A Python that has a peer, and the version that it has."""

    python: Path
    version: str


SHARDGEN = Peer(name="shardgen")
IMG2DATASET = Peer(name="img2dataset", version="1.47.0")
DATATROVE = Peer(name="datatrove", version="0.10.1", also=("orjson",))
LITDATA = Peer(name="litdata", version="0.2.76")
HUEY = Peer(name="huey", version="3.5.4")
LITEQUEUE = Peer(name="litequeue", version="0.9")
PERSIST_QUEUE = Peer(name="persist-queue", version="1.1.0")


def find(peer: Peer, venvs: Path | None) -> Found | None:
    """The peer's own environment below `venvs`, else this one; None: not installed in either."""
    own = None if venvs is None else python_of(venvs / peer.name)
    for python in (own, Path(sys.executable)):
        if python is not None and python.exists():
            version = _version(python, peer)
            if version is not None:
                return Found(python=python, version=version)
    return None


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "bin" / "python"


def _version(python: Path, peer: Peer) -> str | None:
    script = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    asked = subprocess.run(  # noqa: S603 - our own script
        [python, "-c", script, peer.name], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() if asked.returncode == 0 else None


def install(peer: Peer, venvs: Path) -> None:
    """Make an environment below `venvs` for the peer alone; raises CalledProcessError."""
    environment = venvs / peer.name
    venv.create(environment, with_pip=True)
    wanted = [f"{peer.name}=={peer.version}", *peer.also]
    pip: list[str | Path] = [python_of(environment), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *wanted], check=True)  # noqa: S603 - our own arguments


def environment_of_programs() -> dict[str, str]:
    """Variables with which any Python finds `benchmarks.beside` and nothing asks the network at its start."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "no_proxy": "127.0.0.1",
    }

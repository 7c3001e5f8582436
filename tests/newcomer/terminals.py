"""A newcomer's folder in every state that a shown command needs, and the shell that they type it into.

The photographs are small; `people/shardgen.toml` gets the small network and small images. All else is real.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shardgen.settings.template import settings_text
from tests import warm
from tests.photographs import write_photographs, write_rgb
from tests.poison import environment
from tests.runs import SETTINGS

DEAD_LETTERS = (5, 70)
PATIENCE_SECONDS = 240.0
_SHELLS_OWN = set("|&;<>$`*")
# Variables that are read after a program's start: what they are given to needs no new interpreter.
_LATE = {*environment("raise", 0), "SHARDGEN_CACHE"}


class State(StrEnum):
    """How far the newcomer is."""

    PHOTOGRAPHS = "photographs"  # `cut-outs` and `scenes`
    PORTRAITS = (
        "portraits"  # the same, and ordinary photographs in `portraits`; the network of `cut-out` is fetched
    )
    INITIALISED = "initialised"
    PLANNED = "planned"
    MADE = "made"  # with `people.zip`
    DEAD = "dead"  # two samples were given up
    DAMAGED = "damaged"  # a bit of an artifact has flipped
    LOST = "lost"  # the manifest is gone
    WEIGHTS = "weights"  # a file `nyu.h5`


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


class Terminal:
    """A folder to type commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environment(self) -> dict[str, str]:
        """The shell's: this environment's programs first, an own cache folder, no server or cluster."""
        given = dict(os.environ)
        return given | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{given['PATH']}",
            "SHARDGEN_CACHE": str(self.folder / "cache"),
            "https_proxy": "http://127.0.0.1:9",  # the port of `discard`, where nobody listens
            "no_proxy": "",
            "RAY_ADDRESS": "127.0.0.1:9",
        }

    def type(self, line: str, *, more: Mapping[str, str] | None = None) -> Said:
        """Type a line into a shell and wait until it has finished."""
        given = dict(more or {})
        if line.startswith("shardgen ") and not _SHELLS_OWN & set(line) and given.keys() <= _LATE:
            words = shlex.split(line)[1:]
            done = warm.run(
                "shardgen", words, environment=self.environment() | given, folder=self.folder,
                timeout=PATIENCE_SECONDS,
            )  # fmt: skip
            return Said(code=done.returncode, out=done.stdout, err=done.stderr)
        ran = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment() | given,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return Said(code=ran.returncode, out=ran.stdout, err=ran.stderr)

    def type_and_stop(self, line: str, *, after: str) -> Said:
        """The same, but press Ctrl-C when this text has come."""
        said, remarked = self.folder / "said.txt", self.folder / "remarked.txt"
        with said.open("w", encoding="utf-8") as out, remarked.open("w", encoding="utf-8") as err:
            # A shell in the background would hand down that SIGINT is ignored.
            process = subprocess.Popen(
                ["env", "--default-signal=INT", "bash", "-c", f"exec {line}"],
                cwd=self.folder,
                env=self.environment(),
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
            try:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not any(after in one.read_text(encoding="utf-8") for one in (said, remarked)):
                    assert process.poll() is None, f"{line} has ended"
                    assert time.monotonic() < deadline, f"{line} never said {after}"
                    time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)
            finally:
                process.kill()
                process.wait()
        out_text, err_text = (one.read_text(encoding="utf-8") for one in (said, remarked))
        return Said(code=process.returncode, out=out_text, err=err_text)


class Terminals:
    """Makes each state once, by the commands that lead to it, and hands out copies."""

    def __init__(self, folder: Path, *, u2netp: Callable[[], Path]) -> None:
        self._folder = folder
        self._u2netp = u2netp
        self._copies = 0

    def at(self, state: State) -> Terminal:
        """A terminal of one's own in this state."""
        kept = self._folder / state
        if not kept.exists():
            terminal = self._make(state)
            terminal.folder.rename(kept)
        return self._copy_of(kept)

    def _copy_of(self, kept: Path) -> Terminal:
        self._copies += 1
        return Terminal(Path(shutil.copytree(kept, self._folder / f"terminal-{self._copies}")))

    def _make(self, state: State) -> Terminal:
        if state is State.PHOTOGRAPHS:
            terminal = Terminal(self._folder / "first")
            foregrounds, backgrounds = write_photographs(terminal.folder, foregrounds=2, backgrounds=4)
            foregrounds.rename(terminal.folder / "cut-outs")
            backgrounds.rename(terminal.folder / "scenes")
            return terminal
        if state is State.PORTRAITS:
            terminal = self.at(State.PHOTOGRAPHS)
            _bring_portraits(terminal, self._u2netp())
            return terminal
        before = {State.INITIALISED: State.PHOTOGRAPHS, State.PLANNED: State.INITIALISED}
        before |= {State.MADE: State.PLANNED, State.DEAD: State.PLANNED, State.WEIGHTS: State.PHOTOGRAPHS}
        terminal = self.at(before.get(state, State.MADE))
        _ADVANCES[state](terminal)
        return terminal


def _initialise(terminal: Terminal) -> None:
    assert terminal.type("shardgen init people --foregrounds cut-outs --backgrounds scenes").code == 0
    shrink(terminal)


def shrink(terminal: Terminal, *, foregrounds: str = "cut-outs") -> None:
    """Put the small network and small images into the settings: 96 samples in 24 batches."""
    settings = terminal.folder / "people" / "shardgen.toml"
    assert settings.is_file()
    text = settings_text(
        foregrounds=Path("..", foregrounds),
        backgrounds=Path("../scenes"),
        weights="small",
        changes=SETTINGS,
    )
    settings.write_text(text, encoding="utf-8")


def _plan(terminal: Terminal) -> None:
    assert terminal.type("shardgen plan people").code == 0


def _run(terminal: Terminal) -> None:
    assert terminal.type("shardgen run people -o people.zip").code == 0


def _lose_samples(terminal: Terminal) -> None:
    said = terminal.type("shardgen worker people", more=environment("raise", *DEAD_LETTERS))
    assert said.code == 0, said.err


def _flip_a_bit(terminal: Terminal) -> None:
    victim = min((terminal.folder / "people" / "artifacts").glob("shard-*/*.zip"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)


def _lose_the_manifest(terminal: Terminal) -> None:
    for path in (terminal.folder / "people").glob("manifest.sqlite*"):
        path.unlink()


def _bring_portraits(terminal: Terminal, u2netp: Path) -> None:
    from skimage import data  # noqa: PLC0415 - for these alone

    for folder in ("portraits", "cache"):
        (terminal.folder / folder).mkdir()
    for name, picture in (("anna", data.astronaut()), ("cup", data.coffee())):
        write_rgb(terminal.folder / "portraits" / f"{name}.jpg", picture)
    shutil.copyfile(u2netp, terminal.folder / "cache" / u2netp.name)


def _bring_weights(terminal: Terminal) -> None:
    import shardgen  # noqa: PLC0415 - only to find its folder

    shipped = Path(shardgen.__file__).parent / "depth" / "densedepth" / "small.h5"
    shutil.copyfile(shipped, terminal.folder / "nyu.h5")


_ADVANCES = {
    State.INITIALISED: _initialise,
    State.PLANNED: _plan,
    State.MADE: _run,
    State.DEAD: _lose_samples,
    State.DAMAGED: _flip_a_bit,
    State.LOST: _lose_the_manifest,
    State.WEIGHTS: _bring_weights,
}

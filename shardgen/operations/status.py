"""The state of a run, of a database or a shared folder, and what a person should do about it.

Needs no network and reads no artifact.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from shardgen.coordination.open import open_run
from shardgen.coordination.report import Report
from shardgen.domain.wording import sized
from shardgen.operations.merged import Merged
from shardgen.settings.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What a person should know, and the command to type then; RUN_DIR in it stands for the run directory.

    `is_trouble`: something is wrong; else it is only what comes next.
    """

    text: str
    command: str
    is_trouble: bool = False


def report(run: RunDirectory) -> Report:
    """Read the state of a run. Raises InputMissing when nothing is planned."""
    return open_run(run).report()


def advice(found: Report, finished: Merged | None = None) -> list[Advice]:
    """What to type next, troubles first; nothing where somebody is at work and all is well.

    `finished` is the zip of all that is stored, where one is known.
    """
    advised = []
    if found.overview.blocked_total:
        advised.append(
            Advice(
                text="once the cause is fixed", command="shardgen requeue RUN_DIR --blocked", is_trouble=True
            )
        )
    if found.is_anybody_at_work or advised:
        return advised
    if found.pending:
        command = f"shardgen {'worker' if found.folder else 'run'} RUN_DIR"
        return [Advice(text="to continue", command=command)]
    if finished is not None:
        name = shown_path(finished)
        text = f"finished: {name}, {sized(finished.size_bytes)}; to check every byte of it"
        return [Advice(text=text, command=f"shardgen verify {shlex.quote(name)}")]
    if found.dead:
        return [Advice(text="next", command="shardgen dead-letters RUN_DIR", is_trouble=True)]
    return [Advice(text="to make the zip, if you have not yet", command="shardgen merge RUN_DIR")]


def shown_path(zip_file: Merged) -> str:
    """Where it is, from the working folder if it is below that."""
    path, here = Path(zip_file.path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

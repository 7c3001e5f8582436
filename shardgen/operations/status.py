"""The state of a run, from any record, and what a person should do about it.

Needs no network and reads no artifact.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shardgen.coordination.open import open_run
from shardgen.coordination.report import Report, ShownWorker
from shardgen.domain.wording import counted
from shardgen.domain.worker import ShownState
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

    Each text reads as the beginning of `text: command`. `finished` is the zip of all that is stored, where
    one is known.
    """
    # Dead letters were left out on purpose then.
    if finished is not None and not (found.pending or found.is_anybody_at_work):
        command = f"shardgen verify {shlex.quote(shown_path(finished))}"
        return [Advice(text="to check every byte of the zip", command=command)]
    advised = [*_of_samples(found)]
    if found.is_anybody_at_work:
        return [*advised, *_of_workers(found), *_of_the_place(found)]
    advised += _of_the_place(found)
    if found.pending:
        command = f"shardgen {'worker' if found.folder else 'run'} RUN_DIR"
        return [*advised, Advice(text="to continue", command=command)]
    if found.dead:
        return [
            *advised,
            Advice(text="to try these again", command="shardgen requeue RUN_DIR --dead-letters"),
            Advice(text="to leave them out", command="shardgen merge RUN_DIR --allow-dead-letters"),
        ]
    return [*advised, Advice(text="to make the zip, if you have not yet", command="shardgen merge RUN_DIR")]


def _of_samples(found: Report) -> Iterator[Advice]:
    if blocked := found.overview.blocked_total:
        yield Advice(
            text=f"{counted(blocked, 'slice')} failed again and again and {_is(blocked)} blocked; once the "
            "cause is fixed",
            command="shardgen requeue RUN_DIR --blocked",
            is_trouble=True,
        )
    if found.dead:
        yield Advice(
            text=f"{counted(found.dead, 'sample')} could not be made; to see why",
            command="shardgen dead-letters RUN_DIR",
            is_trouble=True,
        )


def _of_workers(found: Report) -> Iterator[Advice]:
    """Of those that do nothing any more while others work."""
    counts = Counter(one.state for one in found.workers if one.row.shard is not None)
    if stalled := counts[ShownState.STALLED]:
        yield Advice(
            text=f"{counted(stalled, 'stalled worker')}: alive, but nothing gets done; to check that machine",
            command="shardgen doctor",
            is_trouble=True,
        )
    if lost := counts[ShownState.EXPIRED] + counts[ShownState.DEAD]:
        yield Advice(
            text=f"{counted(lost, 'worker')} died or fell silent; others take over. To add a worker",
            command="shardgen worker RUN_DIR",
            is_trouble=True,
        )


def _of_the_place(found: Report) -> Iterator[Advice]:
    for trouble in () if found.folder is None else found.folder.troubles:
        yield Advice(
            text=f"the shared folder: {trouble}; to check this machine",
            command="shardgen doctor",
            is_trouble=True,
        )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def by_node(found: Report) -> list[tuple[str, list[ShownWorker]]]:
    """The nodes, each with its workers by id; a name that several have gets a part of the host's digest."""
    nodes: dict[tuple[str, str], list[ShownWorker]] = {}
    for one in sorted(found.workers, key=lambda one: one.row.identity.id):
        nodes.setdefault((one.row.identity.node, one.row.identity.host), []).append(one)
    machines = Counter(node for node, _ in nodes)
    named = []
    for node, host in sorted(nodes):
        digest = sha256(host.encode(errors="backslashreplace")).hexdigest()[:4]
        named.append((node if machines[node] == 1 else f"{node} ({digest})", nodes[node, host]))
    return named


def shown_path(zip_file: Merged) -> str:
    """Where it is, from the working folder if it is below that."""
    path, here = Path(zip_file.path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

"""Run: make what is pending of a planned run with worker processes on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardgen.coordination.artifact_folder import open_store, refuse_unusable_at_first
from shardgen.coordination.base import OpenedRun
from shardgen.coordination.open import open_run
from shardgen.coordination.report import Report
from shardgen.dataset.merge import MergeResult
from shardgen.domain.wording import Say
from shardgen.errors import MAX_WORKERS, refuse_number
from shardgen.launch.allocation import Wanted, choose_gpus, settle_workers
from shardgen.launch.local import LocalLauncher
from shardgen.launch.supervisor import RunOptions, run_workers
from shardgen.machine.gpus import Gpu, refuse_no_names
from shardgen.operations.merge import refuse_output
from shardgen.operations.plan import refuse_lost_sources
from shardgen.recipes.base import Folders, given_threads, refuse_device
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How far the run is, and the zip; None where a limit or a deadline left samples pending."""

    report: Report
    merged: MergeResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Who is to work on this machine: what was asked for, and the GPUs that were chosen for it."""

    wanted: Wanted
    gpus: tuple[Gpu, ...]

    @classmethod
    def choose(cls, *, workers: int | None = None, device: str = "auto", gpus: tuple[str, ...] = ()) -> Crew:
        """Raises MachineUnfit for a GPU that is not there, InvalidSettings for options that contradict.

        Raises WrongOption for a value that makes no sense.
        """
        if workers is not None:
            refuse_number("workers", workers, at_most=MAX_WORKERS)
        refuse_device(device)
        refuse_no_names(gpus)
        wanted = Wanted(workers=workers, device=device, gpus=gpus, threads_per_worker=given_threads())
        return cls(wanted=wanted, gpus=choose_gpus(wanted))


def ready_to_make(run: RunDirectory, output: Path | None) -> OpenedRun:
    """Open a planned run, and refuse before hours of work what would fail after them."""
    opened = open_run(run)
    recipe_of(opened.plan).load()  # the merge needs it after hours of work
    opened.ensure_manifest()
    with run.manifest(opened.plan, read_only=True) as manifest:
        refuse_unusable_at_first(open_store(run), manifest.folder)
    refuse_output(run, opened.plan, output)
    return opened


def make_here(  # noqa: PLR0913 - of which run, by whom, for how long, and who watches
    opened: OpenedRun,
    crew: Crew,
    options: RunOptions,
    *,
    folders: Folders,
    say: Say,
    on_look: Callable[[Report], None],
) -> Report:
    """Make what is pending with workers on this machine; returns the last report. Errors of `run_workers`.

    Raises PlanConflict and InputMissing, too, for photographs that are plainly not there, and MachineUnfit
    where there is not enough memory for one worker.
    """
    run = opened.run
    refuse_lost_sources(run, opened.plan, folders)
    shares = settle_workers(run, opened.plan, crew.wanted, crew.gpus, say=say)
    launcher = LocalLauncher(run, shares, folders=folders, say=say)
    found = run_workers(
        run, opened.plan, launcher, options, say=say, on_look=lambda found, _pids: on_look(found)
    )
    return opened.report() if found.pending else found

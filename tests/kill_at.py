"""A command that kills itself at a named step: `python -m tests.kill_at VERB RUN_DIR STEP NTH`.

STEP is `-` for a command that nothing disturbs. `$DEAD_SAMPLES` (`5,17`) are samples whose composition fails.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.steps import (
    BatchStep,
    ExportStep,
    LeaseStep,
    MergeStep,
    OnStep,
    PlanStep,
    RebuildStep,
    RequeueStep,
    Step,
    SuspectStep,
    SweepStep,
)
from shardgen.errors import ComposeFailed
from shardgen.recipes.composites.composer import ComposedSample, Composer
from shardgen.settings.run_directory import RunDirectory

VERB_OF: dict[type, str] = {
    BatchStep: "worker",
    LeaseStep: "worker",
    SuspectStep: "worker",
    PlanStep: "plan",
    MergeStep: "merge",
    ExportStep: "export",
    RequeueStep: "requeue",
    SweepStep: "sweep",
    RebuildStep: "rebuild",
}
REQUEUED_BATCHES = (1, 7)


def step_name(step: Step) -> str:
    """How a step is named on the command line."""
    return f"{type(step).__name__}.{step.name}"


def _plan(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.operations.plan import make_plan  # noqa: PLC0415 - only what the verb needs

    make_plan(run, {}, on_step=on_step)


def _extend(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.operations.extend import extend  # noqa: PLC0415

    extend(run, {}, on_step=on_step)


def _worker(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.worker.worker import WorkerLimits, WorkerOptions, work  # noqa: PLC0415

    # An odd number of batches ends inside a slice, which is then released.
    limits = WorkerLimits(max_batches=3 if sys.argv[3] == step_name(LeaseStep.RELEASED) else None)
    _make_samples_fail()
    work(run, WorkerOptions(limits=limits), on_step=on_step)


def _make_samples_fail() -> None:
    dead = {SampleIndex(int(sample)) for sample in os.environ.get("DEAD_SAMPLES", "").split(",") if sample}
    compose = Composer.compose

    def fail(self: Composer, sample: SampleIndex) -> ComposedSample:
        if sample in dead:
            raise ComposeFailed(f"sample {sample} was made to fail")
        return compose(self, sample)

    Composer.compose = fail  # type: ignore[method-assign]


def _merge(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.operations.merge import merge_run  # noqa: PLC0415

    merge_run(run, None, allow_dead_letters=False, on_step=on_step)


def _export(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.dataset.export.driver import ExportRequest  # noqa: PLC0415
    from shardgen.operations.export import export_run  # noqa: PLC0415

    request = ExportRequest(format=os.environ.get("EXPORT_FORMAT", "webdataset"), shard_size=10)
    export_run(run, run.path / "export", request, on_step=on_step)


def _requeue(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.artifacts.folder_store import FolderStore  # noqa: PLC0415
    from shardgen.coordination.database import undo_marked  # noqa: PLC0415

    plan = run.plan()
    with run.manifest(plan) as manifest:
        batches = [BatchIndex(batch) for batch in REQUEUED_BATCHES]
        undo_marked(plan, manifest, FolderStore(run.artifacts), batches, on_step=on_step)


def _sweep(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.operations.sweep import sweep  # noqa: PLC0415

    sweep(run, remove=True, on_step=on_step)


def _rebuild(run: RunDirectory, on_step: OnStep) -> None:
    from shardgen.operations.rebuild import rebuild  # noqa: PLC0415

    rebuild(run, on_step=on_step)


_VERBS: dict[str, Callable[[RunDirectory, OnStep], None]] = {
    "plan": _plan,
    "extend": _extend,
    "worker": _worker,
    "merge": _merge,
    "export": _export,
    "requeue": _requeue,
    "sweep": _sweep,
    "rebuild": _rebuild,
}


def main() -> None:
    """Run the verb, and die by SIGKILL when the step is passed for the nth time."""
    verb, run_dir, name, nth = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    passed = 0

    def on_step(step: Step) -> None:
        nonlocal passed
        if step_name(step) == name:
            passed += 1
            if passed == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    _VERBS[verb](RunDirectory.open(run_dir), on_step)
    sys.stdout.flush()
    os._exit(0)  # TensorFlow's threads may still be running


if __name__ == "__main__":
    main()

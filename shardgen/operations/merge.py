"""Merge a run directory's artifacts into the zip."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from shardgen.artifacts.check import OnProgress
from shardgen.coordination.artifact_folder import refuse_other_folder
from shardgen.coordination.open import open_run
from shardgen.dataset.merge import MergeInputs, MergeResult, merge
from shardgen.dataset.output import refuse_foreign_output
from shardgen.domain.plan import Plan
from shardgen.domain.selection import Selection
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ReceiptConflict, RunIncomplete
from shardgen.operations.merged import note_merged
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import DiskFiles, refuse_unusable_folder

ZIP_NAME = "dataset.zip"


def zip_name(*, partial: bool, excludes: bool) -> str:
    """Where a merge writes to among the run's results: what may leave samples out has another name."""
    return "dataset" + ".partial" * partial + ".excluded" * excludes + ".zip"


def merge_run(  # noqa: PLR0913 - what the command has options for, and who watches
    run: RunDirectory,
    output: Path | None,
    *,
    allow_dead_letters: bool,
    exclude: Collection[str] = (),
    partial: bool = False,
    on_progress: OnProgress = lambda _done, _planned: None,
    on_step: OnStep = ignore_step,
) -> MergeResult:
    """Merge a run directory into `output`, or the file that `zip_name` names in it.

    Without the samples made of the sources in `exclude` and, if it is `partial`, the pending ones. It is
    noted for `status`. Errors as `dataset.merge.merge`.

    Raises PlanConflict, too, when the run's workers write to another artifact folder, and ManifestCorrupt
    when samples are missing because the manifest contradicts itself: then no worker would make them.
    """
    path = output or run.results / zip_name(partial=partial, excludes=bool(exclude))
    with recorded_inputs(
        run, allow_dead_letters=allow_dead_letters, exclude=exclude, partial=partial
    ) as inputs:
        result = merge(inputs, path, on_progress=on_progress, on_step=on_step)
    note_merged(run, run.plan(), result)
    return result


@contextmanager
def recorded_inputs(
    run: RunDirectory, *, allow_dead_letters: bool, exclude: Collection[str], partial: bool
) -> Iterator[MergeInputs]:
    """What a run has recorded, to be merged or exported; errors of `merge_run`."""
    opened = open_run(run)
    recipe = run.recipe(opened.plan)
    recipe.load()
    with opened.own_records() as own:
        if own.manifest is not None and own.store is not None:
            refuse_other_folder(own.store, own.manifest.folder)
    with opened.records() as recorded:
        if partial and recorded.manifest is not None:  # a receipt that is lost looks like one to come
            recorded.manifest.operator.refuse_contradictions()
        try:
            yield MergeInputs(
                recipe=recipe,
                source=recorded.source,
                store=recorded.store,
                allow_dead_letters=allow_dead_letters,
                exclude=frozenset(exclude),
                partial=partial,
                card=run.settings.engine.card,
            )
        except (RunIncomplete, ReceiptConflict):
            if recorded.manifest is not None:
                recorded.manifest.operator.refuse_contradictions()
            raise


def refuse_output(run: RunDirectory, plan: Plan, output: Path | None) -> None:
    """Say before hours of work, not after them, that the zip could not be written there.

    Raises InputMissing for a folder that cannot be written, PlanConflict for a file that is not this plan's.
    """
    path = output or run.results / ZIP_NAME
    refuse_unusable_folder(path.parent, makes=0, otherwise="choose another folder with -o")
    refuse_foreign_output(path, Selection(planned=plan.samples), plan, files=DiskFiles())

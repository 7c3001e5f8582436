"""Merge a run directory's artifacts into the zip."""

from __future__ import annotations

from pathlib import Path

from shardgen.artifacts.check import OnProgress
from shardgen.coordination.artifact_folder import refuse_other_folder
from shardgen.coordination.open import open_run
from shardgen.dataset.merge import MergeInputs, MergeResult, merge
from shardgen.dataset.output import refuse_foreign_output
from shardgen.domain.plan import Plan
from shardgen.domain.steps import OnStep, ignore_step
from shardgen.errors import ReceiptConflict, RunIncomplete
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import DiskFiles, refuse_unusable_folder

ZIP_NAME = "dataset.zip"


def merge_run(
    run: RunDirectory,
    output: Path | None,
    *,
    allow_dead_letters: bool,
    on_progress: OnProgress = lambda _done, _planned: None,
    on_step: OnStep = ignore_step,
) -> MergeResult:
    """Merge a run directory into `output`, or `RUN_DIR/dataset.zip`. Errors as `dataset.merge.merge`.

    Raises PlanConflict, too, when the run's workers write to another artifact folder, and ManifestCorrupt
    when samples are missing because the manifest contradicts itself: then no worker would make them.
    """
    opened = open_run(run)
    recipe = recipe_of(opened.plan)
    recipe.load()
    with opened.own_records() as own:
        if own.manifest is not None and own.store is not None:
            refuse_other_folder(own.store, own.manifest.folder)
    with opened.records() as recorded:
        inputs = MergeInputs(
            recipe=recipe,
            source=recorded.source,
            store=recorded.store,
            allow_dead_letters=allow_dead_letters,
        )
        try:
            return merge(inputs, output or run.path / ZIP_NAME, on_progress=on_progress, on_step=on_step)
        except (RunIncomplete, ReceiptConflict):
            if recorded.manifest is not None:
                recorded.manifest.operator.refuse_contradictions()
            raise


def refuse_output(run: RunDirectory, plan: Plan, output: Path | None) -> None:
    """Say before hours of work, not after them, that the zip could not be written there.

    Raises InputMissing for a folder that cannot be written, PlanConflict for a file that is not this plan's.
    """
    path = output or run.path / ZIP_NAME
    refuse_unusable_folder(path.parent, makes=0, otherwise="choose another folder with -o")
    refuse_foreign_output(path, plan.fingerprint, files=DiskFiles())

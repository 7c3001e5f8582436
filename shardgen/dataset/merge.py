"""Merge: receipts and artifacts become one zip, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from shardgen.artifacts.check import OnProgress, ReceiptSource, stored_count, stored_samples
from shardgen.artifacts.store import ArtifactReader
from shardgen.dataset.bodies import BodyReader, Piece
from shardgen.dataset.card import dataset_card
from shardgen.dataset.labels import label_rows, labels_header
from shardgen.dataset.member_table import MemberTable
from shardgen.dataset.output import (
    CARD,
    CONTACT_SHEET,
    DEAD_LETTERS,
    LABELS,
    PLAN,
    STATS,
    refuse_foreign_output,
    refuse_full_disk,
)
from shardgen.dataset.statistics import Statistics, statistics, stats_json
from shardgen.dataset.zip_writer import FinalZip, Spool
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt, Sums, total_sums
from shardgen.domain.steps import MergeStep, OnStep, ignore_step
from shardgen.errors import ReceiptConflict, RunHasHoles, RunIncomplete
from shardgen.recipes.base import Recipe
from shardgen.storage.atomic import rename_durably, staged_beside
from shardgen.storage.files import DiskFiles, storage_error

CONTACT_SHEET_SAMPLES = 20
DEAD_LETTERS_HEADER = "sample,reason\n"
_LABEL_BYTES = 400  # a generous row; file names may be long
_MEMBER_BYTES = 100  # a directory entry with its name and zip64 extra
_TOTALS_PAGE = 1024
_LABELS_PAGE = 128  # batches whose rows are made at once, while the caches hold what makes them


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeInputs:
    """What a merge is made of. Without `contact_sheet` the zip has none."""

    recipe: Recipe
    source: ReceiptSource
    store: ArtifactReader
    contact_sheet: bool = True
    allow_dead_letters: bool = False
    files: DiskFiles = field(default_factory=DiskFiles)

    @property
    def plan(self) -> Plan:
        """The plan of the data set."""
        return self.recipe.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """A finished zip."""

    path: Path
    size_bytes: int
    samples_stored: int
    dead_letters: int
    statistics: Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The receipts of a run whose every sample is stored or dead."""

    stored: int
    dead: int
    artifact_bytes: int
    sums: Sums


def merge(
    inputs: MergeInputs,
    output: Path,
    *,
    on_progress: OnProgress = lambda _done, _planned: None,
    on_step: OnStep = ignore_step,
) -> MergeResult:
    """Write the final zip; under its name it is whole or not there.

    Raises RunIncomplete, RunHasHoles, PlanConflict (foreign zip), StorageFailed, ArtifactMissing or
    ArtifactCorrupt. The same plan and artifacts give the same bytes.
    """
    survey = survey_receipts(inputs.plan, inputs.source)
    if survey.dead == inputs.plan.samples:
        raise RunHasHoles(
            f"all {survey.dead:,} samples are dead letters, so there is nothing to merge",
            hint="shardgen dead-letters RUN_DIR says why; then shardgen requeue RUN_DIR --dead-letters",
        )
    if survey.dead and not inputs.allow_dead_letters:
        raise RunHasHoles(
            f"{survey.dead:,} of {inputs.plan.samples:,} samples are dead letters",
            hint="shardgen dead-letters RUN_DIR; then --allow-dead-letters to merge without them",
        )
    refuse_full_disk(output, _needed_bytes(inputs.plan, survey), files=inputs.files)
    refuse_foreign_output(output, inputs.plan.fingerprint, files=inputs.files)
    on_step(MergeStep.PLANNED)
    try:
        return _write(inputs, survey, output, on_progress=on_progress, on_step=on_step)
    except OSError as error:
        raise storage_error(error, output) from error


def survey_receipts(plan: Plan, source: ReceiptSource) -> Survey:
    """Add up the receipts; RunIncomplete when a batch has none, ReceiptConflict when they contradict."""
    stored = dead = artifact_bytes = missing = 0
    first_missing = None
    artifact = None
    expected = BatchIndex(0)
    page: list[Sums] = []
    for receipt in source.receipts():
        record = receipt.record
        if record.batch < expected or record.batch >= plan.layout.batch_count:
            raise ReceiptConflict(
                f"batch {record.batch}: its receipt is out of order",
                hint="shardgen verify RUN_DIR --requeue",
            )
        if record.batch > expected and first_missing is None:
            first_missing = expected
        missing += record.batch - expected
        expected = BatchIndex(record.batch + 1)
        stored += stored_count(plan, receipt)
        dead += len(record.dead_letters)
        if receipt.artifact.name != artifact:
            artifact = receipt.artifact.name
            artifact_bytes += receipt.artifact.size_bytes
        page.append(record.sums)
        if len(page) == _TOTALS_PAGE:
            page = [total_sums(plan.outputs, page)]
    batch_count = plan.layout.batch_count
    missing += batch_count - expected
    dead_on_record = sum(1 for _ in source.dead_letters())
    if missing:
        pending = plan.samples - stored - max(dead, dead_on_record)
        first = expected if first_missing is None else first_missing
        raise RunIncomplete(
            f"{pending:,} of {plan.samples:,} samples are pending "
            f"({missing:,} of {batch_count:,} batches, the first is {first})",
            hint="shardgen run RUN_DIR",
        )
    if plan.samples != stored + dead or dead != dead_on_record:
        raise ReceiptConflict(
            f"planned {plan.samples:,} samples, but receipts say {stored:,} stored and {dead:,} dead, "
            f"and {dead_on_record:,} dead letters are recorded",
            hint="shardgen verify RUN_DIR --requeue",
        )
    return Survey(
        stored=stored, dead=dead, artifact_bytes=artifact_bytes, sums=total_sums(plan.outputs, page)
    )


def _needed_bytes(plan: Plan, survey: Survey) -> int:
    """Bodies, and directory and labels twice: while they are spooled and when they are in the zip."""
    spooled = survey.stored * (len(plan.outputs) * _MEMBER_BYTES + _LABEL_BYTES)
    return survey.artifact_bytes + 2 * spooled + 2 * len(plan.canonical_json) + (1 << 20)


def _write(
    inputs: MergeInputs, survey: Survey, output: Path, *, on_progress: OnProgress, on_step: OnStep
) -> MergeResult:
    values = statistics(inputs.plan, survey.sums)
    files = inputs.files
    with ExitStack() as stack:
        descriptor, staged = stack.enter_context(staged_beside(output, files=files))
        directory = stack.enter_context(Spool(output.parent, checked=False))
        labels, dead_letters = (stack.enter_context(Spool(output.parent)) for _ in range(2))
        table = MemberTable(inputs.plan)
        archive = FinalZip(files, descriptor, table=table, directory=directory)
        bodies = _Bodies(inputs, archive, labels=labels, dead_letters=dead_letters, on_progress=on_progress)
        bodies.copy(table)
        if (bodies.stored, bodies.dead) != (survey.stored, survey.dead):
            raise ReceiptConflict(
                f"receipts changed during the merge: {bodies.stored:,} stored and {bodies.dead:,} dead, "
                f"before {survey.stored:,} and {survey.dead:,}",
                hint="merge again when nobody requeues",
            )
        on_step(MergeStep.BODIES_COPIED)
        archive.add_spooled(LABELS, labels)
        archive.add(STATS, stats_json(values))
        archive.add_spooled(DEAD_LETTERS, dead_letters)
        archive.add(PLAN, inputs.plan.canonical_json)
        sheet = inputs.recipe.contact_sheet(bodies.picked) if inputs.contact_sheet else None
        card = dataset_card(
            inputs.recipe,
            values,
            stored=survey.stored,
            dead_letters=survey.dead,
            has_sheet=sheet is not None,
        )
        archive.add(CARD, card)
        if sheet is not None:
            archive.add(CONTACT_SHEET, sheet)
        archive.finish()
        on_step(MergeStep.DIRECTORY_WRITTEN)
        files.fsync(descriptor)
        on_step(MergeStep.SYNCED)
        rename_durably(files, staged, output)
        on_step(MergeStep.RENAMED)
    return MergeResult(
        path=output,
        size_bytes=archive.size,
        samples_stored=survey.stored,
        dead_letters=survey.dead,
        statistics=values,
    )


class _Bodies:
    """The one pass over all artifacts: bodies into the zip, labels and dead letters aside."""

    def __init__(
        self,
        inputs: MergeInputs,
        archive: FinalZip,
        *,
        labels: Spool,
        dead_letters: Spool,
        on_progress: OnProgress,
    ) -> None:
        self._inputs = inputs
        self._archive = archive
        self._labels = labels
        self._dead_letters = dead_letters
        self._on_progress = on_progress
        self._wanted = sorted(inputs.recipe.to_look_at(CONTACT_SHEET_SAMPLES)) if inputs.contact_sheet else []
        self.picked: list[tuple[int, Mapping[str, bytes]]] = []
        self._facts: dict[SampleIndex, tuple[int, ...]] = {}
        self._names = [output.name for output in inputs.plan.outputs]
        self.stored = 0
        self.dead = 0

    def copy(self, table: MemberTable) -> None:
        """Copy everything, batches ascending."""
        plan, recipe = self._inputs.plan, self._inputs.recipe
        has_facts = bool(recipe.fact_columns)
        self._labels.write(labels_header(recipe).encode())
        self._dead_letters.write(DEAD_LETTERS_HEADER.encode())
        reader = BodyReader(self._inputs.store, table, self)
        page: list[Receipt] = []
        for _, group in groupby(self._inputs.source.receipts(), attrgetter("artifact.name")):
            receipts = list(group)
            samples = stored_samples(plan, receipts)
            records = [receipt.record for receipt in receipts]
            self._facts |= reader.add(receipts[0].artifact, records, samples, facts=has_facts)
            page += receipts
            if len(page) >= _LABELS_PAGE:
                self._label(page)
                page.clear()
        reader.flush()
        self._label(page)

    def _label(self, page: Sequence[Receipt]) -> None:
        texts = []
        for receipt in page:
            record = receipt.record
            letters = sorted(record.dead_letters, key=attrgetter("sample"))
            dead = {letter.sample for letter in letters}
            texts.append(label_rows(self._inputs.recipe, record.batch, without=dead, facts=self._facts))
            for letter in letters:
                self._dead_letters.write(f"{letter.sample},{letter.reason.value}\n".encode())
            self.dead += len(letters)
        self._labels.write("".join(texts).encode())
        self._facts.clear()

    def add_body(self, body: memoryview) -> None:
        """Pass an artifact's images on."""
        self._archive.add_body(body)

    def add_piece(self, piece: Piece) -> None:
        """Pass checked entries on, and keep the images of some samples to look at."""
        samples = piece.columns.samples
        while self._wanted and len(samples) and self._wanted[0] <= samples[-1]:
            row = int(np.searchsorted(samples, self._wanted.pop(0)))
            if not self.picked or self.picked[-1][0] != samples[row]:
                files = dict(zip(self._names, piece.files(row), strict=True))
                self.picked.append((int(samples[row]), files))
        self._archive.add_piece(piece)
        self.stored += len(samples)
        self._on_progress(self.stored, self._inputs.plan.samples)

"""Merge: receipts and artifacts become one zip, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np

from shardgen.artifacts.check import OnProgress, ReceiptSource, stored_count, stored_samples
from shardgen.artifacts.store import ArtifactReader
from shardgen.dataset.bodies import BodyReader, Piece
from shardgen.dataset.card import dataset_card
from shardgen.dataset.labels import generous_label_bytes, label_rows, labels_header
from shardgen.dataset.member_table import MemberTable
from shardgen.dataset.metadata import Metadata
from shardgen.dataset.output import (
    CARD,
    CONTACT_SHEET,
    DEAD_LETTERS,
    LABELS,
    METADATA,
    PLAN,
    SELECTION,
    STATS,
    refuse_foreign_output,
    refuse_full_disk,
)
from shardgen.dataset.read_ahead import ReadAhead
from shardgen.dataset.selecting import (
    KeptSums,
    LeftOut,
    excluded_by,
    kept_receipts,
    kept_to_look_at,
    which_in,
)
from shardgen.dataset.statistics import Statistics, statistics, stats_json
from shardgen.dataset.zip_writer import FinalZip, Spool
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Receipt
from shardgen.domain.selection import Ranges, Selection, batches_with
from shardgen.domain.steps import MergeStep, OnStep, ignore_step
from shardgen.errors import ReceiptConflict, RunHasHoles, RunIncomplete
from shardgen.recipes.base import Recipe
from shardgen.settings.settings import CardTable
from shardgen.storage.atomic import rename_durably, staged_beside
from shardgen.storage.files import DiskFiles, storage_error

CONTACT_SHEET_SAMPLES = 20
DEAD_LETTERS_HEADER = "sample,reason\n"
_MEMBER_BYTES = 100  # a directory entry with its name and zip64 extra
_LABELS_PAGE = 128  # batches whose rows are made at once, while the caches hold what makes them


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeInputs:
    """What a merge is made of. Without `contact_sheet` the zip has none.

    Samples that are made of a source in `exclude` are left out, and with `partial` those that are pending.
    `card` are the user's words for the data set's README.
    """

    recipe: Recipe
    source: ReceiptSource
    store: ArtifactReader
    contact_sheet: bool = True
    allow_dead_letters: bool = False
    exclude: frozenset[str] = frozenset()
    partial: bool = False
    card: CardTable = field(default_factory=CardTable)
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
    sha256: str
    samples_stored: int
    dead_letters: int
    selection: Selection
    statistics: Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The receipts of a run: `planned = stored + dead + excluded + pending`.

    It decides what is merged: receipts that come later change nothing.
    """

    stored: int
    dead: int
    artifact_bytes: int
    selection: Selection


def merge(
    inputs: MergeInputs,
    output: Path,
    *,
    on_progress: OnProgress = lambda _done, _planned: None,
    on_step: OnStep = ignore_step,
) -> MergeResult:
    """Write the final zip; under its name it is whole or not there.

    Raises RunIncomplete, RunHasHoles, InvalidSettings (no such source), PlanConflict (another data set is
    there), StorageFailed, ArtifactMissing or ArtifactCorrupt. The same plan, artifacts, selection and words
    for the card give the same bytes.
    """
    survey = survey_inputs(inputs)
    refuse_full_disk(output, _needed_bytes(inputs.recipe, survey), files=inputs.files)
    refuse_foreign_output(output, survey.selection, inputs.plan, files=inputs.files)
    on_step(MergeStep.PLANNED)
    try:
        return _write(inputs, survey, output, on_progress=on_progress, on_step=on_step)
    except OSError as error:
        raise storage_error(error, output) from error


def survey_inputs(inputs: MergeInputs) -> Survey:
    """What there is to merge or to export. Raises RunIncomplete, RunHasHoles or InvalidSettings."""
    excluded = excluded_by(inputs.recipe, inputs.exclude)
    survey = survey_receipts(inputs.plan, inputs.source, excluded=excluded, partial=inputs.partial)
    if not survey.stored:
        raise _nothing_there(survey)
    if survey.dead and not inputs.allow_dead_letters:
        raise RunHasHoles(
            f"{survey.dead:,} of {inputs.plan.samples:,} samples are dead letters",
            hint="shardgen dead-letters RUN_DIR; then --allow-dead-letters to leave them out",
        )
    return survey


def _nothing_there(survey: Survey) -> RunIncomplete | RunHasHoles:
    selection = survey.selection
    if survey.dead == selection.planned:
        return RunHasHoles(
            f"all {survey.dead:,} samples are dead letters, so there is nothing to merge",
            hint="shardgen dead-letters RUN_DIR says why; then shardgen requeue RUN_DIR --dead-letters",
        )
    left_out = f"{selection.in_words}, {survey.dead:,} dead letters"
    if selection.pending:
        return RunIncomplete(
            f"none of {selection.planned:,} samples is stored ({left_out})",
            hint="shardgen run RUN_DIR",
        )
    return RunHasHoles(
        f"none of {selection.planned:,} samples is left ({left_out})",
        hint="exclude fewer sources",
    )


def survey_receipts(
    plan: Plan, source: ReceiptSource, *, excluded: Ranges | None = None, partial: bool = False
) -> Survey:
    """Count what the receipts say; excluded samples count as nothing else.

    Raises RunIncomplete when a sample is pending and the data set is not to be partial, ReceiptConflict when
    receipts contradict each other or the plan.
    """
    layout, excluded = plan.layout, excluded or Ranges()
    stored = dead = artifact_bytes = 0
    artifact = None
    expected = BatchIndex(0)
    gaps: list[tuple[int, int]] = []
    for receipt in source.receipts():
        record = receipt.record
        if record.batch < expected or record.batch >= layout.batch_count:
            raise ReceiptConflict(
                f"batch {record.batch}: its receipt is out of order",
                hint="shardgen verify RUN_DIR --requeue",
            )
        samples = layout.batch_samples(record.batch)
        if record.batch > expected:
            gaps.append((layout.batch_samples(expected).start, samples.start))
        expected = BatchIndex(record.batch + 1)
        count, letters = stored_count(plan, receipt), len(record.dead_letters)
        if excluded and (parts := excluded.within(samples.start, samples.stop)):
            outside = sum(letter.sample in excluded for letter in record.dead_letters)
            count -= sum(stop - start for start, stop in parts) - outside
            letters -= outside
            if not count + letters:
                continue
        stored += count
        dead += letters
        if receipt.artifact.name != artifact:
            artifact = receipt.artifact.name
            artifact_bytes += receipt.artifact.size_bytes
    if expected < layout.batch_count:
        gaps.append((layout.batch_samples(expected).start, plan.samples))
    unmade = Ranges(gaps)
    # Letters of later receipts are not of this survey.
    on_record = sum(
        1 for one in source.dead_letters() if one.sample not in unmade and one.sample not in excluded
    )
    selection = Selection(planned=plan.samples, excluded=excluded, pending=unmade - excluded)
    if selection.pending and not partial:
        batches = list(batches_with(selection.pending, layout))
        raise RunIncomplete(
            f"{selection.pending.count:,} of {plan.samples:,} samples are pending "
            f"({len(batches):,} of {layout.batch_count:,} batches, the first is {batches[0]})",
            hint="shardgen run RUN_DIR; or add --partial, to merge what is stored so far",
        )
    if plan.samples != stored + dead + selection.left_out.count or dead != on_record:
        raise ReceiptConflict(
            f"planned {plan.samples:,} samples, but receipts say {stored:,} stored and {dead:,} dead, "
            f"and {on_record:,} dead letters are recorded",
            hint="shardgen verify RUN_DIR --requeue",
        )
    return Survey(stored=stored, dead=dead, artifact_bytes=artifact_bytes, selection=selection)


def _needed_bytes(recipe: Recipe, survey: Survey) -> int:
    """Bodies; directory, labels and metadata twice: while they are spooled and when they are in the zip."""
    plan = recipe.plan
    of_a_sample = len(plan.outputs) * 2 * _MEMBER_BYTES + 2 * generous_label_bytes(recipe)
    spooled = survey.stored * of_a_sample
    beside = sum(file.bytes for file in recipe.files)
    return survey.artifact_bytes + 2 * spooled + 2 * len(plan.canonical_json) + beside + (1 << 20)


def _write(
    inputs: MergeInputs, survey: Survey, output: Path, *, on_progress: OnProgress, on_step: OnStep
) -> MergeResult:
    selection = survey.selection
    files = inputs.files
    with ExitStack() as stack:
        descriptor, staged = stack.enter_context(staged_beside(output, files=files))
        directory = stack.enter_context(Spool(output.parent, checked=False))
        labels, metadata, dead_letters = (stack.enter_context(Spool(output.parent)) for _ in range(3))
        table = MemberTable(inputs.plan)
        archive = stack.enter_context(FinalZip(files, descriptor, table=table, directory=directory))
        aside = labels, metadata, dead_letters
        bodies = _Bodies(inputs, selection, archive, aside=aside, on_progress=on_progress)
        bodies.copy(table)
        if (bodies.stored, bodies.dead) != (survey.stored, survey.dead):
            raise ReceiptConflict(
                f"receipts changed during the merge: {bodies.stored:,} stored and {bodies.dead:,} dead, "
                f"before {survey.stored:,} and {survey.dead:,}",
                hint="merge again while nobody requeues",
            )
        on_step(MergeStep.BODIES_COPIED)
        values = statistics(inputs.plan, bodies.sums.total())
        archive.add_spooled(LABELS, labels)
        archive.add_spooled(METADATA, metadata)
        archive.add(STATS, stats_json(values))
        archive.add_spooled(DEAD_LETTERS, dead_letters)
        if selection.kinds:
            archive.add(SELECTION, selection.canonical_json)
        archive.add(PLAN, inputs.plan.canonical_json)
        for file in inputs.recipe.files:
            archive.add_lines(file.name, inputs.recipe.beside(file))
        sheet = inputs.recipe.contact_sheet(bodies.picked) if inputs.contact_sheet else None
        card = dataset_card(
            inputs.recipe,
            values,
            selection=selection,
            dead_letters=survey.dead,
            has_sheet=sheet is not None,
            own=inputs.card,
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
        sha256=archive.sha256,
        samples_stored=survey.stored,
        dead_letters=survey.dead,
        selection=selection,
        statistics=values,
    )


class _Bodies:
    """The one pass over all artifacts: bodies into the zip, labels, metadata and dead letters aside."""

    def __init__(
        self,
        inputs: MergeInputs,
        selection: Selection,
        archive: FinalZip,
        *,
        aside: tuple[Spool, Spool, Spool],
        on_progress: OnProgress,
    ) -> None:
        self._inputs = inputs
        self._left_out = selection.left_out
        self._kept = selection.planned - selection.left_out.count
        self._archive = archive
        self._labels, self._metadata, self._dead_letters = aside
        self._rows = Metadata(inputs.recipe)
        self._on_progress = on_progress
        sheet = inputs.contact_sheet
        self._wanted = kept_to_look_at(inputs.recipe, selection, CONTACT_SHEET_SAMPLES) if sheet else []
        self.picked: list[tuple[int, Mapping[str, bytes]]] = []
        self._facts: dict[SampleIndex, tuple[int, ...]] = {}
        self._names = [output.name for output in inputs.plan.outputs]
        self._store = ReadAhead(inputs.store)
        self.sums = KeptSums(inputs.recipe, self._store, self._left_out)
        self.stored = 0
        self.dead = 0

    def copy(self, table: MemberTable) -> None:
        """Copy everything that is kept, batches ascending."""
        plan, recipe = self._inputs.plan, self._inputs.recipe
        has_facts = bool(recipe.fact_columns)
        self._labels.write(labels_header(recipe).encode())
        self._metadata.write(self._rows.header)
        self._dead_letters.write(DEAD_LETTERS_HEADER.encode())
        page: list[Receipt] = []
        with self._store as store:
            reader = BodyReader(store, table, self)
            groups = kept_receipts(plan, self._inputs.source, self._left_out)
            for receipts in store.over(groups, lambda group: group[0].artifact):
                samples = stored_samples(plan, receipts)
                records = [receipt.record for receipt in receipts]
                kept = ~which_in(self._left_out, samples) if self._left_out else None
                if kept is None or kept.all():
                    kept = None
                self.sums.add(receipts, is_whole=kept is None)
                if kept is None or kept.any():
                    ref = receipts[0].artifact
                    self._facts |= reader.add(ref, records, samples, kept=kept, facts=has_facts)
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
            letters = [letter for letter in letters if letter.sample not in self._left_out]
            without: Container[int] = {letter.sample for letter in letters}
            if self._left_out:
                without = LeftOut(without, self._left_out)
            texts.append(label_rows(self._inputs.recipe, record.batch, without=without, facts=self._facts))
            for letter in letters:
                self._dead_letters.write(f"{letter.sample},{letter.reason.value}\n".encode())
            self.dead += len(letters)
        rows = "".join(texts).encode()
        self._labels.write(rows)
        self._metadata.write(self._rows.rows(rows))
        self._facts.clear()

    def add_piece(self, piece: Piece) -> None:
        """Pass it on, and keep the images of some samples to look at."""
        samples = piece.columns.samples
        while self._wanted and len(samples) and self._wanted[0] <= samples[-1]:
            row = int(np.searchsorted(samples, self._wanted.pop(0)))
            if not self.picked or self.picked[-1][0] != samples[row]:
                files = dict(zip(self._names, piece.files(row), strict=True))
                self.picked.append((int(samples[row]), files))
        self._archive.add_piece(piece)
        self.stored += len(samples)
        self._on_progress(self.stored, self._kept)

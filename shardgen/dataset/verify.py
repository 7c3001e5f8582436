"""Verify: read the bytes again and compare them with the record; change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from shardgen.artifacts.archive import read_artifact
from shardgen.artifacts.check import OnProgress, ReceiptSource, stored_count, stored_samples, wrong_members
from shardgen.artifacts.store import ArtifactReader
from shardgen.dataset.labels import label_rows
from shardgen.dataset.read_ahead import ReadAhead
from shardgen.dataset.zip_check import ZipCheck
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import (
    ArtifactReceipt,
    BatchRecord,
    DeadLetter,
    Receipt,
)
from shardgen.errors import CorruptionError, OperatorError
from shardgen.recipes.base import Recipe
from shardgen.recipes.registry import recipe_of
from shardgen.settings.plan_file import parse_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong: where, what, and which batch to put back (None in a zip and a manifest)."""

    subject: str
    fact: str
    batch: BatchIndex | None = None
    in_manifest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was read, and what was wrong with it.

    `pending` samples are planned and not made yet, so nothing of them was read; None for a zip, and of a
    damaged manifest, whose artifacts are not read at all. `remarks` say what was looked at in part only, and
    what a zip leaves out.
    """

    samples: int
    findings: tuple[Finding, ...]
    pending: int | None = None
    is_damaged: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def bad_batches(self) -> tuple[BatchIndex, ...]:
        """The batches to requeue, ascending, each once."""
        return tuple(sorted({found.batch for found in self.findings if found.batch is not None}))


def verify_zip(
    path: Path,
    *,
    decode: bool = False,
    on_progress: OnProgress = lambda _done, _planned: None,
) -> Verification:
    """Check a final zip against the plan inside it: structure, names, every CRC, labels and counts.

    With `decode` every file is decoded and `stats.json` computed again.
    """
    with ZipCheck(path, decode=decode, on_progress=on_progress) as check:
        try:
            plan_bytes = check.read_plan()
            if plan_bytes is not None:
                recipe = recipe_of(parse_plan(plan_bytes, where=f"{path}: plan.json"), beside=check.beside)
                if decode:
                    recipe.load()
                check.run(recipe)
        except (CorruptionError, OperatorError) as error:
            check.found(str(path), str(error))
        findings = tuple(Finding(subject=subject, fact=fact) for subject, fact in check.findings)
        remarks = (f"by its selection.json it leaves out {check.left_out} samples",) if check.left_out else ()
        return Verification(samples=check.samples, findings=findings, remarks=remarks)


def verify_run(
    plan: Plan,
    source: ReceiptSource,
    store: ArtifactReader,
    *,
    on_progress: OnProgress = lambda _done, _planned: None,
) -> Verification:
    """Read every artifact that a receipt names again, and compare it with the receipt to the byte.

    Facts, which no receipt in a manifest holds, must make labels. Receipts of batches that the plan does not
    have are passed over: no artifact is theirs.
    """
    recipe = recipe_of(plan)
    findings: list[Finding] = []
    samples, dead, previous = 0, 0, -1
    with ReadAhead(store) as ahead:
        for receipts in ahead.over(_by_artifact(plan, source), lambda group: group[0].artifact):
            for receipt in receipts:
                batch = receipt.record.batch
                if batch <= previous:
                    fact = "has a second receipt"
                    findings.append(Finding(subject=receipt.artifact.name, fact=fact, batch=batch))
                previous = batch
            findings += _check_artifact(recipe, ahead, receipts)
            stored = len(stored_samples(plan, receipts))
            samples += stored
            dead += sum(len(plan.layout.batch_samples(receipt.record.batch)) for receipt in receipts) - stored
            on_progress(samples, plan.samples)
    return Verification(samples=samples, findings=tuple(findings), pending=plan.samples - samples - dead)


def _by_artifact(plan: Plan, source: ReceiptSource) -> Iterator[list[Receipt]]:
    for _, group in groupby(source.receipts(), attrgetter("artifact.name")):
        receipts = [receipt for receipt in group if receipt.record.batch < plan.layout.batch_count]
        if receipts:
            yield receipts


def _check_artifact(recipe: Recipe, store: ArtifactReader, receipts: Sequence[Receipt]) -> Iterator[Finding]:
    plan, ref = recipe.plan, receipts[0].artifact
    for receipt in receipts:
        if receipt.artifact != ref:
            fact = "its receipts name different sizes or sha256"
            yield Finding(subject=ref.name, fact=fact, batch=receipt.record.batch)
    try:
        data = store.read(ref)
        entries, inside = read_artifact(data, name=ref.name)
    except CorruptionError as error:
        fact = str(error).removeprefix(f"{ref.name}: ")
        yield from (Finding(subject=ref.name, fact=fact, batch=receipt.record.batch) for receipt in receipts)
        return
    for receipt in receipts:
        wrong = _disagreement(recipe, receipt, inside) or wrong_members(plan, receipt.record, entries, data)
        if wrong:
            yield Finding(subject=ref.name, fact=wrong, batch=receipt.record.batch)


def _disagreement(recipe: Recipe, receipt: Receipt, inside: ArtifactReceipt) -> str | None:
    plan = recipe.plan
    fingerprint = plan.fingerprint_of(receipt.record.batch)
    if inside.fingerprint != fingerprint:
        return f"belongs to another plan ({inside.fingerprint[:12]}…, expected {fingerprint[:12]}…)"
    for attribute in ("shard", "slice", "fence", "worker"):
        recorded, found = getattr(receipt, attribute), getattr(inside, attribute)
        if recorded != found:
            return f"its receipt.json says {attribute} {found}, the manifest {recorded}"
    records = {record.batch: record for record in inside.batches}
    record = records.get(receipt.record.batch)
    if record is None:
        return f"does not hold batch {receipt.record.batch}"
    if _without_details(record) != _without_details(receipt.record):
        return f"batch {record.batch}: its receipt.json is not what the manifest says"
    try:
        stored_count(plan, replace(receipt, record=record))
        if recipe.fact_columns:
            without = {letter.sample for letter in record.dead_letters}
            label_rows(recipe, record.batch, without=without, facts=record.facts)
    except CorruptionError as error:
        return str(error)
    return None


def _without_details(record: BatchRecord) -> BatchRecord:
    letters = (DeadLetter(sample=letter.sample, reason=letter.reason) for letter in record.dead_letters)
    return replace(record, dead_letters=tuple(letters))

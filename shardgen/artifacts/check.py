"""The only judge of artifacts and receipts: whether they are whole, consistent and of this plan."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardgen.artifacts.archive import member_bytes, read_whole
from shardgen.artifacts.names import ArtifactName
from shardgen.artifacts.zip_records import Entry
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.receipt import (
    ArtifactReceipt,
    ArtifactRef,
    BatchRecord,
    DeadLetter,
    OutputSums,
    Receipt,
)
from shardgen.domain.sample import member_name
from shardgen.errors import ArtifactCorrupt, ReceiptConflict

OnProgress = Callable[[int, int], None]
"""Called with the samples done and the samples planned."""

LOST_DETAIL = "the text was lost with the manifest"


def examine(
    plan: Plan, name: ArtifactName, data: bytes, *, shown: str | None = None, detail: str = LOST_DETAIL
) -> list[Receipt]:
    """The receipts of a whole artifact of this plan, batches ascending; every byte is looked at.

    `shown` is the name that they give it (its path from another folder on), `detail` the text of their dead
    letters, which artifacts do not hold. Raises ArtifactCorrupt with the fact.
    """
    path = shown or str(name)
    entries, inside = read_whole(
        data, name=path, fingerprint=plan.fingerprint_of(BatchIndex(name.batches[0]))
    )
    fact = _contradiction(plan, name, inside)
    if fact is None:
        receipts = receipts_of(inside, _ref(path, data), detail=detail)
        for receipt in receipts:
            try:
                stored_count(plan, receipt)
            except ReceiptConflict as error:
                fact = str(error)
                break
            fact = wrong_members(plan, receipt.record, entries, data)
            if fact is not None:
                break
        else:
            return receipts
    raise ArtifactCorrupt(f"{path}: {fact}")


def receipts_of(inside: ArtifactReceipt, ref: ArtifactRef, *, detail: str) -> list[Receipt]:
    """What a manifest's rows say of the batches of an artifact."""
    return [
        Receipt(
            shard=inside.shard,
            slice=inside.slice,
            fence=inside.fence,
            worker=inside.worker,
            artifact=ref,
            record=replace(
                record,
                dead_letters=tuple(replace(letter, detail=detail) for letter in record.dead_letters),
            ),
        )
        for record in inside.batches
    ]


def receipt_of_artifact(plan: Plan, receipts: Sequence[Receipt]) -> ArtifactReceipt:
    """The way back: what the artifact of these receipts says of itself."""
    first = receipts[0]
    return ArtifactReceipt(
        fingerprint=plan.fingerprint_of(first.record.batch),
        shard=first.shard,
        slice=first.slice,
        fence=first.fence,
        worker=first.worker,
        batches=tuple(receipt.record for receipt in receipts),
    )


def _ref(path: str, data: bytes) -> ArtifactRef:
    return ArtifactRef(name=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _contradiction(plan: Plan, name: ArtifactName, inside: ArtifactReceipt) -> str | None:
    """What its `receipt.json` says that its name, or the plan, does not."""
    batches = [record.batch for record in inside.batches]
    said = (inside.shard, inside.fence, inside.worker[-8:], batches)
    if said != (name.shard, name.fence, name.worker, list(name.batches)):
        return "its receipt.json is another artifact's"
    if inside.slice != name.slice_in(plan.layout):
        return f"its receipt.json says slice {inside.slice}, the plan {name.slice_in(plan.layout)}"
    return None


class ReceiptSource(Protocol):
    """The manifest, as merge and verify see it; both may be asked for more than once."""

    def receipts(self) -> Iterator[Receipt]:
        """Every receipt, batches ascending; no transaction may stay open between two of them."""
        ...

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter, samples ascending."""
        ...


def stored_count(plan: Plan, receipt: Receipt) -> int:
    """How many samples of its batch are stored; ReceiptConflict when the receipt contradicts itself."""
    record = receipt.record
    samples = plan.layout.batch_samples(record.batch)
    count = len(samples) - len(record.dead_letters)
    dead = {letter.sample for letter in record.dead_letters if letter.sample in samples}
    is_consistent = (
        len(dead) == len(record.dead_letters)
        and record.members_stop - record.members_start == len(plan.outputs) * count
        and set(record.sums) == {output.name for output in plan.outputs}
        and all(_has_shape(record.sums[output.name], output, count) for output in plan.outputs)
        and all(sample in samples and sample not in dead for sample in record.facts)
        and receipt.shard == plan.layout.shard_of_batch(record.batch)
    )
    if not is_consistent:
        raise ReceiptConflict(
            f"batch {record.batch}: its receipt contradicts itself or the plan",
            hint="shardgen verify RUN_DIR --requeue",
        )
    return count


def _has_shape(sums: OutputSums, output: Output, count: int) -> bool:
    return sums.images == count and len(sums.sum) == len(sums.squares) == output.channels


def stored_samples(plan: Plan, receipts: Iterable[Receipt]) -> NDArray[np.int64]:
    """List the samples of these batches that have images, ascending: int64 (samples,)."""
    parts = []
    for receipt in receipts:
        samples = plan.layout.batch_samples(receipt.record.batch)
        batch = np.arange(samples.start, samples.stop, dtype=np.int64)
        if receipt.record.dead_letters:
            batch = np.setdiff1d(batch, [letter.sample for letter in receipt.record.dead_letters])
        parts.append(batch)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def wrong_members(plan: Plan, record: BatchRecord, entries: Sequence[Entry], data: bytes) -> str | None:
    """What is wrong with a batch's members: their names, CRCs or digest; None when nothing is."""
    mine = entries[record.members_start : record.members_stop]
    if tuple(entry.name for entry in mine) != tuple(_expected_names(plan, record)):
        return f"batch {record.batch}: its members are not those of the plan"
    view = memoryview(data)
    for entry in mine:
        if zlib.crc32(view[entry.data_offset : entry.stop]) != entry.crc:
            return f"{entry.name}: its CRC does not match"
    start, stop = member_bytes(entries, record)
    if hashlib.sha256(view[start:stop]).hexdigest() != record.members_sha256:
        return f"batch {record.batch}: its members_sha256 does not match"
    return None


def _expected_names(plan: Plan, record: BatchRecord) -> Iterator[str]:
    dead = {letter.sample for letter in record.dead_letters}
    for sample in plan.layout.batch_samples(record.batch):
        if sample in dead:
            continue
        for output in plan.outputs:
            yield member_name(output, SampleIndex(sample), digits=plan.name_digits)

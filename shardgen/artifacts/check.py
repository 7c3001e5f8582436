"""Examine an artifact that no receipt vouches for: the receipts that it deserves, if it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from shardgen.artifacts.archive import read_whole
from shardgen.artifacts.names import ArtifactName
from shardgen.dataset.merge import stored_count
from shardgen.dataset.verify import wrong_members
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactReceipt, ArtifactRef, Receipt
from shardgen.errors import ArtifactCorrupt, ReceiptConflict

LOST_DETAIL = "the text was lost with the manifest"


def examine(
    plan: Plan, name: ArtifactName, data: bytes, *, shown: str | None = None, detail: str = LOST_DETAIL
) -> list[Receipt]:
    """The receipts of a whole artifact of this plan, batches ascending; every byte is looked at.

    `shown` is the name that they give it (its path from another folder on), `detail` the text of their dead
    letters, which artifacts do not hold. Raises ArtifactCorrupt with the fact.
    """
    path = shown or str(name)
    entries, inside = read_whole(data, name=path, fingerprint=plan.fingerprint)
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


def receipt_of_artifact(fingerprint: str, receipts: Sequence[Receipt]) -> ArtifactReceipt:
    """The way back: what the artifact of these receipts says of itself."""
    first = receipts[0]
    return ArtifactReceipt(
        fingerprint=fingerprint,
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

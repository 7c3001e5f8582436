"""`receipt.json` inside an artifact: canonical bytes out, validated values in (docs/formats.md)."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shardgen.domain.identifiers import (
    MAX_NUMBER,
    BatchIndex,
    Fence,
    SampleIndex,
    ShardIndex,
    SliceIndex,
    WorkerId,
)
from shardgen.domain.receipt import (
    ArtifactReceipt,
    BatchRecord,
    DeadLetter,
    DeadLetterReason,
    Facts,
    OutputSums,
    Provenance,
)

Count = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Total = Annotated[int, Field(ge=0, lt=10**40)]  # a year of 16-bit squares has 25 digits
Fact = Annotated[int, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def receipt_json(receipt: ArtifactReceipt) -> bytes:
    """Write a receipt with sorted keys and no white space; dead letters without their detail."""
    content = {
        "fingerprint": receipt.fingerprint,
        "shard": receipt.shard,
        "slice": receipt.slice,
        "fence": receipt.fence,
        "worker": receipt.worker,
        "batches": [_record(record) for record in receipt.batches],
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_receipt_json(data: bytes) -> ArtifactReceipt:
    """Read a receipt; ValueError with one short fact when these bytes are not one of ours."""
    receipt = _read(data).value()
    if receipt_json(receipt) != data:
        raise ValueError("receipt.json is not in its canonical form")
    return receipt


def parse_facts(data: bytes) -> Facts:
    """Read the facts of all batches alone, at a sixth of the cost; ValueError as for the whole receipt.

    Only whether the form is canonical is not asked.
    """
    return {SampleIndex(row[0]): row[1:] for record in _read(data).batches for row in record.facts}


def _read(data: bytes) -> _Receipt:
    try:
        return _Receipt.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where or 'receipt.json'}: {first['msg']}") from error


def _record(record: BatchRecord) -> dict[str, Any]:
    return {
        "batch": record.batch,
        "members": [record.members_start, record.members_stop],
        "members_sha256": record.members_sha256,
        "sums": {name: asdict(sums) for name, sums in record.sums.items()},
        "dead_letters": [
            {"sample": letter.sample, "reason": letter.reason.value} for letter in record.dead_letters
        ],
        "provenance": record.provenance.facts,
        "facts": [[sample, *_whole_numbers(record.facts[sample])] for sample in sorted(record.facts)],
    }


def _whole_numbers(facts: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse, before anything is stored, what could not be read back."""
    if not facts or any(type(fact) is not int or abs(fact) > MAX_NUMBER for fact in facts):
        raise ValueError(f"facts {facts!r}: not one or more whole numbers of at most 15 digits")
    return facts


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Sums(_Strict):
    images: Count
    pixels: Count
    sum: tuple[Total, ...]
    squares: tuple[Total, ...]


class _DeadLetter(_Strict):
    sample: Count
    reason: DeadLetterReason


class _Record(_Strict):
    batch: Count
    members: tuple[Count, Count]
    members_sha256: Sha256
    sums: dict[str, _Sums]
    dead_letters: tuple[_DeadLetter, ...]
    provenance: dict[str, str | Fact]
    facts: tuple[Annotated[tuple[Fact, ...], Field(min_length=2)], ...]

    @model_validator(mode="after")
    def _sums_are_of_whole_pixels(self) -> _Record:
        for name, sums in self.sums.items():
            if len(sums.sum) != len(sums.squares):
                raise ValueError(f"sums of {name} have {len(sums.sum)} and {len(sums.squares)} channels")
        return self

    @model_validator(mode="after")
    def _facts_ascend(self) -> _Record:
        samples = [row[0] for row in self.facts]
        if any(before >= after for before, after in pairwise(samples)):
            raise ValueError("facts of a sample are there twice, or out of order")
        return self

    def value(self) -> BatchRecord:
        return BatchRecord(
            batch=BatchIndex(self.batch),
            members_start=self.members[0],
            members_stop=self.members[1],
            members_sha256=self.members_sha256,
            sums={name: OutputSums(**sums.model_dump()) for name, sums in self.sums.items()},
            dead_letters=tuple(
                DeadLetter(sample=SampleIndex(letter.sample), reason=letter.reason)
                for letter in self.dead_letters
            ),
            provenance=Provenance.of(self.provenance),
            facts={SampleIndex(row[0]): row[1:] for row in self.facts},
        )


class _Receipt(_Strict):
    fingerprint: Sha256
    shard: Count
    slice: Count
    fence: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    worker: str
    batches: tuple[_Record, ...]

    @model_validator(mode="after")
    def _member_ranges_tile(self) -> _Receipt:
        expected_batch, expected_member = None, 0
        for record in self.batches:
            start, stop = record.members
            if start != expected_member or stop < start:
                raise ValueError(f"batch {record.batch}: members {start}-{stop} do not follow")
            if expected_batch is not None and record.batch != expected_batch:
                raise ValueError(f"batch {record.batch} does not follow batch {expected_batch - 1}")
            expected_batch, expected_member = record.batch + 1, stop
        if not self.batches:
            raise ValueError("an artifact without a batch")
        return self

    def value(self) -> ArtifactReceipt:
        return ArtifactReceipt(
            fingerprint=self.fingerprint,
            shard=ShardIndex(self.shard),
            slice=SliceIndex(self.slice),
            fence=Fence(self.fence),
            worker=WorkerId(self.worker),
            batches=tuple(record.value() for record in self.batches),
        )

"""An artifact's bytes: built in memory, read back strictly (docs/formats.md: "Artifact")."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from shardgen.artifacts.receipt_json import parse_receipt_json, receipt_json
from shardgen.artifacts.zip_records import (
    END_RECORDS_MAX,
    FULL_32,
    BrokenZip,
    Directory,
    Entry,
    ZipLimits,
    central_entry,
    end_records,
    local_header,
    read_end,
    read_entries,
)
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Attempt
from shardgen.domain.receipt import ArtifactReceipt, BatchRecord, DeadLetter, Facts, Provenance, Sums
from shardgen.errors import ArtifactCorrupt

RECEIPT_NAME = "receipt.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContent:
    """A finished batch: members as (name, bytes) in their order, and what its receipt will say."""

    batch: BatchIndex
    members: Sequence[tuple[str, bytes]]
    sums: Sums
    dead_letters: tuple[DeadLetter, ...]
    provenance: Provenance
    facts: Facts = field(default_factory=dict)


def build_artifact(
    fingerprint: str, attempt: Attempt, batches: Sequence[BatchContent]
) -> tuple[bytes, ArtifactReceipt]:
    """Pack consecutive batches of an attempt at that plan.

    The receipt returned keeps the dead letters' details, the file does not.
    """
    if any(after.batch != before.batch + 1 for before, after in pairwise(batches)) or not batches:
        raise ValueError("an artifact holds one or more consecutive batches")
    archive = _Archive()
    records = []
    for content in batches:
        first, start = len(archive.entries), len(archive.data)
        for name, data in content.members:
            archive.add(name, data)
        records.append(
            BatchRecord(
                batch=content.batch,
                members_start=first,
                members_stop=len(archive.entries),
                members_sha256=hashlib.sha256(memoryview(archive.data)[start:]).hexdigest(),
                sums=content.sums,
                dead_letters=content.dead_letters,
                provenance=content.provenance,
                facts=content.facts,
            )
        )
    receipt = ArtifactReceipt(
        fingerprint=fingerprint,
        shard=attempt.shard,
        slice=attempt.slice,
        fence=attempt.fence,
        worker=attempt.worker,
        batches=tuple(records),
    )
    archive.add(RECEIPT_NAME, receipt_json(receipt))
    return archive.finish(), receipt


def read_artifact(data: bytes, *, name: str) -> tuple[tuple[Entry, ...], ArtifactReceipt]:
    """Read the members (without `receipt.json`) and the receipt; ArtifactCorrupt names file and fact.

    Everything is checked but the members' own bytes: see `read_whole`.
    """
    try:
        return _read(data)
    except ValueError as error:
        raise ArtifactCorrupt(f"{name}: {error}") from error


def read_whole(data: bytes, *, name: str, fingerprint: str) -> tuple[tuple[Entry, ...], ArtifactReceipt]:
    """Read an artifact that is whole: it reads, is of this plan, and every `members_sha256` agrees.

    Raises ArtifactCorrupt for any other, naming file and fact.
    """
    entries, receipt = read_artifact(data, name=name)
    if receipt.fingerprint != fingerprint:
        raise ArtifactCorrupt(
            f"{name}: belongs to another plan ({receipt.fingerprint[:12]}…, expected {fingerprint[:12]}…)"
        )
    view = memoryview(data)
    for record in receipt.batches:
        start, stop = member_bytes(entries, record)
        found = hashlib.sha256(view[start:stop]).hexdigest()
        if found != record.members_sha256:
            expected = record.members_sha256
            raise ArtifactCorrupt(
                f"{name}: batch {record.batch}: members_sha256 is {found[:12]}…, expected {expected[:12]}…"
            )
    return entries, receipt


def member_bytes(entries: Sequence[Entry], record: BatchRecord) -> tuple[int, int]:
    """Where a batch's members start and stop in their artifact; the same place twice if it has none."""
    if record.members_start == record.members_stop:
        return 0, 0
    return entries[record.members_start].offset, entries[record.members_stop - 1].stop


class _Archive:
    def __init__(self) -> None:
        self.data = bytearray()
        self.entries: list[Entry] = []

    def add(self, name: str, data: bytes) -> None:
        entry = Entry(name=name, crc=zlib.crc32(data), size=len(data), offset=len(self.data))
        if entry.stop >= FULL_32:
            raise ValueError("an artifact must stay below 4 GiB")
        self.data += local_header(entry)
        self.data += data
        self.entries.append(entry)

    def finish(self) -> bytes:
        offset = len(self.data)
        for entry in self.entries:
            self.data += central_entry(entry, ZipLimits())
        size = len(self.data) - offset
        directory = Directory(members=len(self.entries), offset=offset, size=size)
        self.data += end_records(directory, ZipLimits())
        return bytes(self.data)


def _read(data: bytes) -> tuple[tuple[Entry, ...], ArtifactReceipt]:
    directory = read_end(data[-END_RECORDS_MAX:], len(data))
    entries = tuple(read_entries(data[directory.offset : directory.offset + directory.size]))
    if len(entries) != directory.members:
        raise BrokenZip(f"holds {len(entries)} members, its end record says {directory.members}")
    position = 0
    for entry in entries:
        header = local_header(entry)
        if entry.offset != position or data[position : position + len(header)] != header:
            raise BrokenZip(f"{entry.name!r}: its local header is not at byte {position}")
        position = entry.stop
    if position != directory.offset:
        raise BrokenZip(f"its members end at byte {position}, its directory starts at {directory.offset}")
    if not entries or entries[-1].name != RECEIPT_NAME:
        raise BrokenZip(f"its last member is not {RECEIPT_NAME}")
    content = data[entries[-1].data_offset : entries[-1].stop]
    if zlib.crc32(content) != entries[-1].crc:
        raise BrokenZip(f"{RECEIPT_NAME}: its CRC does not match")
    receipt = parse_receipt_json(content)
    if receipt.batches[-1].members_stop != len(entries) - 1:
        raise BrokenZip(
            f"holds {len(entries) - 1} images, {RECEIPT_NAME} says {receipt.batches[-1].members_stop}"
        )
    return entries[:-1], receipt

"""Runs of any size for benchmarks: sources in name only, manifests filled in bulk, tiny artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, text, update

from benchmarks.status import simulated_receipt
from shardgen.artifacts.archive import BatchContent, build_artifact
from shardgen.artifacts.names import ArtifactName
from shardgen.domain.identifiers import BatchIndex, Fence, SampleIndex, ShardIndex, SliceIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.sample import member_name
from shardgen.manifest.backend import Access
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.tables import PROVENANCE, RECEIPT, SHARD, SLICE
from tests.plans import make_plan

SETTINGS = """\
[sources]
mask = "auto"
[compose]
flips = "none"
[manifest]
url = "${SHARDGEN_MANIFEST}"
"""
_WORKER = WorkerId("benchmark-1-00000000")
_ROWS = 20_000  # inserted at once
_IMAGE = b"an image, as far as a rebuild is concerned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many photographs a plan has; places are always 20."""

    backgrounds: int
    foregrounds: int

    @property
    def samples(self) -> int:
        """Without flips."""
        return self.backgrounds * self.foregrounds * 20

    @property
    def sources_and_shards(self) -> int:
        """What a plan and its manifest have rows of."""
        return self.backgrounds + self.foregrounds + self.plan().layout.shard_count

    def plan(self) -> Plan:
        """Its plan."""
        return make_plan(backgrounds=self.backgrounds, foregrounds=self.foregrounds)


def fill(database: DatabaseUrl, plan: Plan, slices: range) -> None:
    """Record every batch of these slices, counted through the whole plan, past all that the real API does.

    The rows are copies of one that the real API made, so some slice must have receipts already; nobody may
    have leased a later slice. The plan's last batch may be short and cannot be among them.
    """
    opened = database.backend.open(Access.WRITE)
    try:
        template = dict(
            opened.transact(lambda connection: connection.execute(select(RECEIPT)).mappings().first() or {})
        )
        for shard, part in _by_shard(plan, slices):
            slice_rows = [_slice_row(shard, slice_) for slice_ in part]
            receipt_rows = [
                _receipt_row(template, shard, slice_, batch)
                for slice_ in part
                for batch in plan.layout.slice_batch_range(shard, slice_)
            ]

            def add(
                connection: Connection,
                slice_rows: list[dict[str, Any]] = slice_rows,
                receipt_rows: list[dict[str, Any]] = receipt_rows,
                shard: ShardIndex = shard,
            ) -> None:
                connection.execute(insert(SLICE), slice_rows)
                for start in range(0, len(receipt_rows), _ROWS):
                    connection.execute(insert(RECEIPT), receipt_rows[start : start + _ROWS])
                samples = len(receipt_rows) * plan.shards.batch
                connection.execute(
                    update(SHARD)
                    .where(SHARD.c.shard == shard)
                    .values(
                        next_slice=SHARD.c.next_slice + len(slice_rows),
                        slices_done=SHARD.c.slices_done + len(slice_rows),
                        stored=SHARD.c.stored + samples,
                    )
                )
                connection.execute(
                    update(PROVENANCE).values(batches=PROVENANCE.c.batches + len(receipt_rows))
                )

            opened.transact(add)
    finally:
        opened.close()


def _by_shard(plan: Plan, slices: range) -> Iterator[tuple[ShardIndex, list[SliceIndex]]]:
    """The slices with these numbers through the whole plan, shard by shard."""
    first = 0
    for number in range(plan.layout.shard_count):
        shard = ShardIndex(number)
        count = plan.layout.slice_count(shard)
        part = range(max(slices.start, first), min(slices.stop, first + count))
        if part:
            yield shard, [SliceIndex(slice_ - first) for slice_ in part]
        first += count


def slice_count(plan: Plan) -> int:
    """Of all shards."""
    return sum(plan.layout.slice_count(ShardIndex(shard)) for shard in range(plan.layout.shard_count))


def _slice_row(shard: ShardIndex, slice_: SliceIndex) -> dict[str, Any]:
    return {"shard": shard, "slice": slice_, "state": "done", "fence": 1, "batches_left": 0, "deaths": 0}


def _receipt_row(template: dict[str, Any], shard: int, slice_: int, batch: int) -> dict[str, Any]:
    return template | {
        "batch": batch,
        "shard": shard,
        "slice": slice_,
        "artifact": f"shard-{shard:05d}/batch-{batch:08d}.f0001.00000000.00000000.zip",
        "artifact_sha256": f"{batch:064x}",
        "members_sha256": f"{batch:064x}",
    }


def manifest_bytes(database: DatabaseUrl) -> int:
    """What it takes on disk, indexes included."""
    backend = database.backend
    if database.url.startswith("sqlite"):
        return database.path.stat().st_size
    opened = backend.open(Access.READ)
    query = text(
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c"
        " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'"
    )
    try:
        return int(opened.transact(lambda connection: connection.execute(query).scalar_one(), reading=True))
    finally:
        opened.close()


def written_bytes(folder: Path, plan: Plan) -> int:
    """Of the artifacts that are there; 0 if some are missing."""
    sizes = [path.stat().st_size for path in folder.glob("shard-*/*.zip")]
    return sum(sizes) if len(sizes) == plan.layout.batch_count else 0


def write_artifacts(folder: Path, plan: Plan) -> int:
    """One whole artifact for each batch, without the cost of syncing it. Returns their bytes."""
    written = 0
    for number in range(plan.layout.batch_count):
        batch = BatchIndex(number)
        shard = plan.layout.shard_of_batch(batch)
        lease = Lease(
            shard=shard,
            slice=plan.layout.slice_of_batch(batch),
            worker=_WORKER,
            fence=Fence(1),
            expires_at=datetime.now(tz=UTC),
        )
        record = simulated_receipt(plan, lease, batch).record
        content = BatchContent(
            batch=batch,
            members=[
                (member_name(output, SampleIndex(sample), digits=plan.name_digits), _IMAGE)
                for sample in plan.layout.batch_samples(batch)
                for output in plan.outputs
            ],
            sums=record.sums,
            dead_letters=(),
            provenance=record.provenance,
        )
        data, _ = build_artifact(plan.fingerprint, lease, [content])
        name = ArtifactName(
            shard=shard,
            batches=range(batch, batch + 1),
            fence=lease.fence,
            worker=_WORKER[-8:],
            random=hashlib.sha256(batch.to_bytes(8)).hexdigest()[:8],
        )
        path = folder / str(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written += len(data)
    return written

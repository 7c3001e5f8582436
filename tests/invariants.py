"""What must hold at every look, and at the end."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

from sqlalchemy import Connection, select

from shardgen.domain.plan import Plan
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest
from shardgen.manifest.tables import DEAD_LETTER, RECEIPT, SHARD, SLICE

_STATES = ("open", "leased", "done", "blocked")


def counter_faults(url: DatabaseUrl, plan: Plan) -> list[str]:
    """Where the counters that `status` shows contradict the rows; read in one transaction."""
    with Manifest(url, plan, read_only=True) as manifest:
        return manifest._session.read(
            lambda connection: _shard_faults(connection, plan) + _slice_faults(connection, plan)
        )


def _shard_faults(connection: Connection, plan: Plan) -> list[str]:
    layout, faults = plan.layout, []
    stored, dead = Counter[int](), Counter[int]()
    shards_of = {}
    for batch, shard in connection.execute(select(RECEIPT.c.batch, RECEIPT.c.shard)):
        stored[shard] += len(layout.batch_samples(batch))
        shards_of[batch] = shard
    for sample, batch in connection.execute(select(DEAD_LETTER.c.sample, DEAD_LETTER.c.batch)):
        if batch not in shards_of:
            faults.append(f"dead letter {sample}: its batch {batch} has no receipt")
            continue
        stored[shards_of[batch]] -= 1
        dead[shards_of[batch]] += 1
    slices = Counter(
        (row.shard, row.state) for row in connection.execute(select(SLICE.c.shard, SLICE.c.state))
    )
    for row in connection.execute(select(SHARD)).mappings():
        shard = row["shard"]
        if (row["stored"], row["dead"]) != (stored[shard], dead[shard]):
            faults.append(
                f"shard {shard}: counters say {row['stored']} stored and {row['dead']} dead, "
                f"its rows {stored[shard]} and {dead[shard]}"
            )
        if row["stored"] + row["dead"] > len(layout.shard_samples(shard)):
            faults.append(f"shard {shard}: more is stored and dead than planned")
        faults += [
            f"shard {shard}: counts {row[f'slices_{state}']} {state} slices, has {slices[shard, state]}"
            for state in _STATES
            if row[f"slices_{state}"] != slices[shard, state]
        ]
    return faults


def _slice_faults(connection: Connection, plan: Plan) -> list[str]:
    recorded = Counter(
        (row.shard, row.slice) for row in connection.execute(select(RECEIPT.c.shard, RECEIPT.c.slice))
    )
    faults = []
    for row in connection.execute(select(SLICE)).mappings():
        slice_id = (row["shard"], row["slice"])
        left = len(plan.layout.slice_batch_range(*slice_id)) - recorded[slice_id]
        if row["batches_left"] != left:
            faults.append(f"slice {slice_id}: says {row['batches_left']} batches are left, {left} are")
        if (row["state"] == "done") != (left == 0):
            faults.append(f"slice {slice_id}: is {row['state']} with {left} batches left")
        if (row["state"] == "leased") != (row["worker"] is not None):
            faults.append(f"slice {slice_id}: is {row['state']}, its worker is {row['worker']}")
    return faults


def zip_faults(path: Path, plan: Plan, dead: set[int]) -> list[str]:
    """Samples that the zip holds twice or not at all, read by another zip reader than ours."""
    with zipfile.ZipFile(path) as archive:
        names = Counter(name for name in archive.namelist() if "/" in name)
    faults = [f"{name}: is there {count} times" for name, count in names.items() if count > 1]
    samples = Counter((Path(name).parts[0], int(Path(name).stem)) for name in names)
    for kind in ("fgbg", "mask", "depth"):
        lost = {s for s in range(plan.samples) if s not in dead} - {s for k, s in samples if k == kind}
        faults += [f"{kind} of sample {sample}: is lost" for sample in sorted(lost)]
    return faults

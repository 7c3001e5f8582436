"""Rules taken away on purpose, in the process that calls this: what must turn a test red."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from shardgen.domain.lease import Lease
from shardgen.manifest import leases, receipts, slices, suspicion
from shardgen.manifest.tables import SLICE


def take_the_fence_away() -> None:
    """From now on a write changes the row of its slice, whoever has leased it, under whatever fence."""
    for module in (slices, leases, receipts, suspicion):
        vars(module)["held"] = _unfenced


def _unfenced(lease: Lease) -> ColumnElement[bool]:
    return and_(SLICE.c.shard == lease.shard, SLICE.c.slice == lease.slice, SLICE.c.state == "leased")

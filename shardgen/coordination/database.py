"""Slices of a manifest that all workers share, in SQLite or PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Collection

from shardgen.coordination.base import Coordinator
from shardgen.domain.identifiers import BatchIndex, ShardIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.worker import WorkerReport
from shardgen.manifest.manifest import Manifest
from shardgen.manifest.slices import contradictory


class DatabaseLeases(Coordinator):
    """Slices of a manifest that all workers share."""

    def __init__(self, manifest: Manifest, worker: WorkerId, shard: ShardIndex | None) -> None:
        self._manifest = manifest
        self._worker = worker
        self._shard = shard
        self._begun: Lease | None = None

    def start(self) -> None:
        """Nothing to do: the manifest is open."""

    def lease(self, policy: LeasePolicy, *, gone: Collection[WorkerId]) -> Lease | NoLease:
        """From the manifest."""
        return self._manifest.leases.lease(self._worker, policy, shard=self._shard, gone=gone)

    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex] | None:
        """The whole slice at once."""
        del batch_seconds
        if self._begun == lease:
            return []
        batches = self._manifest.receipts.pending_batches(lease)
        if not batches:  # given back it would be leased again and again, and never be done
            where = f"shard {lease.shard} slice {lease.slice}"
            raise contradictory(where, "is not done, but all its batches have receipts")
        return batches

    def ended(self, *, is_complete: bool) -> None:
        """Nothing to do: the last receipt, or a release, ends a lease."""

    def reports(self, report: WorkerReport) -> None:
        """Nothing to do: the heartbeat writes it into the manifest."""

    def seconds_for_another(self, batch_seconds: float) -> float:
        """A batch's."""
        return batch_seconds

    def stop_claiming(self) -> None:
        """Nothing to do: nothing is claimed ahead."""

    def leave(self, *, stopping: threading.Event) -> None:
        """Nothing to do: every batch is published as it is recorded."""

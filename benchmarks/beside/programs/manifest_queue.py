"""shardgen's manifest, a slice for each piece: fill FOLDER COUNT | consume FOLDER NAME | recover FOLDER.

A consumer leases just as a worker does: what ended processes of this host held is free at once, everything
else when its lease has expired. Leases are not renewed here, so that a paused consumer's expires.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from benchmarks.beside.programs.consuming import Diary, Folder, arguments, consume
from benchmarks.status import simulated_receipt
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.lease import Lease, LeasePolicy
from shardgen.domain.plan import Plan
from shardgen.errors import LeaseLost
from shardgen.machine.processes import gone, host_id, new_identity
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from tests.plans import make_plan

LEASE_SECONDS = "lease-seconds"


class ManifestQueue:
    """One worker's manifest."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._plan = _plan(int((folder.path / "count").read_text(encoding="ascii")))
        seconds = float((folder.path / LEASE_SECONDS).read_text(encoding="ascii"))
        self._policy = LeasePolicy(
            duration=timedelta(seconds=seconds),
            heartbeat=timedelta(seconds=seconds),
            stall=timedelta(hours=1),
            max_attempts=6,
        )
        self._manifest = Manifest(_place(folder.path), self._plan)
        self._identity = new_identity(name)
        self._manifest.workers.register(self._identity)

    def take(self) -> tuple[tuple[Lease, BatchIndex], int] | None:
        """A slice and its only batch."""
        ended = gone(self._manifest.workers.alive_on_host(host_id()))
        lease = self._manifest.leases.lease(self._identity.id, self._policy, gone=ended)
        if not isinstance(lease, Lease):
            return None
        (batch,) = self._manifest.receipts.pending_batches(lease)
        return (lease, batch), batch

    def finish(self, handle: object) -> str:
        """Record the batch's receipt."""
        if not isinstance(handle, tuple):
            raise TypeError(f"{handle!r} was not taken here")
        lease, batch = handle
        try:
            self._manifest.receipts.record(lease, simulated_receipt(self._plan, lease, batch))
        except LeaseLost:
            return "refused"
        return "accepted"


def _plan(count: int) -> Plan:
    return make_plan(
        backgrounds=count, foregrounds=1, grid=(1, 1), shard_size=count, slice_batches=1, batch=1
    )


def _place(path: Path) -> DatabaseUrl:
    return DatabaseUrl(url="sqlite:///queue.sqlite", run_dir=path)


def main() -> None:
    """Do what is asked."""
    verb, folder, rest = arguments()
    match verb:
        case "fill":
            (folder.path / "count").write_text(rest, encoding="ascii")
            create_manifest(_place(folder.path), _plan(int(rest)))
        case "consume":
            consume(ManifestQueue(folder, rest), Diary(folder, rest))
        case _:
            print(0)  # nothing for an operator to do


if __name__ == "__main__":
    main()

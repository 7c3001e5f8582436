"""What a worker needs of whatever hands out its slices, in what portions: a database or a shared folder."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass

from shardgen.coordination.folder.files import FolderFiles
from shardgen.domain.identifiers import BatchIndex, ShardIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.worker import WorkerIdentity, WorkerReport

OnLook = Callable[[str], None]
"""Called whenever something slow got a step further, with what that is."""


def unheard(_what: str) -> None:
    """For callers whom nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOptions:
    """Who leases and what narrows it; through which eyes it sees a shared folder, if not the disk's.

    `on_look` is told what the worker's thread waits for, at every look.
    """

    identity: WorkerIdentity
    shard: ShardIndex | None = None
    files: FolderFiles | None = None
    on_look: OnLook = unheard


class Coordinator(ABC):
    """Whom a worker asks for slices."""

    @abstractmethod
    def start(self) -> None:
        """Get ready to lease."""

    @abstractmethod
    def lease(self, policy: LeasePolicy, *, gone: Collection[WorkerId]) -> Lease | NoLease:
        """Grant a slice; `gone` are workers of this host that have ended."""

    @abstractmethod
    def portion(self, lease: Lease, *, batch_seconds: float) -> list[BatchIndex] | None:
        """What to make next of a leased slice; [] when it is complete, None when it is left to another."""

    @abstractmethod
    def ended(self, *, is_complete: bool) -> None:
        """The leased slice is made, or given back."""

    @abstractmethod
    def reports(self, report: WorkerReport) -> None:
        """What the worker says of itself."""

    @abstractmethod
    def seconds_for_another(self, batch_seconds: float) -> float:
        """How much time a slice must at least be given, so that leasing it is of use."""

    @abstractmethod
    def stop_claiming(self) -> None:
        """The worker will lease no more."""

    @abstractmethod
    def leave(self, *, stopping: threading.Event) -> None:
        """The worker ends; what it made becomes visible to all. Raises StorageFailed when it cannot."""

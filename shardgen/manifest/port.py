"""The port: what workers and commands need from a manifest, whether a database or a bucket keeps it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Protocol, Self

from shardgen.domain.identifiers import BatchIndex, SampleIndex, ShardIndex, WorkerId
from shardgen.domain.lease import Lease, LeasePolicy, NoLease
from shardgen.domain.overview import Details, Overview
from shardgen.domain.receipt import DeadLetter, Receipt
from shardgen.domain.suspicion import Suspicion
from shardgen.domain.worker import WorkerIdentity, WorkerReport
from shardgen.manifest.backend import Damage
from shardgen.manifest.consistency import Audit
from shardgen.manifest.leases import Holder, MayStillCount
from shardgen.manifest.operator import Marks


class Leases(Protocol):
    """Who holds which slice."""

    def lease(
        self,
        worker: WorkerId,
        policy: LeasePolicy,
        *,
        shard: ShardIndex | None = None,
        gone: Collection[WorkerId] = (),
    ) -> Lease | NoLease:
        """Grant one slice under a new fence; `gone` workers' slices are free. `shard` narrows to one."""
        ...

    def renew(self, lease: Lease, policy: LeasePolicy) -> None:
        """Keep a lease for another `policy.duration`. Raises LeaseLost."""
        ...

    def release(self, lease: Lease) -> bool:
        """Give a slice back unfinished; no death. Returns False when it was not held any more."""
        ...

    def fail(self, lease: Lease, failure: str, policy: LeasePolicy) -> bool:
        """Give a slice back that failed for no sample's fault; returns whether it is blocked. LeaseLost."""
        ...

    def block(self, lease: Lease, reason: str) -> None:
        """Give a slice back that an operator must look at first. Raises LeaseLost."""
        ...

    def free_slices_of(
        self, gone: Collection[WorkerId], policy: LeasePolicy, *, innocent: Collection[WorkerId] = ()
    ) -> int:
        """Free what ended processes held, at once; no death of those that are `innocent`. How many slices."""
        ...

    def may_still_count(self) -> MayStillCount:
        """Which attempts could still be recorded, and count."""
        ...

    def holders(self) -> list[Holder]:
        """Who holds which slice under which fence; those whose lease has expired may still write."""
        ...


class Receipts(Protocol):
    """What is done. A ReceiptSource."""

    def pending_batches(self, lease: Lease) -> list[BatchIndex]:
        """The slice's batches without a receipt, in order. Raises LeaseLost."""
        ...

    def record(self, lease: Lease, receipt: Receipt) -> bool:
        """Record a finished batch; returns whether it was the slice's last. Raises LeaseLost."""
        ...

    def receipts(self) -> Iterator[Receipt]:
        """All receipts that count, in batch order."""
        ...

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters in sample order, with their details."""
        ...

    def artifacts(self) -> Iterator[tuple[BatchIndex, str]]:
        """Every recorded batch with its artifact's name, in order."""
        ...

    def batches_with_dead_letters(self) -> list[BatchIndex]:
        """The batches that a `requeue --dead-letters` undoes, in order."""
        ...

    def are_there(self) -> bool:
        """Whether anything is done."""
        ...

    def recorded_among(self, batches: Sequence[BatchIndex]) -> list[BatchIndex]:
        """Those of the batches that have a receipt, in order."""
        ...


class Suspicions(Protocol):
    """What suspect mode notes and judges."""

    def read(self, lease: Lease) -> Suspicion:
        """What earlier attempts at the leased slice left. Raises LeaseLost."""
        ...

    def note_batch(self, lease: Lease, batch: BatchIndex) -> None:
        """From now on a death falls on this batch. Raises LeaseLost."""
        ...

    def note_sample(self, lease: Lease, sample: SampleIndex) -> None:
        """From now on a death falls on this sample alone. Raises LeaseLost."""
        ...

    def note_pass(self, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
        """The noted sample survived; returns the samples that are given up by that. Raises LeaseLost."""
        ...


class Workers(Protocol):
    """Who is there, and how it says it does."""

    def register(self, identity: WorkerIdentity) -> None:
        """Add a worker that starts; twice is harmless."""
        ...

    def beat(self, worker: WorkerId, report: WorkerReport) -> None:
        """Write down what a worker says of itself; the first word of its end stands."""
        ...

    def set_device(self, worker: WorkerId, device: str) -> None:
        """Say which device a worker found."""
        ...

    def alive_on_host(self, host: str) -> list[WorkerIdentity]:
        """The workers of one host that have not said that they ended, or hold a slice all the same."""
        ...

    def known(self) -> set[WorkerId]:
        """Those that hold a slice, have a receipt, or have shown life."""
        ...


class MicroBatches(Protocol):
    """How many images the network takes at once on each model of device."""

    def agreed(self, device_model: str, proposed: int) -> int:
        """The micro-batch of this device model: the first worker's proposal, kept for all later ones."""
        ...

    def settled(self, device_model: str) -> int | None:
        """The micro-batch that was agreed on for this device model; None: none was."""
        ...

    def shrunk(self, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out on this device model; None: it never did."""
        ...

    def shrink(self, device_model: str, micro_batch: int) -> None:
        """Remember that this device model has no memory for more."""
        ...


class ArtifactFolder(Protocol):
    """The place that all workers of the run write to."""

    def identity(self) -> str | None:
        """Its identity; None while no worker has started."""
        ...

    def claim(self, identity: str) -> str:
        """Make a place the run's if it has none yet; returns the identity of the one that it has."""
        ...

    def replace(self, identity: str) -> None:
        """Make a place the run's, whichever it had."""
        ...


class Operator(Protocol):
    """Whether a manifest can be believed, and what an operator undoes in it."""

    @property
    def shown(self) -> str:
        """For messages."""
        ...

    def damage(self, *, seconds: float) -> Damage:
        """What is found wrong with its bytes, in so many seconds at most."""
        ...

    def audit(self, *, seconds: float | None = None) -> Audit:
        """Compare its records with each other and the plan; ends early when the time is over."""
        ...

    def refuse_contradictions(self, *, seconds: float | None = None) -> None:
        """Raise ManifestCorrupt when its records contradict each other or the plan."""
        ...

    def mend(self) -> int:
        """Make counters and slices what the receipts say. Returns how many were wrong."""
        ...

    def undo_receipts(self, batches: Sequence[BatchIndex], *, mark: Callable[[Marks], None]) -> int:
        """Undo these receipts; their batches are pending again. Returns how many there were.

        `mark` makes durable, by the fence up to which attempts do not count, which batches are undone. Raises
        ManifestBusy while a worker holds one of their slices.
        """
        ...

    def unblock(self) -> int:
        """Open every blocked slice again, its deaths forgotten. Returns how many."""
        ...


class Manifest(Protocol):
    """One run's manifest, opened: each part is what one kind of caller needs of it.

    Thread-safe; never carried over a fork. Close it, or use it in a `with`.
    """

    @property
    def leases(self) -> Leases:
        """Who holds which slice."""
        ...

    @property
    def receipts(self) -> Receipts:
        """What is done."""
        ...

    @property
    def suspicion(self) -> Suspicions:
        """What suspect mode notes."""
        ...

    @property
    def workers(self) -> Workers:
        """Who is there."""
        ...

    @property
    def micro_batches(self) -> MicroBatches:
        """What devices take at once."""
        ...

    @property
    def folder(self) -> ArtifactFolder:
        """Where artifacts lie."""
        ...

    @property
    def operator(self) -> Operator:
        """What an operator undoes."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None:
        """Close connections and files."""
        ...

    @property
    def shown(self) -> str:
        """For messages: never a user or a password."""
        ...

    def now(self) -> datetime:
        """Its clock."""
        ...

    def overview(self) -> Overview:
        """The state of the run, in O(shards + workers)."""
        ...

    def details(self, *, newest: int) -> Details:
        """What else a person wants to see, with so many newest receipts; in O(slices + batches)."""
        ...

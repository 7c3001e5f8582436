"""Attempts at batches as workers leave them: real artifacts of any fence, worker and content."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shardgen.artifacts.archive import build_artifact, read_whole
from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.names import ArtifactName
from shardgen.domain import lease
from shardgen.domain.identifiers import BatchIndex, Fence, SliceIndex, WorkerId
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactRef, Provenance, Receipt
from shardgen.errors import ArtifactCorrupt
from shardgen.storage.files import make_folders
from tests.dataset.made_runs import PROVENANCE, batch_content

WORKERS = {letter: WorkerId(f"host-{letter}-{letter * 8}") for letter in "abcdef"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Who made which batches under which fence; `claims` is the plan that its receipt names."""

    batches: range
    fence: int = 1
    worker: WorkerId = WORKERS["a"]
    random: str = "00000000"
    dead: tuple[int, ...] = ()
    claims: Plan | None = None
    slice: int | None = None
    provenance: tuple[str, int] = ("cpu of a test", 4)

    def name(self, plan: Plan) -> ArtifactName:
        return ArtifactName(
            shard=plan.layout.shard_of_batch(BatchIndex(self.batches[0])),
            batches=self.batches,
            fence=Fence(self.fence),
            worker=self.worker[-8:],
            random=self.random,
        )

    def content(self, plan: Plan) -> tuple[bytes, tuple[Receipt, ...]]:
        """The artifact's bytes and the receipts that a manifest would have of it."""
        claimed, first = self.claims or plan, BatchIndex(self.batches[0])
        slice_ = plan.layout.slice_of_batch(first) if self.slice is None else SliceIndex(self.slice)
        whose = lease.Attempt(
            shard=plan.layout.shard_of_batch(first),
            slice=slice_,
            fence=Fence(self.fence),
            worker=self.worker,
        )
        device_model, micro_batch = self.provenance
        provenance = Provenance.of(
            PROVENANCE.facts | {"device_model": device_model, "micro_batch": micro_batch}
        )
        contents = [
            replace(batch_content(claimed, batch, dead=self.dead), provenance=provenance)
            for batch in self.batches
        ]
        data, inside = build_artifact(claimed.fingerprint_of(first), whose, contents)
        receipts = tuple(
            Receipt(
                shard=inside.shard,
                slice=inside.slice,
                fence=inside.fence,
                worker=inside.worker,
                artifact=ArtifactRef(name=str(self.name(plan)), size_bytes=len(data), sha256="0" * 64),
                record=record,
            )
            for record in inside.batches
        )
        return data, receipts

    def publish(self, plan: Plan, folder: Path) -> list[Receipt]:
        data, receipts = self.content(plan)
        make_folders(folder)
        ref = FolderStore(folder).publish(self.name(plan), data)
        return [replace(receipt, artifact=ref) for receipt in receipts]


def single(batch: int, fence: int = 1, worker: str = "a", **more: object) -> Attempt:
    """An attempt at one batch."""
    options = {"batches": range(batch, batch + 1), "fence": fence, "worker": WORKERS[worker], **more}
    return Attempt(**options)  # type: ignore[arg-type]


def why_not_whole(data: bytes, *, name: str, fingerprint: str) -> str | None:
    """None when the artifact is whole, else what `read_whole` says of it."""
    try:
        read_whole(data, name=name, fingerprint=fingerprint)
    except ArtifactCorrupt as error:
        return str(error)
    return None

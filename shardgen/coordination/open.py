"""Open what a run works with: a database or a shared folder, whichever its settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shardgen.artifacts.check import ReceiptSource
from shardgen.artifacts.store import ArtifactReader, ArtifactStore
from shardgen.coordination.artifact_folder import refuse_other_folder
from shardgen.coordination.base import Coordinator, LeaseOptions
from shardgen.coordination.database import DatabaseLeases
from shardgen.coordination.folder.leases import folder_leases, opened_view
from shardgen.coordination.folder.records import SegmentReader, publish_waiting
from shardgen.domain.plan import Plan
from shardgen.domain.wording import Say
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.settings.run_directory import RunDirectory


def ensure_manifest(run: RunDirectory, plan: Plan) -> bool:
    """Create or upgrade the manifest of a written plan. Returns whether it was new.

    Raises PlanConflict when it is gone although artifacts exist.
    """
    artifacts_exist = any(True for _ in ArtifactStore(run.artifacts).names())
    return create_manifest(run.database, plan, artifacts_exist=artifacts_exist)


@contextmanager
def leases_for(
    run: RunDirectory, plan: Plan, manifest: Manifest, options: LeaseOptions, *, say: Say
) -> Iterator[Coordinator]:
    """Where this run's workers get their slices."""
    if not run.is_shared_folder:
        yield DatabaseLeases(manifest, options.identity.id, options.shard)
        return
    with folder_leases(run, plan, manifest, options, say=say) as leases:
        yield leases


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Receipts in batch order, and who reads the artifacts that they name.

    `refuse_contradictions` raises ManifestCorrupt when what is recorded contradicts itself or the plan.
    """

    source: ReceiptSource
    store: ArtifactReader
    refuse_contradictions: Callable[[], None] = lambda: None


@contextmanager
def opened_records(run: RunDirectory, plan: Plan, *, refuse_other: bool = False) -> Iterator[Recorded]:
    """Open what the run has recorded, for reading; batches that wait on this machine are published first.

    `refuse_other` raises PlanConflict when the run's workers write to another artifact folder.
    """
    if not run.is_shared_folder:
        store = ArtifactStore(run.artifacts)
        with run.manifest(plan, read_only=True) as manifest:
            if refuse_other:
                refuse_other_folder(store, manifest.folder)
            yield Recorded(
                source=manifest.receipts,
                store=store,
                refuse_contradictions=manifest.operator.refuse_contradictions,
            )
        return
    publish_waiting(run, plan)
    with opened_view(run, plan) as view:
        yield Recorded(source=view, store=SegmentReader(view.files))

"""Recognise the run's artifact folder: all workers must write to the same one, and merge must read it."""

from __future__ import annotations

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.store import ArtifactStore, place_away
from shardgen.errors import PlanConflict
from shardgen.manifest.port import ArtifactFolder
from shardgen.manifest.urls import is_bucket
from shardgen.settings.run_directory import RunDirectory

_BESIDE_A_MANIFEST = "artifacts/"  # under the prefix of a run whose manifest is in a bucket, too


def open_store(run: RunDirectory) -> ArtifactStore:
    """Where a run's artifacts are: a prefix of a bucket, or a folder. Nothing is asked of it yet.

    Raises InvalidSettings for a url that is neither, InputMissing without the extra that a bucket needs.
    """
    url = run.settings.engine.artifacts.url
    if is_bucket(run.url):
        return _bucket(run.url, _BESIDE_A_MANIFEST)
    if is_bucket(url) and not run.is_shared_folder:
        return _bucket(url, "")
    return FolderStore(run.artifacts)


def _bucket(url: str, folder: str) -> ArtifactStore:
    from shardgen.coordination.bucket.artifacts import BucketStore  # noqa: PLC0415 - an extra
    from shardgen.coordination.bucket.run import objects_of  # noqa: PLC0415

    url = url.rstrip("/")
    return BucketStore(objects_of(url), folder, at_the_door=objects_of(url, is_patient=False))


def claim_folder(store: ArtifactStore, folder: ArtifactFolder) -> None:
    """For a worker, before it does anything: the folder of the run's first worker is the run's.

    The store writes to no other from then on. Raises PlanConflict when this is another: what is written there
    no other machine would find; StorageFailed when it is not there now; InputMissing when no worker has ever
    written and none could.
    """
    known = folder.identity()
    if known is None:
        store.refuse_unusable()
        known = folder.claim(store.make_identity())
    if store.hold_to(known):
        return
    raise _other(store) if store.is_there() else place_away(store.shown)


def refuse_unusable_artifacts(run: RunDirectory) -> None:
    """Before anything is planned, where artifacts are elsewhere than the record.

    Raises InputMissing, InvalidSettings for a place that this version does not know, or ManifestMismatch for
    a bucket whose store cannot be trusted.
    """
    # On a shared folder artifacts wait beside an index that is not there yet.
    if not run.is_shared_folder and not is_bucket(run.url):
        open_store(run).refuse_unusable()


def refuse_unusable_at_first(store: ArtifactStore, folder: ArtifactFolder) -> None:
    """Raise InputMissing for a folder that no worker has ever written to and none could.

    Once one has, it may come back (a disk that is not mounted), and is no setting to correct.
    """
    if folder.identity() is None:
        store.refuse_unusable()


def refuse_other_folder(store: ArtifactStore, folder: ArtifactFolder) -> None:
    """For whoever reads or marks artifacts. Raises PlanConflict when the run's workers write elsewhere."""
    if not is_recognised(store, folder):
        raise _other(store)


def is_recognised(store: ArtifactStore, folder: ArtifactFolder) -> bool:
    """Whether this is the run's folder; also while no worker has started."""
    known = folder.identity()
    return known is None or store.identity() == known


def adopt_folder(store: ArtifactStore, folder: ArtifactFolder) -> None:
    """Make this folder the run's: after everything that it lacks was put back."""
    identity = store.make_identity()
    if folder.identity() != identity:
        folder.replace(identity)


def _other(store: ArtifactStore) -> PlanConflict:
    return PlanConflict(
        f"{store.shown}: is not the folder that this run's workers write their artifacts to",
        hint=f"{store.other_place}; if that one is lost: shardgen verify RUN_DIR --requeue",
    )

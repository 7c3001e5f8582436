"""Recognise the run's artifact folder: all its workers must write to the same one, and a merge read it."""

from __future__ import annotations

from shardgen.artifacts.store import ArtifactStore, folder_away
from shardgen.errors import PlanConflict
from shardgen.manifest.manifest import ArtifactFolder
from shardgen.storage.files import is_folder


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
    if store.identity() == known:
        store.hold_to(known)
        return
    if not is_folder(store.root):
        raise folder_away(store.root)
    raise _other(store)


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
        f"{store.root}: is not the folder that this run's workers write their artifacts to",
        hint="set [artifacts] url to a folder that every machine reaches, the same for all (is it mounted?); "
        "if that folder is lost: shardgen verify RUN_DIR --requeue",
    )

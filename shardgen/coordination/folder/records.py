"""What a shared folder has recorded: its segments, and what still waits on this machine to become one."""

from __future__ import annotations

import hashlib
import logging
import secrets

from shardgen.coordination.base import OnLook
from shardgen.coordination.folder.files import FolderFiles
from shardgen.coordination.folder.leases import ANOTHER_PUBLISHES, LOCK_LIMIT_SECONDS, desk_for, opened_view
from shardgen.coordination.folder.notices import original_name
from shardgen.coordination.folder.segments import Publisher
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import ArtifactRef
from shardgen.errors import ArtifactCorrupt, ArtifactMissing
from shardgen.settings.run_directory import RunDirectory
from shardgen.storage.files import storage_error, storing

_LOG = logging.getLogger(__name__)


class SegmentReader:
    """Reads the segments of a shared folder; a name is their path from there. An ArtifactReader."""

    reads_at_once = 1  # its mount reads ahead by itself, and a segment is large

    def __init__(self, files: FolderFiles) -> None:
        self._folder = files

    def fill(self, ref: ArtifactRef, buffer: memoryview) -> None:
        """Fill a buffer of `ref.size_bytes` with the segment's bytes, whose sha256 must be the index's."""
        buffer[:] = self.read(ref)

    def read(self, ref: ArtifactRef) -> bytes:
        """Return the segment's bytes, whose sha256 must be the index's."""
        again = "nothing is lost: run the command again once the folder shows all of it"
        try:
            data = self._read_any(ref.name)
        except FileNotFoundError as error:
            raise ArtifactMissing(
                f"{ref.name}: was seen before and is not visible now", hint=again
            ) from error
        except OSError as error:
            raise storage_error(error, ref.name) from error
        if len(data) != ref.size_bytes or hashlib.sha256(data).hexdigest() != ref.sha256:
            raise ArtifactCorrupt(
                f"{ref.name}: not the bytes that were whole before ({len(data)} of {ref.size_bytes} bytes)",
                hint=f"{again}; or shardgen verify RUN_DIR --requeue",
            )
        return data

    def _read_any(self, path: str) -> bytes:
        """Read it under its name, or under another that Drive's mount has given to it since."""
        try:
            return self._folder.read(path)
        except FileNotFoundError:
            folder, _, name = path.rpartition("/")
            for other in self._folder.names(folder):
                if other != name and original_name(other) == original_name(name):
                    return self._folder.read(f"{folder}/{other}")
            raise


def _saying_once() -> OnLook:
    """Say once that another process is waited for: that may take half an hour."""
    waits: list[str] = []

    def on_look(what: str) -> None:
        if what == ANOTHER_PUBLISHES and not waits:
            waits.append(what)
            _LOG.warning("%s; trying again for at most %g minutes", what, LOCK_LIMIT_SECONDS / 60)

    return on_look


def publish_waiting(run: RunDirectory, plan: Plan) -> int:
    """Publish what workers of this machine have made and not published, as after a kill. How many batches.

    Under a folder name of its own, since no two processes ever write into one.
    """
    if not run.database.backend.is_there():
        return 0
    with run.database_manifest(plan) as manifest:
        if not manifest.index.unpublished():
            return 0
        with opened_view(run, plan) as view:
            desk = desk_for(run, view, manifest, f"left-{secrets.token_hex(4)}")
            with storing(run.path):
                return Publisher(desk).publish(everything=True, on_look=_saying_once())

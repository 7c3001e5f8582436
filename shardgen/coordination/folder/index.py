"""An index of the whole segments of a shared folder, so that each is read once by this machine.

A cache: what it lacks is read again. It lies on the machine's own disk, in a file of its own.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, Text, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError

from shardgen.domain.receipt import ArtifactRef
from shardgen.errors import ShardgenError, StorageFailed
from shardgen.machine.file_systems import refuse_untrusted
from shardgen.manifest.backend import Access
from shardgen.manifest.sqlite import open_engine, transaction
from shardgen.storage.files import make_folders

SEGMENTS_NAME = "segments.sqlite"
_METADATA = MetaData()
_SEGMENT = Table(
    "segment",
    _METADATA,
    Column("path", Text, primary_key=True),
    Column("size_bytes", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("receipt", LargeBinary, nullable=False),  # its receipt.json
)


class SegmentIndex:
    """The segments that this machine has read. Thread-safe; several processes may share the file."""

    def __init__(self, path: Path) -> None:
        refuse_untrusted(path)
        try:
            make_folders(path.parent)
        except OSError as error:
            raise StorageFailed(
                f"{path.parent}: cannot be made ({error.strerror})",
                hint="set SHARDGEN_CACHE to a folder on this machine's own disk",
            ) from error
        self._engine = open_engine(path, Access.CREATE)
        try:
            with transaction(self._engine) as connection:
                _METADATA.create_all(connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back the connections."""
        with suppress(DatabaseError, ShardgenError):
            self._engine.dispose()

    def add(self, segment: ArtifactRef, receipt: bytes) -> None:
        """Remember a segment that was read and found whole, and its `receipt.json`; twice is harmless.

        Its name is its path from the shared folder on.
        """
        columns = {"path": segment.name, "size_bytes": segment.size_bytes, "sha256": segment.sha256}
        values = columns | {"receipt": receipt}
        with transaction(self._engine) as connection:
            connection.execute(insert(_SEGMENT).values(values).on_conflict_do_nothing())

    def all(self) -> list[tuple[ArtifactRef, bytes]]:
        """Every segment with its `receipt.json`, by path."""
        with transaction(self._engine) as connection:
            rows = connection.execute(select(_SEGMENT).order_by(_SEGMENT.c.path)).all()
        return [
            (ArtifactRef(name=row.path, size_bytes=row.size_bytes, sha256=row.sha256), row.receipt)
            for row in rows
        ]

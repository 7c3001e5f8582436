"""An index of the whole segments of a shared folder, so that each is read once by this machine.

A cache: what it lacks is read again. It lies on the machine's own disk, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, Text, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSegment:
    """A segment that was read and found whole; `path` starts from the shared folder."""

    path: str
    size_bytes: int
    sha256: str
    receipt: bytes


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

    def add(self, segment: IndexedSegment) -> None:
        """Remember a whole segment; twice is harmless."""
        values = {
            "path": segment.path,
            "size_bytes": segment.size_bytes,
            "sha256": segment.sha256,
            "receipt": segment.receipt,
        }
        with transaction(self._engine) as connection:
            connection.execute(insert(_SEGMENT).values(values).on_conflict_do_nothing())

    def all(self) -> Iterator[IndexedSegment]:
        """Every segment, by path; read whole before the first is given."""
        with transaction(self._engine) as connection:
            rows = connection.execute(select(_SEGMENT).order_by(_SEGMENT.c.path)).mappings().all()
        for row in rows:
            yield IndexedSegment(**row)

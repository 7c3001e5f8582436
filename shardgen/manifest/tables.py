"""The manifest's tables, as SQLAlchemy Core sees them; migrations/ creates them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import REAL, Column, Double, Integer, MetaData, Table, Text
from sqlalchemy.types import BigInteger, TypeEngine

from shardgen.errors import ManifestCorrupt

METADATA = MetaData()
REBUILD = "move the manifest away, keep artifacts/ and plan.json, then: shardgen rebuild RUN_DIR"
MEND = "shardgen verify RUN_DIR --requeue repairs it; no artifact is lost"

# STRICT tables in SQLite take INTEGER, REAL and TEXT only; every instant is UTC seconds since 1970.
_INT: TypeEngine[int] = BigInteger().with_variant(Integer, "sqlite")
_SECONDS: TypeEngine[float] = Double().with_variant(REAL, "sqlite")

RUN = Table(
    "run",
    METADATA,
    Column("id", _INT, primary_key=True),  # always 1
    Column("fingerprint", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("fence_floor", _INT, nullable=False),  # the first grant of a slice gives this + 1
    Column("artifact_folder", Text),  # its identity; null until the first worker starts
)

EARLIER_PLAN = Table(
    "earlier_plan",
    METADATA,
    Column("fingerprint", Text, primary_key=True),  # of a plan that this run had; never the present one's
)

SHARD = Table(
    "shard",
    METADATA,
    Column("shard", _INT, primary_key=True),
    Column("slice_count", _INT, nullable=False),
    Column("next_slice", _INT, nullable=False),
    Column("stored", _INT, nullable=False),
    Column("dead", _INT, nullable=False),
    Column("slices_open", _INT, nullable=False),
    Column("slices_leased", _INT, nullable=False),
    Column("slices_done", _INT, nullable=False),
    Column("slices_blocked", _INT, nullable=False),
)

SLICE = Table(
    "slice",
    METADATA,
    Column("shard", _INT, primary_key=True),
    Column("slice", _INT, primary_key=True),
    Column("state", Text, nullable=False),
    Column("fence", _INT, nullable=False),
    Column("batches_left", _INT, nullable=False),
    Column("deaths", _INT, nullable=False),  # since the last progress
    Column("worker", Text),
    Column("expires_at", _SECONDS),
    Column("reason", Text),  # why it is blocked
    Column("noted_batch", _INT),  # being made without overlap, so a death now is its death
    Column("noted_sample", _INT),  # being made alone, so a death now is its death
    Column("suspect_batch", _INT),  # died while it was noted: made one sample at a time
)

SUSPECT_SAMPLE = Table(
    "suspect_sample",
    METADATA,
    Column("shard", _INT, primary_key=True),
    Column("slice", _INT, primary_key=True),
    Column("sample", _INT, primary_key=True),  # may be another slice's: then it was a control
    Column("deaths", _INT, nullable=False),  # in a row, while it was made alone
    Column("state", Text, nullable=False),  # domain.suspicion.SuspectState
    Column("reason", Text),  # of its last death
    Column("detail", Text, nullable=False),  # of its last deaths: which workers, which stacks
)

RECEIPT = Table(
    "receipt",
    METADATA,
    Column("batch", _INT, primary_key=True),
    Column("shard", _INT, nullable=False),
    Column("slice", _INT, nullable=False),
    Column("fence", _INT, nullable=False),
    Column("worker", Text, nullable=False),
    Column("artifact", Text, nullable=False),
    Column("artifact_bytes", _INT, nullable=False),
    Column("artifact_sha256", Text, nullable=False),
    Column("members_start", _INT, nullable=False),
    Column("members_stop", _INT, nullable=False),
    Column("members_sha256", Text, nullable=False),
    Column("sums", Text, nullable=False),  # JSON: Python integers may pass 64 bits
    Column("provenance", _INT, nullable=False),
    Column("recorded_at", _SECONDS),  # null where a rebuild, another machine or an older version brought it
)

DEAD_LETTER = Table(
    "dead_letter",
    METADATA,
    Column("sample", _INT, primary_key=True),
    Column("batch", _INT, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

PROVENANCE = Table(
    "provenance",
    METADATA,
    Column("id", _INT, primary_key=True),
    Column("document", Text, nullable=False),  # the JSON that the recipe wrote
    Column("batches", _INT, nullable=False),
)

WORKER = Table(
    "worker",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", _INT, nullable=False),
    Column("process_started", _SECONDS, nullable=False),
    Column("device", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("shard", _INT),
    Column("slice", _INT),
    Column("lease_expires_at", _SECONDS),
    Column("started_at", _SECONDS, nullable=False),
    Column("last_beat_at", _SECONDS, nullable=False),
    Column("last_progress_at", _SECONDS, nullable=False),
    Column("samples_done", _INT, nullable=False),
    Column("samples_per_second", _SECONDS, nullable=False),
    Column("note", Text, nullable=False),
)

MICRO_BATCH = Table(
    "micro_batch",
    METADATA,
    Column("device_model", Text, primary_key=True),
    Column("micro_batch", _INT, nullable=False),
    Column("shrunk_to", _INT),  # what memory sufficed for when it once ran out
)


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Make values of rows: what no version of ours has written there is ManifestCorrupt, not a bug."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ManifestCorrupt(
            f"the manifest is damaged: {what} cannot be read ({type(error).__name__}: {error})", hint=REBUILD
        ) from error

"""The manifest: plan, shards, slices, receipts, dead letters, provenance, workers, samples under suspicion.

Revision ID: 2_0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2_0001"  # the first of plan format 2
down_revision = None
branch_labels = None
depends_on = None

INT: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer, "sqlite")
SECONDS: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL, "sqlite")


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, INT, sa.CheckConstraint(f"{name} >= 0"), nullable=False)


def text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "run",
        sa.Column("id", INT, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        text("fingerprint"),
        text("plan"),
        count("fence_floor"),
        text("artifact_folder", nullable=True),
        sqlite_strict=True,
    )
    op.create_table(
        "shard",
        sa.Column("shard", INT, primary_key=True, autoincrement=False),
        count("slice_count"),
        sa.Column("next_slice", INT, sa.CheckConstraint("next_slice BETWEEN 0 AND slice_count"), nullable=False),
        count("stored"),
        count("dead"),
        count("slices_open"),
        count("slices_leased"),
        count("slices_done"),
        count("slices_blocked"),
        sa.CheckConstraint("slices_open + slices_leased + slices_done + slices_blocked = next_slice"),
        sqlite_strict=True,
    )
    op.create_index("shard_never_leased", "shard", ["shard"], sqlite_where=sa.text("next_slice < slice_count"),
                    postgresql_where=sa.text("next_slice < slice_count"))
    op.create_table(
        "slice",
        sa.Column("shard", INT, sa.ForeignKey("shard.shard"), primary_key=True, autoincrement=False),
        sa.Column("slice", INT, primary_key=True, autoincrement=False),
        sa.Column(
            "state", sa.Text, sa.CheckConstraint("state IN ('open', 'leased', 'done', 'blocked')"), nullable=False
        ),
        count("fence"),
        count("batches_left"),
        count("deaths"),
        text("worker", nullable=True),
        sa.Column("expires_at", SECONDS),
        text("reason", nullable=True),
        sa.Column("noted_batch", INT),
        sa.Column("noted_sample", INT),
        sa.Column("suspect_batch", INT),
        sa.CheckConstraint("(state = 'leased') = (worker IS NOT NULL)"),
        sa.CheckConstraint("(state = 'leased') = (expires_at IS NOT NULL)"),
        sa.CheckConstraint("(state = 'done') = (batches_left = 0)"),
        sa.CheckConstraint("(state = 'blocked') = (reason IS NOT NULL)"),
        sqlite_strict=True,
    )
    op.create_index("slice_state", "slice", ["state", "shard", "slice"])
    op.create_table(
        "receipt",
        sa.Column("batch", INT, primary_key=True, autoincrement=False),
        sa.Column("shard", INT, nullable=False),
        sa.Column("slice", INT, nullable=False),
        count("fence"),
        text("worker"),
        text("artifact"),
        count("artifact_bytes"),
        text("artifact_sha256"),
        count("members_start"),
        count("members_stop"),
        text("members_sha256"),
        text("sums"),
        sa.Column("provenance", INT, nullable=False),
        sa.ForeignKeyConstraint(["shard", "slice"], ["slice.shard", "slice.slice"]),
        sqlite_strict=True,
    )
    op.create_index("receipt_slice", "receipt", ["shard", "slice"])
    op.create_table(
        "dead_letter",
        sa.Column("sample", INT, primary_key=True, autoincrement=False),
        sa.Column("batch", INT, sa.ForeignKey("receipt.batch"), nullable=False),
        sa.Column(
            "reason",
            sa.Text,
            sa.CheckConstraint(
                "reason IN ('unreadable', 'compose', 'non-finite', 'encode', 'killed-process', 'hung')"
            ),
            nullable=False,
        ),
        text("detail"),
        sqlite_strict=True,
    )
    op.create_index("dead_letter_batch", "dead_letter", ["batch"])
    op.create_table(
        "provenance",
        sa.Column("id", INT, primary_key=True),
        sa.Column("document", sa.Text, nullable=False, unique=True),
        count("batches"),
        sqlite_strict=True,
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.Text, primary_key=True),
        text("host"),
        sa.Column("pid", INT, nullable=False),
        sa.Column("process_started", SECONDS, nullable=False),
        text("device"),
        sa.Column(
            "state",
            sa.Text,
            sa.CheckConstraint("state IN ('starting', 'working', 'waiting', 'suspect', 'hung', 'dead', 'stopped')"),
            nullable=False,
        ),
        sa.Column("shard", INT),
        sa.Column("slice", INT),
        sa.Column("lease_expires_at", SECONDS),
        sa.Column("started_at", SECONDS, nullable=False),
        sa.Column("last_beat_at", SECONDS, nullable=False),
        sa.Column("last_progress_at", SECONDS, nullable=False),
        count("samples_done"),
        sa.Column("samples_per_second", SECONDS, nullable=False),
        text("note"),
        sqlite_strict=True,
    )
    op.create_index("worker_state", "worker", ["state", "last_beat_at"])
    op.create_table(
        "micro_batch",
        sa.Column("device_model", sa.Text, primary_key=True),
        sa.Column("micro_batch", INT, sa.CheckConstraint("micro_batch >= 1"), nullable=False),
        sa.Column("shrunk_to", INT),
        sqlite_strict=True,
    )
    op.create_table(
        "suspect_sample",
        sa.Column("shard", INT, primary_key=True, autoincrement=False),
        sa.Column("slice", INT, primary_key=True, autoincrement=False),
        sa.Column("sample", INT, primary_key=True, autoincrement=False),
        count("deaths"),
        sa.Column(
            "state", sa.Text, sa.CheckConstraint("state IN ('suspect', 'passed', 'dead')"), nullable=False
        ),
        sa.Column("reason", sa.Text, sa.CheckConstraint("reason IN ('killed-process', 'hung')")),
        text("detail"),
        sa.ForeignKeyConstraint(["shard", "slice"], ["slice.shard", "slice.slice"]),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise NotImplementedError("a manifest is never downgraded; its artifacts can rebuild one")

"""Suspect mode: notes on slices and samples under suspicion; micro-batches that memory made smaller.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("slice", sa.Column("noted_batch", INT))
    op.add_column("slice", sa.Column("noted_sample", INT))
    op.add_column("slice", sa.Column("suspect_batch", INT))
    op.add_column("micro_batch", sa.Column("shrunk_to", INT))
    op.create_table(
        "suspect_sample",
        sa.Column("shard", INT, primary_key=True, autoincrement=False),
        sa.Column("slice", INT, primary_key=True, autoincrement=False),
        sa.Column("sample", INT, primary_key=True, autoincrement=False),
        sa.Column("deaths", INT, sa.CheckConstraint("deaths >= 0"), nullable=False),
        sa.Column(
            "state", sa.Text, sa.CheckConstraint("state IN ('suspect', 'passed', 'dead')"), nullable=False
        ),
        sa.Column("reason", sa.Text, sa.CheckConstraint("reason IN ('killed-process', 'hung')")),
        sa.Column("detail", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["shard", "slice"], ["slice.shard", "slice.slice"]),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise NotImplementedError("a manifest is never downgraded; its artifacts can rebuild one")

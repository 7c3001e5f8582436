"""The fingerprints of plans that this run had before: an older plan.json of it is known by them.

Revision ID: 2_0002
Revises: 2_0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2_0002"
down_revision = "2_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("earlier_plan", sa.Column("fingerprint", sa.Text, primary_key=True), sqlite_strict=True)


def downgrade() -> None:
    raise NotImplementedError("a manifest is never downgraded; its artifacts can rebuild one")

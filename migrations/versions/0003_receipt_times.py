"""When each receipt was recorded: the newest ones, and how many samples were stored in which minute.

Revision ID: 2_0003
Revises: 2_0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2_0003"
down_revision = "2_0002"
branch_labels = None
depends_on = None

SECONDS: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL, "sqlite")


def upgrade() -> None:
    op.add_column("receipt", sa.Column("recorded_at", SECONDS))
    # It has all that is asked of it, so that a look at the pace reads no receipt.
    known = sa.text("recorded_at IS NOT NULL")
    op.create_index(
        "receipt_recorded",
        "receipt",
        ["recorded_at", "batch", "members_start", "members_stop"],
        sqlite_where=known,
        postgresql_where=known,
    )


def downgrade() -> None:
    raise NotImplementedError("a manifest is never downgraded; its artifacts can rebuild one")

"""Which artifact folder the run's workers write to.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("artifact_folder", sa.Text))


def downgrade() -> None:
    raise NotImplementedError("a manifest is never downgraded; its artifacts can rebuild one")

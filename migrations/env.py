"""Alembic's entry: migrates on the connection that shardgen hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from shardgen.manifest.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
context.run_migrations()

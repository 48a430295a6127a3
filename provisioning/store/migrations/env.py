"""Alembic's entry point: run the migrations on the connection that `provisioning.store.schema` passes in."""

from __future__ import annotations

from alembic import context

from provisioning.store.every_table import EVERY_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=EVERY_TABLE,
    render_as_batch=True,  # SQLite changes a column by copying its table.
    transaction_per_migration=False,  # One transaction around everything: the caller's.
)
context.run_migrations()

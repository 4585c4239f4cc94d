"""Alembic's entry: runs the steps on the connection that `upgrade` opened and locked."""

from __future__ import annotations

from alembic import context

from chat.log.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=False,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

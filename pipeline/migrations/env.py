"""Alembic runs this; the connection comes from ``pipeline.catalog.upgrade``."""

from alembic import context

from pipeline.catalog import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()

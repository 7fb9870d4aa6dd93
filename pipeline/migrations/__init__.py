"""Schema of the catalog, version by version (alembic)."""

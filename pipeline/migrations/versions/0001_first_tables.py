"""First tables: volumes, frames, cycles, scores, leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volumes",
        sa.Column("domain", sa.String(40), primary_key=True),
        sa.Column("key", sa.String(512), primary_key=True),
        sa.Column("etag", sa.String(64), primary_key=True),
        sa.Column("nominal_time", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("arrived_at", sa.Float, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "frames",
        sa.Column("domain", sa.String(40), primary_key=True),
        sa.Column("valid_time", sa.BigInteger, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("source_key", sa.String(512), nullable=False),
        sa.Column("arrived_at", sa.Float, nullable=False),
        sa.Column("offset_s", sa.Float, nullable=False),
        sa.Column("coverage", sa.Float, nullable=False),
        sa.Column("echo", sa.Float, nullable=False),
        sa.Column("removed", sa.Float, nullable=False),
    )
    op.create_table(
        "cycles",
        sa.Column("domain", sa.String(40), primary_key=True),
        sa.Column("reference_time", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(10), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("method", sa.String(80), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("baselines_digest", sa.String(64), nullable=False),
        sa.Column("inputs_digest", sa.String(64), nullable=False),
        sa.Column("model_checksum", sa.String(64), nullable=False),
        sa.Column("correlation", sa.Float),
        sa.Column("issue_time", sa.Float, nullable=False),
        sa.Column("stages", sa.Text, nullable=False),
        sa.Column("verified", sa.String(12), nullable=False),
        sa.Column("verified_reason", sa.Text, nullable=False),
        sa.Column("observations_digest", sa.String(64), nullable=False),
    )
    op.create_table(
        "scores",
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("domain", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("model", sa.String(80), nullable=False),
        sa.Column("day", sa.BigInteger, nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )

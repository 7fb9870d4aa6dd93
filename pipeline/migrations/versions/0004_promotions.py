"""Which trained models serve which domain, and which run in shadow."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "promotions",
        sa.Column("domain", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("role", sa.String(10), primary_key=True),
        sa.Column("since", sa.Float, primary_key=True),
        sa.Column("ended_at", sa.Float, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.Column("instead_of", sa.String(512), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.String(512), nullable=False),
    )

"""Radar and instant of polar volumes; what a frame was made from."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("volumes") as table:
        table.add_column(sa.Column("radar", sa.String(40), nullable=False, server_default=""))
        table.add_column(sa.Column("slot", sa.BigInteger, nullable=False, server_default="0"))
    with op.batch_alter_table("frames") as table:
        table.add_column(sa.Column("inputs", sa.Text, nullable=False, server_default=""))

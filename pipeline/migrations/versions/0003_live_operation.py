"""When things happened, why a cycle was started, feeds and alerts of live operation."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, column in (
        ("volumes", sa.Column("measured_until", sa.Float, nullable=False, server_default="0")),
        ("volumes", sa.Column("seen_at", sa.Float, nullable=False, server_default="0")),
        ("frames", sa.Column("framed_at", sa.Float, nullable=False, server_default="0")),
        ("cycles", sa.Column("cause", sa.Text, nullable=False, server_default="")),
    ):
        with op.batch_alter_table(name) as table:
            table.add_column(column)
    op.create_index("volumes_nominal_time", "volumes", ["domain", "nominal_time"])
    with op.batch_alter_table("scores") as table:  # the names of references belong to it
        table.alter_column("model", existing_type=sa.String(80), type_=sa.String(200), existing_nullable=False)
    op.create_table(
        "feeds",
        sa.Column("domain", sa.String(40), primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("settled_until", sa.BigInteger, nullable=False),
        sa.Column("polled_at", sa.Float, nullable=False),
        sa.Column("fault_at", sa.Float, nullable=False),
        sa.Column("fault", sa.Text, nullable=False),
    )
    op.create_table(
        "alerts",
        sa.Column("domain", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(40), primary_key=True),
        sa.Column("subject", sa.String(80), primary_key=True),
        sa.Column("raised_at", sa.Float, primary_key=True),
        sa.Column("ended_at", sa.Float, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("told", sa.String(12), nullable=False),
    )

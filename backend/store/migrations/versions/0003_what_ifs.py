"""Named what-ifs; measurements of one group by replaced activations are forgotten, they are of another kind."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "whatifs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("analysis_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("keep", sa.JSON(), nullable=False),
        sa.Column("locked", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["analysis_id"], ["analyses.id"], name=op.f("fk_whatifs_analysis_id_analyses"),
                                ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_whatifs")))
    op.create_index(op.f("ix_whatifs_analysis_id"), "whatifs", ["analysis_id"], unique=False)
    op.execute("DELETE FROM jobs WHERE kind = 'measure'")


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE kind IN ('measure', 'prune')")
    op.drop_index(op.f("ix_whatifs_analysis_id"), "whatifs")
    op.drop_table("whatifs")

"""Whether a member wants the weekly digest."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A constant default, so that SQLite adds the column in place.
    column = sa.Column("weekly_digest", sa.Boolean(), nullable=False, server_default=sa.true())
    op.add_column("member", column)


def downgrade() -> None:
    op.drop_column("member", "weekly_digest")

"""Let a key be rotated again whose successor was revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_api_key_predecessor_id", table_name="api_key")
    op.create_index("ix_api_key_predecessor_id", "api_key", ["predecessor_id"])


def downgrade() -> None:
    """Of several successors the last one stays."""
    key, later = sa.table("api_key", sa.column("id"), sa.column("predecessor_id")), None
    later = key.alias("later")
    several = sa.exists().where(
        later.c.predecessor_id == key.c.predecessor_id, later.c.id > key.c.id
    )
    op.execute(sa.update(key).where(several).values(predecessor_id=None))
    op.drop_index("ix_api_key_predecessor_id", table_name="api_key")
    op.create_index("ix_api_key_predecessor_id", "api_key", ["predecessor_id"], unique=True)

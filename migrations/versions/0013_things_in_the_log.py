"""Let the audit log find what happened to one thing."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

NAME = "ix_audit_event_organization_id_target_at_id"
COLUMNS = ["organization_id", "target_type", "target_id", "at", "id"]
ONLY = sa.text("target_id IS NOT NULL")


def upgrade() -> None:
    op.create_index(NAME, "audit_event", COLUMNS, sqlite_where=ONLY, postgresql_where=ONLY)


def downgrade() -> None:
    op.drop_index(NAME, table_name="audit_event")

"""What the security habits need to know: successors, leaks, policies, and how keys are used.

When a key last changed something is taken from the log, so that one which did so before this
was installed is not told to be one that only reads.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = {"sqlite": "DATETIME", "postgresql": "TIMESTAMP WITH TIME ZONE"}
# In the column's own definition, since SQLite adds no constraint to a table that is there.
COLUMNS = (
    (
        "organization",
        "key_makers",
        "VARCHAR(16) NOT NULL DEFAULT 'managers' CONSTRAINT ck_organization_key_makers "
        "CHECK (key_makers IN ('admins', 'managers'))",
    ),
    (
        "organization",
        "rotate_months",
        "INTEGER NOT NULL DEFAULT 6 CONSTRAINT ck_organization_rotate_months "
        "CHECK (rotate_months BETWEEN 1 AND 24)",
    ),
    (
        "api_key",
        "predecessor_id",
        "{id} CONSTRAINT fk_api_key_predecessor_id_api_key REFERENCES api_key (id)",
    ),
    ("api_key", "last_changed_at", "{moment}"),
    ("api_key", "leaked_at", "{moment}"),
)
LAST_CHANGED = """
    UPDATE api_key SET last_changed_at = (
        SELECT max(at) FROM audit_event
        WHERE audit_event.organization_id = api_key.organization_id
        AND audit_event.key_id = api_key.id AND outcome = 'ok'
        AND action IN ('application.updated', 'application.reminded', 'booking.approved',
                       'booking.declined', 'booking.cancelled', 'booking.paid')
    ) WHERE scope = 'read_write' AND last_used_at IS NOT NULL
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    types = {"moment": MOMENT[dialect], "id": "INTEGER" if dialect == "sqlite" else "BIGINT"}
    for table, column, definition in COLUMNS:
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {definition.format(**types)}")
    op.create_index("ix_api_key_predecessor_id", "api_key", ["predecessor_id"], unique=True)
    op.execute(LAST_CHANGED)
    op.create_table(
        "key_use",
        sa.Column("key_id", BigId, nullable=False),
        sa.Column("place", sa.String(length=45), nullable=False),
        sa.Column("client", sa.String(length=40), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("returned_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_key.id"], name=op.f("fk_key_use_key_id_api_key")
        ),
        sa.PrimaryKeyConstraint("key_id", "place", "client", name=op.f("pk_key_use")),
    )


def downgrade() -> None:
    op.drop_table("key_use")
    op.drop_index("ix_api_key_predecessor_id", table_name="api_key")
    for table, column, _ in reversed(COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")

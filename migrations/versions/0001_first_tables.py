"""The first tables, and the triggers that make the audit log append-only.

SQLite: INSERT OR REPLACE deletes without firing a delete trigger, so an id that is there already is
refused as well. PostgreSQL: TRUNCATE passes row triggers, and a replica session passes ordinary
ones, hence a statement trigger and ENABLE ALWAYS.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

SQLITE_GUARDS = (
    """CREATE TRIGGER audit_event_no_update BEFORE UPDATE ON audit_event
    BEGIN SELECT RAISE(ABORT, 'audit events can not be changed'); END""",
    """CREATE TRIGGER audit_event_no_delete BEFORE DELETE ON audit_event
    BEGIN SELECT RAISE(ABORT, 'audit events can not be deleted'); END""",
    """CREATE TRIGGER audit_event_no_replace BEFORE INSERT ON audit_event
    WHEN EXISTS (SELECT 1 FROM audit_event WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'audit events can not be replaced'); END""",
)
POSTGRESQL_GUARDS = (
    """CREATE FUNCTION audit_event_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'audit events can not be changed or deleted'; END $$""",
    """CREATE TRIGGER audit_event_no_change BEFORE UPDATE OR DELETE ON audit_event
    FOR EACH ROW EXECUTE FUNCTION audit_event_refuse()""",
    """CREATE TRIGGER audit_event_no_truncate BEFORE TRUNCATE ON audit_event
    FOR EACH STATEMENT EXECUTE FUNCTION audit_event_refuse()""",
    "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_event_no_change",
    "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_event_no_truncate",
)


def upgrade() -> None:
    op.create_table(
        "organization",
        sa.Column("id", BigId, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("slug", sa.String(length=80), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("billing_email", sa.String(length=254), nullable=True),
        sa.Column("plan", sa.String(length=32), nullable=False),
        sa.Column("stripe_account_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('draft', 'live')", name=op.f("ck_organization_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organization")),
        sa.UniqueConstraint("slug", name=op.f("uq_organization_slug")),
    )
    op.create_table(
        "sign_in_attempt",
        sa.Column("id", BigId, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("email_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("network", sa.String(length=45), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_in_attempt")),
    )
    op.create_index(
        op.f("ix_sign_in_attempt_email_digest_at"),
        "sign_in_attempt",
        ["email_digest", "at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_sign_in_attempt_network_at"), "sign_in_attempt", ["network", "at"], unique=False
    )

    op.create_table(
        "market",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("location", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_market_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_market")),
    )
    op.create_table(
        "member",
        sa.Column("id", BigId, nullable=False),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("email_folded", sa.String(length=254), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.String(length=120), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('admin', 'manager', 'viewer')", name=op.f("ck_member_role")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_member_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_member")),
        sa.UniqueConstraint("email_folded", name=op.f("uq_member_email_folded")),
    )
    op.create_index(
        op.f("ix_member_organization_id_id"), "member", ["organization_id", "id"], unique=False
    )

    op.create_table(
        "vendor",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("name_folded", sa.String(length=200), nullable=False),
        sa.Column("category", sa.String(length=60), nullable=False),
        sa.Column("contact_name", sa.String(length=100), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("phone", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_vendor_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_vendor")),
    )
    op.create_index(
        op.f("ix_vendor_organization_id_name_folded"),
        "vendor",
        ["organization_id", "name_folded"],
        unique=False,
    )

    op.create_table(
        "api_key",
        sa.Column("id", BigId, nullable=False),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("name_folded", sa.String(length=200), nullable=False),
        sa.Column("tool", sa.String(length=16), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("pepper_id", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by_id", BigId, nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_by_name", sa.String(length=100), nullable=True),
        sa.Column("revoke_reason", sa.String(length=300), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_ip", sa.String(length=45), nullable=True),
        sa.Column("last_used_user_agent", sa.String(length=256), nullable=True),
        sa.Column("refused_count", sa.Integer(), nullable=False),
        sa.Column("refused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refused_recorded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refused_recorded_count", sa.Integer(), nullable=False),
        sa.CheckConstraint("scope IN ('read', 'read_write')", name=op.f("ck_api_key_scope")),
        sa.CheckConstraint(
            "tool IN ('claude', 'chatgpt', 'developer', 'other')", name=op.f("ck_api_key_tool")
        ),
        sa.CheckConstraint(
            "revoked_at IS NULL OR released_at IS NOT NULL",
            name=op.f("ck_api_key_revoked_released"),
        ),
        sa.ForeignKeyConstraint(
            ["created_by_id"], ["member.id"], name=op.f("fk_api_key_created_by_id_member")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_api_key_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_key_digest")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_api_key_organization_id_created_at_id"),
        "api_key",
        ["organization_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_api_key_organization_id_last_used_at_id"),
        "api_key",
        ["organization_id", "last_used_at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_api_key_organization_id_name_folded_id"),
        "api_key",
        ["organization_id", "name_folded", "id"],
        unique=False,
    )
    op.create_index(
        "uq_api_key_active_name",
        "api_key",
        ["organization_id", "name_folded"],
        unique=True,
        sqlite_where=sa.text("released_at IS NULL"),
        postgresql_where=sa.text("released_at IS NULL"),
    )

    op.create_table(
        "market_date",
        sa.Column("market_id", sa.Integer(), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("opens", sa.String(length=5), nullable=False),
        sa.Column("closes", sa.String(length=5), nullable=False),
        sa.Column("stalls", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.CheckConstraint(
            "status IN ('draft', 'published', 'cancelled')", name=op.f("ck_market_date_status")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "market_id"],
            ["market.organization_id", "market.id"],
            name=op.f("fk_market_date_organization_id_market_id_market"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_market_date_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_market_date")),
    )
    op.create_index(
        op.f("ix_market_date_organization_id_date_id"),
        "market_date",
        ["organization_id", "date", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_market_date_organization_id_market_id_date_id"),
        "market_date",
        ["organization_id", "market_id", "date", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_market_date_organization_id_status_date_id"),
        "market_date",
        ["organization_id", "status", "date", "id"],
        unique=False,
    )

    op.create_table(
        "sign_in_session",
        sa.Column("id", BigId, nullable=False),
        sa.Column("member_id", BigId, nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("password_checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ip", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=256), nullable=True),
        sa.ForeignKeyConstraint(
            ["member_id"], ["member.id"], name=op.f("fk_sign_in_session_member_id_member")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_in_session")),
        sa.UniqueConstraint("digest", name=op.f("uq_sign_in_session_digest")),
    )
    op.create_index(
        op.f("ix_sign_in_session_member_id_ended_at"),
        "sign_in_session",
        ["member_id", "ended_at"],
        unique=False,
    )

    op.create_table(
        "vendor_application",
        sa.Column("market_id", sa.Integer(), nullable=False),
        sa.Column("vendor_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reminded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'approved', 'declined', 'waitlisted')",
            name=op.f("ck_vendor_application_status"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "market_id"],
            ["market.organization_id", "market.id"],
            name=op.f("fk_vendor_application_organization_id_market_id_market"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "vendor_id"],
            ["vendor.organization_id", "vendor.id"],
            name=op.f("fk_vendor_application_organization_id_vendor_id_vendor"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_vendor_application_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_vendor_application")),
    )
    op.create_index(
        op.f("ix_vendor_application_organization_id_market_id_id"),
        "vendor_application",
        ["organization_id", "market_id", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_vendor_application_organization_id_status_id"),
        "vendor_application",
        ["organization_id", "status", "id"],
        unique=False,
    )

    op.create_table(
        "audit_event",
        sa.Column("id", BigId, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("actor", sa.String(length=8), nullable=False),
        sa.Column("key_id", BigId, nullable=True),
        sa.Column("key_name", sa.String(length=100), nullable=True),
        sa.Column("member_id", BigId, nullable=True),
        sa.Column("member_name", sa.String(length=100), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target_type", sa.String(length=32), nullable=True),
        sa.Column("target_id", sa.String(length=64), nullable=True),
        sa.Column("target_name", sa.String(length=200), nullable=True),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.Column("ip", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=256), nullable=True),
        sa.Column("request_id", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "actor IN ('key', 'member', 'system')", name=op.f("ck_audit_event_actor")
        ),
        sa.CheckConstraint(
            "outcome IN ('ok', 'denied', 'failed')", name=op.f("ck_audit_event_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_key.id"], name=op.f("fk_audit_event_key_id_api_key")
        ),
        sa.ForeignKeyConstraint(
            ["member_id"], ["member.id"], name=op.f("fk_audit_event_member_id_member")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_audit_event_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_audit_event_organization_id_action_at_id"),
        "audit_event",
        ["organization_id", "action", "at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_audit_event_organization_id_at_id"),
        "audit_event",
        ["organization_id", "at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_audit_event_organization_id_key_id_at_id"),
        "audit_event",
        ["organization_id", "key_id", "at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_audit_event_organization_id_member_id_at_id"),
        "audit_event",
        ["organization_id", "member_id", "at", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_audit_event_organization_id_outcome_at_id"),
        "audit_event",
        ["organization_id", "outcome", "at", "id"],
        unique=False,
    )

    op.create_table(
        "booking",
        sa.Column("market_date_id", sa.Integer(), nullable=False),
        sa.Column("vendor_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("paid", sa.Boolean(), nullable=False),
        sa.Column("stall", sa.String(length=20), nullable=False),
        sa.Column("amount", sa.Integer(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("reason", sa.String(length=300), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.CheckConstraint(
            "NOT paid OR status IN ('approved', 'cancelled')", name=op.f("ck_booking_paid")
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'approved', 'declined', 'cancelled')",
            name=op.f("ck_booking_status"),
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_booking_amount")),
        sa.ForeignKeyConstraint(
            ["organization_id", "market_date_id"],
            ["market_date.organization_id", "market_date.id"],
            name=op.f("fk_booking_organization_id_market_date_id_market_date"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "vendor_id"],
            ["vendor.organization_id", "vendor.id"],
            name=op.f("fk_booking_organization_id_vendor_id_vendor"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_booking_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_booking")),
    )
    op.create_index(
        op.f("ix_booking_organization_id_market_date_id_id"),
        "booking",
        ["organization_id", "market_date_id", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_booking_organization_id_status_id"),
        "booking",
        ["organization_id", "status", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_booking_organization_id_vendor_id_id"),
        "booking",
        ["organization_id", "vendor_id", "id"],
        unique=False,
    )

    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE_GUARDS if sqlite else POSTGRESQL_GUARDS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_index(op.f("ix_booking_organization_id_vendor_id_id"), table_name="booking")
    op.drop_index(op.f("ix_booking_organization_id_status_id"), table_name="booking")
    op.drop_index(op.f("ix_booking_organization_id_market_date_id_id"), table_name="booking")

    op.drop_table("booking")
    op.drop_index(op.f("ix_audit_event_organization_id_outcome_at_id"), table_name="audit_event")
    op.drop_index(op.f("ix_audit_event_organization_id_member_id_at_id"), table_name="audit_event")
    op.drop_index(op.f("ix_audit_event_organization_id_key_id_at_id"), table_name="audit_event")
    op.drop_index(op.f("ix_audit_event_organization_id_at_id"), table_name="audit_event")
    op.drop_index(op.f("ix_audit_event_organization_id_action_at_id"), table_name="audit_event")

    op.drop_table("audit_event")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_event_refuse()")
    op.drop_index(
        op.f("ix_vendor_application_organization_id_status_id"), table_name="vendor_application"
    )
    op.drop_index(
        op.f("ix_vendor_application_organization_id_market_id_id"), table_name="vendor_application"
    )

    op.drop_table("vendor_application")
    op.drop_index(op.f("ix_sign_in_session_member_id_ended_at"), table_name="sign_in_session")

    op.drop_table("sign_in_session")
    op.drop_index(op.f("ix_market_date_organization_id_status_date_id"), table_name="market_date")
    op.drop_index(
        op.f("ix_market_date_organization_id_market_id_date_id"), table_name="market_date"
    )
    op.drop_index(op.f("ix_market_date_organization_id_date_id"), table_name="market_date")

    op.drop_table("market_date")
    op.drop_index(
        "uq_api_key_active_name",
        table_name="api_key",
        sqlite_where=sa.text("released_at IS NULL"),
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.drop_index(op.f("ix_api_key_organization_id_name_folded_id"), table_name="api_key")
    op.drop_index(op.f("ix_api_key_organization_id_last_used_at_id"), table_name="api_key")
    op.drop_index(op.f("ix_api_key_organization_id_created_at_id"), table_name="api_key")

    op.drop_table("api_key")
    op.drop_index(op.f("ix_vendor_organization_id_name_folded"), table_name="vendor")

    op.drop_table("vendor")
    op.drop_index(op.f("ix_member_organization_id_id"), table_name="member")

    op.drop_table("member")
    op.drop_table("market")
    op.drop_index(op.f("ix_sign_in_attempt_network_at"), table_name="sign_in_attempt")
    op.drop_index(op.f("ix_sign_in_attempt_email_digest_at"), table_name="sign_in_attempt")

    op.drop_table("sign_in_attempt")
    op.drop_table("organization")

"""A mac on every audit event, and the seals, append-only like the events.

PostgreSQL makes ids visible out of order. Every writer of events holds a shared lock until it
commits, taken by a trigger before the first id, so that nobody can forget it; the sealer takes the
exclusive one for a moment to learn up to which id everything is there.
"""

import hmac
import json

import sqlalchemy as sa
from alembic import op
from flask import current_app

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What a mac was when this was written, and under which key. It is in the order of these columns.
COLUMNS = """organization_id, actor, key_id, key_name, member_id, member_name, action, target_type,
    target_id, target_name, outcome, ip, user_agent, request_id, CAST(detail AS TEXT)"""

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

SQLITE_EVENT_GUARD = """CREATE TRIGGER audit_event_no_update BEFORE UPDATE ON audit_event
    BEGIN SELECT RAISE(ABORT, 'audit events can not be changed'); END"""
SQLITE_GUARDS = (
    """CREATE TRIGGER audit_seal_no_update BEFORE UPDATE ON audit_seal
    BEGIN SELECT RAISE(ABORT, 'audit seals can not be changed'); END""",
    """CREATE TRIGGER audit_seal_no_delete BEFORE DELETE ON audit_seal
    BEGIN SELECT RAISE(ABORT, 'audit seals can not be deleted'); END""",
    """CREATE TRIGGER audit_seal_no_replace BEFORE INSERT ON audit_seal
    WHEN EXISTS (SELECT 1 FROM audit_seal
        WHERE organization_id = NEW.organization_id AND batch = NEW.batch)
    BEGIN SELECT RAISE(ABORT, 'audit seals can not be replaced'); END""",
)
POSTGRESQL_GUARDS = (
    """CREATE FUNCTION audit_seal_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'audit seals can not be changed or deleted'; END $$""",
    """CREATE TRIGGER audit_seal_no_change BEFORE UPDATE OR DELETE ON audit_seal
    FOR EACH ROW EXECUTE FUNCTION audit_seal_refuse()""",
    """CREATE TRIGGER audit_seal_no_truncate BEFORE TRUNCATE ON audit_seal
    FOR EACH STATEMENT EXECUTE FUNCTION audit_seal_refuse()""",
    "ALTER TABLE audit_seal ENABLE ALWAYS TRIGGER audit_seal_no_change",
    "ALTER TABLE audit_seal ENABLE ALWAYS TRIGGER audit_seal_no_truncate",
    """CREATE FUNCTION audit_event_hold() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN
        PERFORM pg_advisory_xact_lock_shared(hashtextextended('audit_event', 0));
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER audit_event_hold BEFORE INSERT ON audit_event
    FOR EACH STATEMENT EXECUTE FUNCTION audit_event_hold()""",
    "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_event_hold",
)


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    empty = sa.text("x''" if sqlite else "''::bytea")
    op.add_column(
        "audit_event", sa.Column("mac", sa.LargeBinary(32), nullable=False, server_default=empty)
    )
    _add_macs(sqlite)
    if not sqlite:
        op.alter_column("audit_event", "mac", server_default=None)
    op.create_table(
        "audit_seal",
        sa.Column("organization_id", BigId, nullable=False),
        sa.Column("batch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("first_event_id", BigId, nullable=False),
        sa.Column("last_event_id", BigId, nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(length=32), nullable=False),
        sa.Column("previous", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signature", sa.LargeBinary(length=32), nullable=False),
        sa.Column("entries", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organization.id"],
            name=op.f("fk_audit_seal_organization_id_organization"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "batch", name=op.f("pk_audit_seal")),
    )
    op.create_index(op.f("ix_audit_seal_last_event_id"), "audit_seal", ["last_event_id"])
    for statement in SQLITE_GUARDS if sqlite else POSTGRESQL_GUARDS:
        op.execute(statement)


def _add_macs(sqlite: bool) -> None:
    """To the events that are there. The guard against changes stands aside for it."""
    bind, at = op.get_bind(), "at"
    if not sqlite:
        at = "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
    pepper = current_app.config["SETTINGS"].key_peppers[0]
    key = hmac.digest(pepper.encode(), b"convene-keys audit log", "sha256")
    some = f"SELECT id, {at}, {COLUMNS} FROM audit_event WHERE id > :last ORDER BY id LIMIT 1000"  # noqa: S608
    guards = ("DROP TRIGGER audit_event_no_update", SQLITE_EVENT_GUARD)
    if not sqlite:
        name = "TRIGGER audit_event_no_change"
        guards = (
            f"ALTER TABLE audit_event DISABLE {name}",
            f"ALTER TABLE audit_event ENABLE ALWAYS {name}",
        )
    op.execute(guards[0])
    add, last = sa.text("UPDATE audit_event SET mac = :mac WHERE id = :id"), 0
    while rows := bind.execute(sa.text(some), {"last": last}).all():
        messages = {event_id: json.dumps(["event", *values]) for event_id, *values in rows}
        macs = {name: hmac.digest(key, each.encode(), "sha256") for name, each in messages.items()}
        bind.execute(add, [{"id": name, "mac": mac} for name, mac in macs.items()])
        last = rows[-1].id
    op.execute(guards[1])


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_event_hold ON audit_event")
        op.execute("DROP FUNCTION audit_event_hold()")
    op.drop_index(op.f("ix_audit_seal_last_event_id"), table_name="audit_seal")
    op.drop_table("audit_seal")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_seal_refuse()")
    op.drop_column("audit_event", "mac")

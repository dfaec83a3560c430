"""The schema: migrations go up, down and up again, and the database itself holds the rules."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from convene_keys import create_app
from convene_keys import text as text_
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, record
from convene_keys.db.session import Base, db
from convene_keys.models import (
    ApiKey,
    AuditEvent,
    Booking,
    MarketDate,
    Organization,
    Vendor,
    VendorApplication,
)
from tests import factories
from tests.databases import environ

PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def app(own_app: Flask) -> Flask:
    """On a database whose schema may change."""
    return own_app


@pytest.fixture
def event(app: Flask) -> AuditEvent:
    organization = factories.organization()
    event = db.session.get_one(
        AuditEvent, record(db.session(), Actor.system(organization.id), Action.SAMPLE_DATA_MADE)
    )
    db.session.commit()
    return event


def _tables() -> set[str]:
    return set(inspect(db.engine).get_table_names()) - {"alembic_version"}


def test_migrations_go_up_down_and_up_again(app: Flask) -> None:
    every = {table.name for table in Base.metadata.sorted_tables}
    assert _tables() == every
    downgrade(revision="base")
    assert _tables() == set()
    if db.engine.dialect.name == "postgresql":
        left = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'audit_event%'"
        assert db.session.scalar(text(left)) == 0
        db.session.rollback()
    upgrade()
    assert _tables() == every
    organization = factories.organization()
    record(db.session(), Actor.system(organization.id), Action.SAMPLE_DATA_MADE)
    db.session.commit()
    _refused("DELETE FROM audit_event")


def test_of_several_successors_the_last_stays_on_the_way_down(app: Flask) -> None:
    of = factories.organization()
    old = factories.api_key(of, "Old", released_at=PAST)[0].id
    first, last = (factories.api_key(of, name, predecessor_id=old)[0].id for name in ("A", "B"))
    db.session.remove()
    downgrade(revision="0010-1")
    links = "SELECT predecessor_id FROM api_key WHERE id IN (:first, :last) ORDER BY id"
    with db.engine.connect() as connection:
        found = connection.execute(text(links), {"first": first, "last": last}).scalars().all()
    assert found == [None, old]
    upgrade()


def test_models_and_migrations_agree(app: Flask) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)
        for table in Base.metadata.sorted_tables:
            named = {
                constraint["name"]
                for constraint in inspect(connection).get_check_constraints(table.name)
            }
            wanted = {
                str(constraint.name)
                for constraint in table.constraints
                if isinstance(constraint, CheckConstraint)
            }
            assert {str(name) for name in named} == wanted
    assert differences == []


def _refused(statement: str, **values: Any) -> None:
    """`statement` fails for the reason that audit events stay, and changes nothing."""
    before = db.session.scalars(text("SELECT count(*) FROM audit_event")).one()
    with pytest.raises(DBAPIError, match="audit events can not be"):
        db.session.execute(text(statement), values)
    db.session.rollback()
    assert db.session.scalars(text("SELECT count(*) FROM audit_event")).one() == before
    db.session.rollback()


def test_event_cannot_be_changed_or_deleted(event: AuditEvent) -> None:
    _refused("UPDATE audit_event SET outcome = 'failed'")
    _refused("UPDATE audit_event SET id = id + 1000")
    _refused("DELETE FROM audit_event")
    _refused("DELETE FROM audit_event WHERE id = :id", id=event.id)


def test_event_cannot_be_changed_through_the_models(event: AuditEvent) -> None:
    event.outcome = "failed"
    with pytest.raises(DBAPIError, match="audit events can not be"):
        db.session.commit()
    db.session.rollback()
    db.session.delete(event)
    with pytest.raises(DBAPIError, match="audit events can not be"):
        db.session.commit()
    db.session.rollback()


COLUMNS = "id, at, organization_id, actor, action, outcome, detail, mac"
UPSERT = (
    f"INSERT INTO audit_event ({COLUMNS}) SELECT {COLUMNS} FROM audit_event WHERE true "  # noqa: S608
    "ON CONFLICT (id) DO UPDATE SET outcome = 'failed'"
)


def test_event_cannot_be_replaced_on_sqlite(sqlite_url: str) -> None:
    app = create_app(environ(sqlite_url))
    with app.app_context():
        organization = factories.organization()
        record(db.session(), Actor.system(organization.id), Action.SAMPLE_DATA_MADE)
        db.session.commit()
        for verb in ("INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE"):
            _refused(f"{verb} INTO audit_event ({COLUMNS}) SELECT {COLUMNS} FROM audit_event")  # noqa: S608
        _refused(UPSERT)
        db.session.remove()
        db.engine.dispose()


def test_id_of_an_event_is_never_used_again_on_sqlite(sqlite_url: str) -> None:
    app = create_app(environ(sqlite_url))
    with app.app_context():
        for table in ("audit_event", "api_key"):
            sql = db.session.scalar(
                text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table}
            )
            assert "AUTOINCREMENT" in sql
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def postgresql(postgres: Any) -> Iterator[Flask]:
    name = postgres.create()
    app = create_app(environ(postgres.url(name)))
    with app.app_context():
        organization = factories.organization()
        record(db.session(), Actor.system(organization.id), Action.SAMPLE_DATA_MADE)
        db.session.commit()
        yield app
        db.session.remove()
        db.engine.dispose()
    postgres.drop(name)


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET outcome = 'failed'",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event",
        "TRUNCATE audit_event CASCADE",
        "TRUNCATE organization CASCADE",
        UPSERT,
    ],
)
def test_event_stays_on_postgresql_in_every_session(
    postgresql: Flask, role: str, statement: str
) -> None:
    _refused(f"SET LOCAL session_replication_role = {role}; {statement}")


def test_active_name_is_unique_in_the_organization_whatever_the_case(app: Flask) -> None:
    one, other = factories.organization(), factories.organization()
    factories.api_key(one, "Claude on laptop")
    factories.api_key(other, "Claude on laptop")
    factories.api_key(one, "CLAUDE on laptop", revoked_at=PAST, released_at=PAST)
    factories.api_key(one, "claude ON laptop", expires_at=PAST, released_at=PAST)
    with pytest.raises(IntegrityError):
        factories.api_key(one, "ＣLAUDE ON LAPTOP")
    db.session.rollback()


def test_revoked_key_has_given_up_its_name(app: Flask) -> None:
    with pytest.raises(IntegrityError):
        factories.api_key(factories.organization(), revoked_at=PAST)
    db.session.rollback()


def _foreign(row: Any) -> None:
    db.session.add(row)
    with pytest.raises(IntegrityError):
        db.session.commit()
    db.session.rollback()


def test_nothing_points_into_another_organization(app: Flask) -> None:
    mine, theirs = factories.organization(), factories.organization()
    factories.market_data(theirs)
    own = {"organization_id": mine.id}
    day = {"date": PAST.date(), "opens": "08:00", "closes": "13:00", "stalls": 1}
    _foreign(MarketDate(**own, id=1, market_id=1, status="draft", **day))
    _foreign(VendorApplication(**own, id=1, market_id=1, vendor_id=1))
    _foreign(Booking(**own, id=1, market_date_id=1, vendor_id=1, amount=1))
    contact = {"category": "Produce", "contact_name": "N", "email": "n@example.org"}
    vendor = Vendor(**own, id=1, name="A", name_folded=text_.fold("A"), **contact)
    db.session.add(vendor)
    db.session.commit()
    _foreign(Booking(**own, id=1, market_date_id=1, vendor_id=1, amount=1))


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("organization", "status", "closed"),
        ("member", "role", "owner"),
        ("api_key", "scope", "admin"),
        ("api_key", "tool", "toaster"),
        ("market_date", "status", "gone"),
        ("vendor_application", "status", "gone"),
        ("booking", "status", "gone"),
        ("booking", "amount", -1),
        ("booking", "paid", True),
    ],
)
def test_value_that_means_nothing_is_refused(
    app: Flask, table: str, column: str, value: object
) -> None:
    organization = factories.organization()
    factories.market_data(organization)
    factories.api_key(organization, creator=factories.member(organization))
    with pytest.raises(IntegrityError):
        db.session.execute(text(f"UPDATE {table} SET {column} = :value"), {"value": value})  # noqa: S608
    db.session.rollback()


def test_schema_is_made_in_an_empty_file_at_the_first_migration(tmp_path: Path) -> None:
    app = create_app(environ(f"sqlite:///{tmp_path}/new/folder/a.db"))
    with app.app_context():
        upgrade()
        assert db.session.query(Organization).count() == 0
        assert db.session.query(ApiKey).count() == 0
        db.session.remove()
        db.engine.dispose()
    shutil.rmtree(tmp_path / "new")

"""Prepared statements give and take what SQLAlchemy itself would, on both databases."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from flask import Flask
from sqlalchemy import bindparam, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from convene_keys.audit import log as audit_log
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.connections import reading
from convene_keys.db.session import db, raw_connection, transaction
from convene_keys.db.statements import CompiledStatement
from convene_keys.models import ApiKey, AuditEvent, Base, Booking, Organization
from tests import factories

EVENTS, KEYS, BOOKINGS, ORGANIZATIONS = (
    Base.metadata.tables[model.__tablename__]
    for model in (AuditEvent, ApiKey, Booking, Organization)
)
SLUGS = CompiledStatement(
    select(ORGANIZATIONS.c.slug).where(ORGANIZATIONS.c.slug == bindparam("wanted"))
)


@pytest.mark.parametrize("table", [EVENTS, KEYS, BOOKINGS, ORGANIZATIONS])
def test_rows_are_those_of_sqlalchemy(app: Flask, table) -> None:
    organization = factories.organization()
    factories.market_data(organization)
    key, _ = factories.api_key(organization, last_used_at=datetime(2026, 3, 29, 1, 30, tzinfo=UTC))
    with transaction() as session:
        actor, detail = Actor.of_key(key, Origin()), {"count": 3, "é": [True, None]}
        audit_log.record(session, actor, Action.BOOKING_LISTED, detail=detail)
    expected = [tuple(row) for row in db.session.execute(select(table))]
    assert expected
    with reading(db.engine) as connection:
        rows = connection.all(CompiledStatement(select(table)))
    assert [tuple(row) for row in rows] == expected
    assert rows[0]._fields == tuple(table.c.keys())


VALUES = {
    "status": "live",
    "timezone": "UTC",
    "plan": "free",
    "key_makers": "managers",
    "rotate_months": 6,
}
COLUMNS = ("name", "slug", "created_at", *VALUES)


def test_what_is_written_is_what_sqlalchemy_reads(app: Flask) -> None:
    columns = (*COLUMNS, "billing_email")
    statement = CompiledStatement(insert(ORGANIZATIONS).inline(), columns)
    tokyo = datetime(2026, 11, 24, 21, tzinfo=timezone(timedelta(hours=9)))
    values = {**VALUES, "name": "Ü'\"%s"}
    with transaction() as session:
        for more in (
            {"slug": "a", "billing_email": None},
            {"slug": "b", "billing_email": "b@x.org"},
        ):
            raw_connection(session).run(statement, {**values, "created_at": tokyo, **more})
    a, b = db.session.scalars(select(Organization).order_by(Organization.slug))
    assert (a.name, a.billing_email, b.billing_email) == ("Ü'\"%s", None, "b@x.org")
    assert a.created_at == tokyo
    assert a.created_at.tzinfo is UTC


def test_a_constant_in_a_statement_needs_no_value(app: Flask) -> None:
    slug = factories.organization().slug
    with reading(db.engine) as connection:
        statement = CompiledStatement(
            select(ORGANIZATIONS.c.slug).where(ORGANIZATIONS.c.slug == slug)
        )
        assert connection.first(statement).slug == slug
        assert connection.first(SLUGS, wanted="nowhere") is None
        with pytest.raises(KeyError):
            connection.first(SLUGS)


def test_errors_are_those_of_sqlalchemy(app: Flask) -> None:
    slug = factories.organization().slug
    columns = COLUMNS
    values = {**VALUES, "name": "x", "slug": slug}
    twice = CompiledStatement(insert(ORGANIZATIONS).inline(), columns)
    with pytest.raises(IntegrityError), reading(db.engine) as connection:
        connection.run(twice, {**values, "created_at": datetime(2026, 11, 24, tzinfo=UTC)})
    missing = CompiledStatement(select(text("1")).select_from(text("nothing_here")))
    with pytest.raises((OperationalError, ProgrammingError)), reading(db.engine) as connection:
        connection.all(missing)
    with reading(db.engine) as connection:  # and the connection is as good as new
        assert connection.first(SLUGS, wanted=slug)

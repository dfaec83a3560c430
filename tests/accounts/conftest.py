"""An organization and its admin, and what is recorded of what they do."""

import pytest
from flask import Flask
from sqlalchemy import select

from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.errors import Invalid
from convene_keys.models import AuditEvent, Member, Organization
from tests import factories
from tests.databases import PEPPER

PEPPERS = [PEPPER]
PASSWORD = "velvet tractor umbrella ninety"
HERE = Origin("192.0.2.1", "Firefox", "r1")


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization, email="maya@example.org")


@pytest.fixture
def actor(maya: Member) -> Actor:
    return Actor.of_member(maya, HERE)


def events() -> list[AuditEvent]:
    db.session.rollback()
    return list(db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


def actions() -> list[str]:
    return [event.action for event in events()]


def fields(info: pytest.ExceptionInfo[Invalid]) -> list[str]:
    return [error.field for error in info.value.errors]

"""An organization whose log is to be read, and ways to write into it."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from convene_keys import clock
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import transaction
from convene_keys.models import AuditEvent, Organization, Outcome
from tests import factories
from tests.audit.sealed import Log
from tests.conftest import Clock

ORIGIN = Origin("192.0.2.7", "curl/8", "r1")


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


@pytest.fixture
def log(app: Flask) -> Log:
    return Log(1)


def recorded(actor: Actor, action: Action = Action.BOOKING_LISTED, **more: Any) -> AuditEvent:
    with transaction() as session:
        return session.get_one(AuditEvent, record(session, actor, action, **more))


@pytest.fixture
def varied(organization: Organization, fake_clock: Clock) -> dict[str, int]:
    """Five events of each kind of actor, an hour apart, and one of another organization."""
    key, _ = factories.api_key(organization, "Claude 100%")
    member = factories.member(organization, name="Noor_1")
    other = factories.organization("Elsewhere")
    made = {}
    booking = Target("booking", 7, "booking 7")
    for name, actor, more in (
        ("key", Actor.of_key(key, ORIGIN), {"target": booking}),
        ("denied", Actor.of_key(key, Origin("2001:db8::1")), {"outcome": Outcome.DENIED}),
        ("member", Actor.of_member(member, Origin(None, None, "req9")), {}),
        ("system", Actor.system(organization.id), {"action": Action.KEY_EXPIRED}),
        ("other", Actor.system(other.id, ORIGIN), {"target": booking}),
    ):
        made[name] = recorded(actor, **more).id
        fake_clock.advance(hours=1)
    return made | {"key_id": key.id, "member_id": member.id}


def fill(organization: Organization, number: int, per_moment: int = 3) -> None:
    """Events of which several share a moment, so that the id has to tell them apart."""
    start = clock.now()
    with transaction() as session:
        session.add_all(
            AuditEvent(
                at=start + timedelta(seconds=index // per_moment),
                organization_id=organization.id,
                actor="system",
                action="booking.listed",
                outcome="ok" if index % 2 else "denied",
                detail={},
                mac=bytes(32),
            )
            for index in range(number)
        )

"""`demo`: a season with a past, made once, and the sign-in that it prints."""

from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select

from convene_keys import clock
from convene_keys.accounts import passwords
from convene_keys.checkup import findings as checkup_findings
from convene_keys.db.session import db
from convene_keys.models import ApiKey, Booking, Member
from tests import factories
from tests.cli.conftest import Run, events, failed, succeeded
from tests.databases import PEPPER

pytestmark = pytest.mark.on_sqlite


def test_demo_sets_up_once_and_prints_the_same_sign_in(app: Flask, run: Run) -> None:
    first = succeeded(run("demo"))
    recorded = len(events())
    assert succeeded(run("demo")) == first
    assert len(events()) == recorded
    assert app.config["SETTINGS"].base_url in first
    email, password = first.split(" with ")[1].split(" and the password ")

    admin = db.session.scalars(select(Member).where(Member.email == email)).one()
    assert admin.role == "admin"
    assert passwords.fits(password.strip(), admin.password_hash, [PEPPER])


def test_demo_has_keys_that_were_at_work(run: Run) -> None:
    succeeded(run("demo"))
    made = list(db.session.scalars(select(ApiKey)))
    assert {key.status.value for key in made} == {"active", "expiring", "revoked"}
    used = [key for key in made if key.name != "Test"]  # which the check-up is to find
    assert all(key.last_used_at and key.last_used_ip and key.last_used_user_agent for key in used)
    by_keys = [event for event in events() if event.actor == "key"]
    assert {event.key_id for event in by_keys} == {key.id for key in used}
    found = {
        finding.kind
        for finding in checkup_findings.run(db.session(), made[0].organization_id).findings
    }
    assert found == {"unused", "vague", "endless"}
    assert {event.outcome for event in by_keys} == {"ok", "denied"}
    assert {"key.refused", "request.off_limits", "booking.approved"} <= {e.action for e in by_keys}
    waiting = db.session.get_one(Booking, (made[0].organization_id, 123))
    assert waiting.status == "pending"


def test_demo_has_a_past(run: Run) -> None:
    succeeded(run("demo"))
    for key in db.session.scalars(select(ApiKey).where(ApiKey.last_used_at.is_not(None))):
        calls = [e.at for e in events() if e.key_id == key.id and e.actor == "key"]
        assert key.created_at < min(calls)
        tried_since = key.revoked_at is not None
        assert (max(calls) - key.last_used_at > timedelta(days=1)) == tried_since
        assert len({moment.date() for moment in calls}) > 3
        assert max(calls) <= clock.now()


def test_demo_does_not_print_a_password_that_was_changed(run: Run) -> None:
    succeeded(run("demo"))
    admin = db.session.scalars(select(Member).where(Member.role == "admin")).one()
    admin.password_hash = None
    db.session.commit()
    assert "(the one you set)" in succeeded(run("demo"))


def test_demo_leaves_a_database_in_use_alone(run: Run) -> None:
    factories.organization()
    assert "no demo" in failed(run("demo"))
    assert events() == []

"""API keys: made, renamed, revoked, and ended by the clock."""

from threading import Barrier, Thread
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from convene_keys import clock, config
from convene_keys.audit import log as audit_log
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db, transaction
from convene_keys.errors import Invalid, NotFound
from convene_keys.keys import lifecycle, tokens
from convene_keys.models import ApiKey, AuditEvent, KeyStatus, Member, Organization, Scope, Tool
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER

ORIGIN = Origin("192.0.2.7", "curl/8", "r1")
PEPPERS = [PEPPER]


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization)


@pytest.fixture
def actor(maya: Member) -> Actor:
    return Actor.of_member(maya, ORIGIN)


def _create(actor: Actor, name: str = "Claude on laptop", **more: Any) -> tuple[ApiKey, str]:
    values = {
        "name": name,
        "tool": Tool.CLAUDE,
        "scope": Scope.READ_WRITE,
        "expires_in_days": None,
        "peppers": PEPPERS,
        "created_by_id": actor.member_id,
    }
    return lifecycle.create(actor, **{**values, **more})


def recorded(*actions: Action) -> list[AuditEvent]:
    db.session.rollback()  # SQLite: see what others committed since
    query = select(AuditEvent).order_by(AuditEvent.id)
    events = db.session.scalars(query).all()
    return [event for event in events if not actions or event.action in actions]


def test_create_gives_the_row_and_its_secret_once(actor: Actor, fake_clock: Clock) -> None:
    key, token = _create(actor, "  Claude on   laptop ")
    assert tokens.is_well_formed(token)
    assert (key.name, key.tool, key.scope) == ("Claude on laptop", "claude", "read_write")
    assert key.hint == token[:11]
    assert key.digest == tokens.digest(token, PEPPER)
    assert key.pepper_id == config.pepper_id(PEPPER)
    assert key.created_at == clock.now()
    assert key.created_by_name == "Maya"
    assert key.status is KeyStatus.ACTIVE
    assert key.works
    (event,) = recorded()
    assert (event.action, event.target_name, event.member_name, event.target_id) == (
        "key.created",
        "Claude on laptop",
        "Maya",
        str(key.id),
    )
    assert event.detail == {"scope": "read_write", "tool": "claude", "hint": key.hint}


def test_secret_is_nowhere_in_the_database(actor: Actor) -> None:
    _, token = _create(actor)
    for table in ("api_key", "audit_event"):
        for row in db.session.execute(text(f"SELECT * FROM {table}")):  # noqa: S608
            assert token not in repr(tuple(row))
            assert token[7:-6] not in repr(tuple(row))


@pytest.mark.parametrize("days", [0, -1, 3_651])
def test_create_refuses_an_expiry_out_of_range(actor: Actor, days: int) -> None:
    with pytest.raises(Invalid) as info:
        _create(actor, expires_in_days=days)
    assert [error.field for error in info.value.errors] == ["expires_in_days"]
    assert recorded() == []


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "x" * 10_000, "a\0b", "a\u202eb", "a\nb"])
def test_create_and_rename_refuse_a_bad_name(actor: Actor, name: str) -> None:
    key, _ = _create(actor)
    for attempt in (lambda: _create(actor, name), lambda: lifecycle.rename(actor, key.id, name)):
        with pytest.raises(Invalid) as info:
            attempt()
        assert [error.field for error in info.value.errors] == ["name"]
    assert len(recorded()) == 1


def test_create_and_rename_refuse_a_name_that_is_taken(actor: Actor) -> None:
    _create(actor, "Straße")
    other, _ = _create(actor, "Other")
    for attempt in (
        lambda: _create(actor, "STRASSE"),
        lambda: lifecycle.rename(actor, other.id, "strasse"),
    ):
        with pytest.raises(Invalid, match="Another active key has this name") as info:
            attempt()
        assert info.value.errors[0].field == "name"
    assert [event.action for event in recorded()] == ["key.created", "key.created"]
    assert db.session.get_one(ApiKey, other.id).name == "Other"


def test_key_of_no_organization_is_no_matter_of_its_name(app: Flask) -> None:
    with pytest.raises(IntegrityError):
        _create(Actor.system(10**9))


def test_name_is_free_in_another_organization_and_after_a_revoke(actor: Actor) -> None:
    first, _ = _create(actor)
    _create(Actor.system(factories.organization().id))
    lifecycle.revoke(actor, first.id)
    assert _create(actor)[0].name == first.name


def test_key_as_a_name_is_kept_as_its_hint_only(actor: Actor) -> None:
    token = tokens.mint()
    key, _ = _create(actor, f"my {token}")
    assert key.name == f"my {tokens.hint(token)}…"
    assert lifecycle.rename(actor, key.id, token).name == f"{tokens.hint(token)}…"


def test_same_name_created_at_the_same_moment_is_taken_once(app: Flask, actor: Actor) -> None:
    barrier, outcomes = Barrier(4), []

    def attempt() -> None:
        with app.app_context():
            barrier.wait()
            try:
                _create(actor)
                outcomes.append("made")
            except Invalid:
                outcomes.append("taken")

    threads = [Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made", "taken", "taken", "taken"]
    assert len(recorded(Action.KEY_CREATED)) == 1


def test_rename_records_the_name_before(actor: Actor) -> None:
    key, _ = _create(actor)
    assert lifecycle.rename(actor, key.id, "Zapier").name == "Zapier"
    assert lifecycle.rename(actor, key.id, "Zapier").name == "Zapier"
    assert lifecycle.rename(actor, key.id, "ZAPIER").name_folded == "zapier"
    first, second = recorded(Action.KEY_RENAMED)
    assert (first.target_name, first.detail) == ("Zapier", {"before": "Claude on laptop"})
    assert (second.target_name, second.detail) == ("ZAPIER", {"before": "Zapier"})


def test_verbs_find_nothing_in_another_organization(actor: Actor) -> None:
    foreign, _ = factories.api_key(factories.organization())
    for number in (foreign.id, 0, 10**9, 10**30):
        for attempt in (lifecycle.revoke, lambda a, i: lifecycle.rename(a, i, "Mine")):
            with pytest.raises(NotFound, match="no such key"):
                attempt(actor, number)
    assert recorded() == []
    assert db.session.get_one(ApiKey, foreign.id).revoked_at is None


def test_revoke_records_who_and_why(actor: Actor, fake_clock: Clock) -> None:
    key, _ = _create(actor)
    token = tokens.mint()
    key = lifecycle.revoke(actor, key.id, f" lost the laptop, {token} ")
    reason = f"lost the laptop, {tokens.hint(token)}…"
    assert (key.revoked_at, key.released_at) == (clock.now(), clock.now())
    assert (key.revoked_by_name, key.revoke_reason) == ("Maya", reason)
    assert key.status is KeyStatus.REVOKED
    assert not key.works
    (event,) = recorded(Action.KEY_REVOKED)
    assert (event.target_name, event.detail) == (key.name, {"reason": reason})


def test_revoke_twice_keeps_the_first_time(actor: Actor, fake_clock: Clock) -> None:
    key, _ = _create(actor)
    lifecycle.revoke(actor, key.id)
    first = clock.now()
    fake_clock.advance(hours=1)
    again = lifecycle.revoke(Actor.system(actor.organization_id), key.id, "again")
    assert (again.revoked_at, again.revoked_by_name, again.revoke_reason) == (first, "Maya", None)
    assert len(recorded(Action.KEY_REVOKED)) == 1


@pytest.mark.parametrize("reason", ["x" * 301, "a\0b", "two\nlines"])
def test_revoke_refuses_a_bad_reason(actor: Actor, reason: str) -> None:
    key, _ = _create(actor)
    with pytest.raises(Invalid) as info:
        lifecycle.revoke(actor, key.id, reason)
    assert info.value.errors[0].field == "reason"
    assert db.session.get_one(ApiKey, key.id).works


def test_status_follows_the_clock(actor: Actor, fake_clock: Clock) -> None:
    key, _ = _create(actor, expires_in_days=30)
    seen = [key.status]
    for step in (
        {"days": 15, "hours": 23},
        {"hours": 1},
        {"days": 14, "seconds": -1},
        {"seconds": 1},
    ):
        fake_clock.advance(**step)
        seen.append(key.status)
    assert seen == ["active", "active", "expiring", "expiring", "expired"]
    assert key.rotate_by == clock.months_after(key.created_at, 6).date()


def test_expired_key_gives_up_its_name(actor: Actor, fake_clock: Clock) -> None:
    first, _ = _create(actor, expires_in_days=1)
    other, _ = _create(actor, "Other", expires_in_days=2)
    fake_clock.advance(days=1)
    second, _ = _create(actor)
    assert db.session.get_one(ApiKey, first.id).released_at == first.expires_at
    fake_clock.advance(days=1)
    assert lifecycle.rename(actor, second.id, "OTHER").name == "OTHER"
    expired = recorded(Action.KEY_EXPIRED)
    assert [(event.actor, event.target_id) for event in expired] == [
        ("system", str(first.id)),
        ("system", str(other.id)),
    ]
    revoked = lifecycle.revoke(actor, first.id)
    assert revoked.released_at == revoked.expires_at


def test_events_keep_the_name_the_key_had(actor: Actor) -> None:
    key, _ = _create(actor, "Before")
    with transaction() as session:
        audit_log.record(session, Actor.of_key(key, ORIGIN), Action.BOOKING_LISTED)
    lifecycle.rename(actor, key.id, "After")
    (event,) = recorded(Action.BOOKING_LISTED)
    assert (event.key_id, event.key_name) == (key.id, "Before")

"""Whose key a call carries, what is noted of its use, and why one is refused."""

from datetime import timedelta
from threading import Barrier, Thread

import pytest
from flask import Flask

from convene_keys import clock, config
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Origin
from convene_keys.db.session import db, raw_connection, transaction, write
from convene_keys.errors import Unauthenticated
from convene_keys.keys import authentication, tokens
from convene_keys.models import ApiKey, Organization
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER
from tests.keys.test_lifecycle import ORIGIN, PEPPERS, recorded


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


def test_find_tells_whose_key_it_is(organization: Organization) -> None:
    key, token = factories.api_key(organization)
    assert authentication.authenticate(raw_connection(db.session()), token, PEPPERS).id == key.id
    with pytest.raises(Unauthenticated) as info:
        authentication.authenticate(raw_connection(db.session()), tokens.mint(), PEPPERS)
    assert info.value.code == "key_unknown"


def test_old_pepper_is_good_for_keys_made_under_it_only(organization: Organization) -> None:
    newest = "a newer pepper of at least 32 characters"
    row, token = factories.api_key(organization)
    row.pepper_id = config.pepper_id(newest)
    db.session.commit()
    with pytest.raises(Unauthenticated):
        authentication.authenticate(raw_connection(db.session()), token, [newest, PEPPER])


def test_use_moves_a_key_to_the_newest_pepper(organization: Organization) -> None:
    key, token = factories.api_key(organization)
    newest = "a newer pepper of at least 32 characters"
    with transaction() as session:
        found = authentication.authenticate(raw_connection(session), token, [newest, PEPPER])
        assert found.id == key.id
        write(session, authentication.usage_updates(found, token, ORIGIN, [newest, PEPPER]))
    db.session.refresh(key)
    assert key.pepper_id == config.pepper_id(newest)
    assert key.digest == tokens.digest(token, newest)
    assert authentication.authenticate(raw_connection(db.session()), token, [newest]).id == key.id
    with pytest.raises(Unauthenticated):
        authentication.authenticate(raw_connection(db.session()), token, PEPPERS)


def test_refusal_tells_why(organization: Organization, fake_clock: Clock) -> None:
    now = clock.now()
    _, working = factories.api_key(organization, "A", expires_at=now + timedelta(seconds=1))
    _, expired = factories.api_key(organization, "B", expires_at=now)
    _, revoked = factories.api_key(
        organization, "C", expires_at=now, revoked_at=now, released_at=now
    )
    assert (
        authentication.refusal(
            authentication.authenticate(raw_connection(db.session()), working, PEPPERS)
        )
        is None
    )
    for token, code in ((expired, "key_expired"), (revoked, "key_revoked")):
        problem = authentication.refusal(
            authentication.authenticate(raw_connection(db.session()), token, PEPPERS)
        )
        assert problem is not None
        assert (problem.status, problem.code) == (401, code)


def _use(key: ApiKey, token: str, origin: Origin) -> bool:
    """Note a use as the runner does; whether anything was to be written."""
    with transaction() as session:
        notes = authentication.usage_updates(
            authentication.authenticate(raw_connection(session), token, PEPPERS),
            token,
            origin,
            PEPPERS,
        )
        write(session, notes)
    db.session.refresh(key)
    return bool(notes)


def test_use_is_noted_with_time_address_and_tool(
    organization: Organization, fake_clock: Clock
) -> None:
    key, token = factories.api_key(organization)
    _use(key, token, Origin("2001:db8::1", f"bot {token} " + "x" * 500))
    assert (key.last_used_at, key.last_used_ip) == (clock.now(), "2001:db8::1")
    assert key.last_used_user_agent is not None
    assert token not in key.last_used_user_agent
    assert key.last_used_user_agent.startswith(f"bot {tokens.hint(token)}… xxx")
    assert len(key.last_used_user_agent) == 256
    _use(key, token, Origin())
    assert (key.last_used_ip, key.last_used_user_agent) == (None, None)


def test_use_is_noted_once_a_minute_but_a_new_place_or_tool_at_once(
    organization: Organization, fake_clock: Clock
) -> None:
    key, token = factories.api_key(organization)
    here, first = Origin("192.0.2.1", "curl/8"), clock.now()
    assert _use(key, token, here)
    fake_clock.advance(seconds=59)
    assert not _use(key, token, here)
    assert key.last_used_at == first
    assert _use(key, token, Origin("192.0.2.2", "curl/8"))
    assert _use(key, token, Origin("192.0.2.2", "wget/1"))
    assert (key.last_used_at, key.last_used_ip) == (clock.now(), "192.0.2.2")
    fake_clock.advance(seconds=60)
    assert _use(key, token, Origin("192.0.2.2", "wget/1"))
    assert key.last_used_at == clock.now()


def _refuse(key_id: int, code: str = "key_revoked") -> None:
    with transaction() as session:
        of = session.get_one(ApiKey, key_id).organization_id
        authentication.record_refusal(session, of, key_id, ORIGIN, code)


def test_refusal_is_recorded_at_most_once_a_minute_with_a_count(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, revoked_at=clock.now(), released_at=clock.now())
    other, _ = factories.api_key(organization, "B", revoked_at=clock.now(), released_at=clock.now())
    _refuse(key.id)
    for _ in range(3):
        fake_clock.advance(seconds=19)
        _refuse(key.id)
    _refuse(other.id)
    fake_clock.advance(seconds=3)
    _refuse(key.id)
    events = recorded(Action.KEY_REFUSED)
    assert [(event.key_id, event.detail["count"], event.outcome) for event in events] == [
        (key.id, 1, "denied"),
        (other.id, 1, "denied"),
        (key.id, 4, "denied"),
    ]
    assert events[0].detail == {"count": 1, "code": "key_revoked"}
    assert (events[0].key_name, events[0].ip) == ("Claude on laptop", "192.0.2.7")
    db.session.refresh(key)
    assert (key.refused_count, key.refused_at) == (5, clock.now())


def test_refusals_at_the_same_moment_are_all_counted(
    app: Flask, organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, revoked_at=clock.now(), released_at=clock.now())
    key_id, barrier = key.id, Barrier(4)

    def attempt() -> None:
        with app.app_context():
            barrier.wait()
            for _ in range(3):
                _refuse(key_id)

    threads = [Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.session.rollback()
    assert key.refused_count == 12
    assert [event.detail["count"] for event in recorded(Action.KEY_REFUSED)] == [1]


def test_first_refusal_of_an_expired_key_notes_that_it_expired(
    organization: Organization, fake_clock: Clock
) -> None:
    key, _ = factories.api_key(organization, expires_at=clock.now())
    _refuse(key.id, "key_expired")
    fake_clock.advance(minutes=2)
    _refuse(key.id, "key_expired")
    actions = [event.action for event in recorded()]
    assert actions == ["key.expired", "key.refused", "key.refused"]
    assert db.session.get_one(ApiKey, key.id).released_at == key.expires_at

"""Sessions: how long one lives, for how long its password counts, and how it ends."""

import pytest

from convene_keys import clock
from convene_keys.accounts import passwords, sessions, sign_in
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.models import Member, Organization
from tests import factories
from tests.accounts.conftest import HERE, PASSWORD, PEPPERS
from tests.accounts.test_sign_in import EMAIL, IDLE, MOST, attempts, happened, session_of, signed_in
from tests.conftest import Clock


@pytest.fixture(scope="module")
def stored() -> str:
    return passwords.hash_password(PASSWORD, PEPPERS)


@pytest.fixture
def maya(organization: Organization, stored: str) -> Member:
    return factories.member(organization, email=EMAIL, password_hash=stored)


def test_session_ends_when_idle(maya: Member, fake_clock: Clock) -> None:
    token = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    fake_clock.advance(minutes=119, seconds=59)
    session = session_of(token)
    assert session is not None
    assert sessions.note_seen(session.id, session.last_seen_at)
    fake_clock.advance(minutes=119, seconds=59)
    assert session_of(token) is not None
    fake_clock.advance(seconds=1)
    assert session_of(token) is None


def test_session_ends_at_its_greatest_age(maya: Member, fake_clock: Clock) -> None:
    token = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    for _ in range(24):
        session = session_of(token)
        assert session is not None
        sessions.note_seen(session.id, session.last_seen_at)
        fake_clock.advance(hours=1)
    assert session_of(token) is None
    assert sessions.sessions(db.session(), maya.id, idle=IDLE, most=MOST) == []


def test_being_seen_is_written_at_most_once_a_minute(maya: Member, fake_clock: Clock) -> None:
    session = signed_in()
    fake_clock.advance(seconds=59)
    assert not sessions.note_seen(session.id, session.last_seen_at)
    fake_clock.advance(seconds=1)
    assert sessions.note_seen(session.id, session.last_seen_at)
    db.session.refresh(session)
    assert session.last_seen_at == clock.now()


def test_session_of_a_disabled_member_is_dead(maya: Member) -> None:
    token = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    db.session.get_one(Member, maya.id).disabled_at = clock.now()
    db.session.commit()
    assert session_of(token) is None


def test_session_is_fresh_for_thirty_minutes_after_the_password(
    maya: Member, fake_clock: Clock
) -> None:
    session = signed_in()
    fake_clock.advance(minutes=29, seconds=59)
    assert sessions.is_recent(session)
    fake_clock.advance(seconds=1)
    assert not sessions.is_recent(session)
    sign_in.check_password(maya, session.id, PASSWORD, HERE, PEPPERS)
    db.session.refresh(session)
    assert sessions.is_recent(session)
    assert attempts() == 0


def test_signed_out_session_is_dead(maya: Member) -> None:
    token = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    other = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    session = session_of(token)
    assert session is not None
    sessions.sign_out(Actor.of_member(maya, HERE), session.id)
    assert session_of(token) is None
    assert session_of(other) is not None
    assert happened()[-1] == ("member.signed_out", "ok")


def test_sessions_lists_the_one_used_last_first(maya: Member, fake_clock: Clock) -> None:
    first = signed_in()
    fake_clock.advance(minutes=1)
    second = signed_in()
    assert [s.id for s in sessions.sessions(db.session(), maya.id, idle=IDLE, most=MOST)] == [
        second.id,
        first.id,
    ]
    fake_clock.advance(minutes=2)
    sessions.note_seen(first.id, first.last_seen_at)
    assert [s.id for s in sessions.sessions(db.session(), maya.id, idle=IDLE, most=MOST)] == [
        first.id,
        second.id,
    ]

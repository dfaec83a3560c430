"""Signing in and the password: who gets a session, how guessing is slowed, what a new one ends."""

from collections.abc import Callable
from datetime import timedelta
from threading import Barrier, Thread

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys import clock
from convene_keys.accounts import passwords, sessions, sign_in
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.errors import Invalid, NotFound, TooMany
from convene_keys.models import AuditEvent, Member, Organization, SignInAttempt, SignInSession
from tests import factories
from tests.accounts.conftest import HERE, PASSWORD, PEPPERS
from tests.conftest import Clock
from tests.databases import PEPPER

EMAIL = "maya@example.org"
IDLE, MOST = timedelta(minutes=120), timedelta(hours=24)


@pytest.fixture(scope="module")
def stored() -> str:
    return passwords.hash_password(PASSWORD, PEPPERS)


@pytest.fixture
def maya(organization: Organization, stored: str) -> Member:
    return factories.member(organization, email=EMAIL, password_hash=stored)


def signed_in(
    password: str = PASSWORD,
    email: str = EMAIL,
    origin: Origin = HERE,
    peppers: list[str] = PEPPERS,
) -> SignInSession:
    token = sign_in.sign_in(email, password, origin, peppers)
    found = session_of(token)
    assert found is not None
    return found


def session_of(token: str) -> SignInSession | None:
    db.session.rollback()
    return sessions.session_of(db.session(), token, idle=IDLE, most=MOST)


def guess(email: str = EMAIL, ip: str | None = "192.0.2.1", times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Invalid):
            sign_in.sign_in(email, "wrong password", Origin(ip), PEPPERS)


def happened() -> list[tuple[str, str]]:
    db.session.rollback()
    events = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id))
    return [(event.action, event.outcome) for event in events]


def attempts() -> int:
    return db.session.scalar(select(func.count()).select_from(SignInAttempt)) or 0


def test_sign_in_makes_a_session_and_an_event(maya: Member, fake_clock: Clock) -> None:
    session = signed_in()
    assert session.member_id == maya.id
    assert (session.ip, session.user_agent) == ("192.0.2.1", "Firefox")
    assert session.created_at == session.last_seen_at == session.password_checked_at == clock.now()
    assert happened() == [("member.signed_in", "ok")]
    assert attempts() == 0


@pytest.mark.parametrize("email", ["MAYA@example.org", "  maya@Example.ORG ", "maya\0@example.org"])
def test_sign_in_takes_the_email_as_people_type_it(maya: Member, email: str) -> None:
    assert signed_in(email=email).member_id == maya.id


def test_token_is_kept_as_a_digest_only(maya: Member) -> None:
    token = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    session = session_of(token)
    assert session is not None
    assert token.encode() not in session.digest
    assert session_of(token + "x") is None
    assert session_of("\ud800") is None
    assert session_of("") is None


def test_sign_in_fails_alike_whatever_is_wrong(maya: Member, organization: Organization) -> None:
    factories.member(organization, email="new@example.org")
    gone = factories.member(
        organization, email="gone@example.org", password_hash=maya.password_hash
    )
    gone.disabled_at = clock.now()
    db.session.commit()
    messages = set()
    for email, password in (
        (EMAIL, "wrong password"),
        ("nobody@example.org", PASSWORD),
        ("new@example.org", PASSWORD),
        ("gone@example.org", PASSWORD),
        ("", ""),
        ("\ud800" + "x" * 10_000, "\ud800" + "x" * 10_000),
    ):
        with pytest.raises(Invalid) as info:
            sign_in.sign_in(email, password, HERE, PEPPERS)
        messages.add(info.value.errors)
    assert len(messages) == 1
    assert happened() == [("member.sign_in_failed", "failed")] * 3  # of those that exist
    assert db.session.scalar(select(func.count()).select_from(SignInSession)) == 0


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.org", "new@example.org"])
def test_sign_in_does_the_same_work_for_unknown_and_known_members(
    maya: Member, organization: Organization, email: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.member(organization, email="new@example.org")
    calls = []
    fits = passwords.fits
    monkeypatch.setattr(passwords, "fits", lambda *given: calls.append(given) or fits(*given))
    guess(email)
    assert len(calls) == 1


def test_sign_in_renews_a_hash_of_an_older_pepper_only(maya: Member, stored: str) -> None:
    signed_in()
    db.session.refresh(maya)
    assert maya.password_hash == stored, "nothing to renew"
    newest = ["a newer pepper of at least 32 characters", PEPPER]
    signed_in(peppers=newest)
    db.session.refresh(maya)
    assert maya.password_hash is not None
    assert maya.password_hash != stored
    assert not passwords.is_outdated(maya.password_hash, newest)
    signed_in(peppers=newest[:1])


def test_password_changed_while_signing_in_is_asked_for_again(
    maya: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = passwords.fits

    def meanwhile(*given: object) -> bool:
        db.session.get_one(Member, maya.id).password_hash = "another"
        db.session.commit()
        return fits(*given)

    monkeypatch.setattr(passwords, "fits", meanwhile)
    guess()


# Throttling ----------------------------------------------------------------------------------


def _throttled(email: str = EMAIL, ip: str | None = "192.0.2.1") -> TooMany:
    with pytest.raises(TooMany) as info:
        sign_in.sign_in(email, PASSWORD, Origin(ip), PEPPERS)
    return info.value


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower limits: 3 of an account and network, 5 of a network, 6 of an account."""
    monkeypatch.setattr(sign_in, "TRIES_PER_ACCOUNT_AND_NETWORK", 3)
    monkeypatch.setattr(sign_in, "TRIES_PER_NETWORK", 5)
    monkeypatch.setattr(sign_in, "TRIES_PER_ACCOUNT", 6)


def test_limits() -> None:
    assert sign_in.TRIES_PER_ACCOUNT_AND_NETWORK == 10
    assert sign_in.TRIES_PER_NETWORK == 50
    assert sign_in.TRIES_PER_ACCOUNT == 50
    assert timedelta(minutes=15) == sign_in.WINDOW


def test_account_is_throttled_from_one_network(maya: Member, fake_clock: Clock, few: None) -> None:
    guess(times=3)
    problem = _throttled()
    assert (problem.status, problem.headers) == (429, {"Retry-After": "900"})
    assert problem.detail == "There were too many tries. Please wait 15 minutes."
    assert signed_in(origin=Origin("198.51.100.1")).member_id == maya.id


def test_throttle_ends_when_the_window_moves_on(maya: Member, fake_clock: Clock, few: None) -> None:
    guess(times=2)
    fake_clock.advance(minutes=10)
    guess()
    fake_clock.advance(minutes=4, seconds=30)
    problem = _throttled()
    assert problem.headers == {"Retry-After": "30"}
    assert "wait a minute" in problem.detail
    fake_clock.advance(seconds=30)
    assert signed_in().member_id == maya.id


def test_tries_that_were_refused_do_not_lengthen_the_wait(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    guess(times=3)
    for _ in range(14):
        fake_clock.advance(minutes=1)
        _throttled()
    fake_clock.advance(minutes=1)
    assert signed_in().member_id == maya.id


def test_network_is_throttled_over_many_accounts(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    for number in range(5):
        guess(f"guess{number}@example.org")
    _throttled()
    _throttled("somebody@example.org")
    assert signed_in(origin=Origin("198.51.100.1")).member_id == maya.id


def test_account_is_throttled_over_many_networks(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    for number in range(6):
        guess(ip=f"192.0.2.{number}")
    _throttled(ip="198.51.100.1")
    guess("other@example.org", "198.51.100.1")


def test_network_of_a_recent_sign_in_is_not_shut_out_by_others(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    signed_in()
    for number in range(6):
        guess(ip=f"198.51.100.{number}")
    _throttled(ip="203.0.113.1")
    for number in range(5):
        guess(f"guess{number}@example.org")
    _throttled("guess9@example.org")

    assert signed_in().member_id == maya.id


def test_guessing_from_the_network_of_a_recent_sign_in_is_throttled(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    signed_in()
    guess(times=3)
    _throttled()


@pytest.mark.parametrize(("days", "ip"), [(91, "192.0.2.1"), (0, None)])
def test_network_is_known_for_a_while_and_by_its_address(
    maya: Member, fake_clock: Clock, few: None, days: int, ip: str | None
) -> None:
    signed_in(origin=Origin(ip))
    fake_clock.advance(days=days)
    for number in range(6):
        guess(ip=f"198.51.100.{number}")
    _throttled(ip=ip)


def test_ipv6_counts_by_its_64_bit_network(maya: Member, fake_clock: Clock, few: None) -> None:
    for number in range(3):
        guess(ip=f"2001:db8:1:2:{number}::1")
    _throttled(ip="2001:db8:1:2:ffff::9")
    guess(ip="2001:db8:1:3::1")


def test_ipv4_addresses_in_ipv6_form_are_told_apart(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    guess(ip="192.0.2.1", times=2)
    guess(ip="::ffff:192.0.2.1")
    _throttled(ip="192.0.2.1")
    guess(ip="::ffff:192.0.2.2")


def test_requests_without_an_address_share_one_count(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    guess(ip=None, times=3)
    _throttled(ip=None)


def test_success_forgets_the_tries_of_its_account_only(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    guess(times=2)
    guess("other@example.org", times=2)
    signed_in()
    assert attempts() == 2
    guess(times=2)


def test_old_tries_are_deleted(maya: Member, fake_clock: Clock) -> None:
    guess(times=2)
    fake_clock.advance(minutes=15)
    guess()
    assert attempts() == 1


def test_concurrent_guesses_cannot_exceed_the_limit(app: Flask, maya: Member, few: None) -> None:
    barrier, outcomes = Barrier(8), []

    def guess() -> None:
        with app.app_context():
            barrier.wait()
            try:
                sign_in.sign_in(EMAIL, "wrong password", HERE, PEPPERS)
            except (Invalid, TooMany) as problem:
                outcomes.append(problem.status)

    threads = [Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [422] * 3 + [429] * 5


def test_wrong_password_check_is_counted_and_recorded(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    session = signed_in()
    fake_clock.advance(hours=1)
    for _ in range(3):
        with pytest.raises(Invalid) as info:
            sign_in.check_password(maya, session.id, "wrong", HERE, PEPPERS)
        assert info.value.errors[0].field == "current_password"
    with pytest.raises(TooMany):
        sign_in.check_password(maya, session.id, PASSWORD, HERE, PEPPERS)
    db.session.refresh(session)
    assert not sessions.is_recent(session)
    assert happened()[1:] == [("member.sign_in_failed", "failed")] * 3
    # Nothing but this session waits.
    other = signed_in()
    sign_in.check_password(maya, other.id, PASSWORD, HERE, PEPPERS)


def test_password_check_is_not_slowed_down_by_tries_to_sign_in(
    maya: Member, fake_clock: Clock, few: None
) -> None:
    session = signed_in()
    guess(times=3)
    for number in range(3):
        guess(ip=f"198.51.100.{number}")
    _throttled()
    fake_clock.advance(minutes=1)
    sign_in.check_password(maya, session.id, PASSWORD, HERE, PEPPERS)
    db.session.refresh(session)
    assert session.password_checked_at == clock.now()
    _throttled()  # nor does it help who guesses


def _end_others(maya: Member, session: SignInSession) -> None:
    sessions.end_other_sessions(Actor.of_member(maya, HERE), session.id)


def _change_password(maya: Member, session: SignInSession) -> None:
    actor = Actor.of_member(maya, HERE)
    sign_in.change_password(actor, maya, session.id, "quartz ladder monsoon fig", PEPPERS)


@pytest.mark.parametrize(
    ("end", "action"),
    [(_end_others, "member.sessions_ended"), (_change_password, "member.password_changed")],
)
def test_other_sessions_of_the_member_end(
    maya: Member,
    organization: Organization,
    end: Callable[[Member, SignInSession], None],
    action: str,
) -> None:
    mine = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    elsewhere = sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    _, colleague = factories.session(factories.member(organization))
    session = session_of(mine)
    assert session is not None
    end(maya, session)
    assert session_of(mine) is not None
    assert session_of(elsewhere) is None
    assert session_of(colleague) is not None
    assert happened()[-1] == (action, "ok")
    assert len(sessions.sessions(db.session(), maya.id, idle=IDLE, most=MOST)) == 1


def test_changed_password_is_the_one_that_fits(maya: Member) -> None:
    _change_password(maya, signed_in())
    guess()
    with pytest.raises(Invalid):
        sign_in.sign_in(EMAIL, PASSWORD, HERE, PEPPERS)
    assert signed_in("quartz ladder monsoon fig").member_id == maya.id


def test_change_to_a_weak_password_is_refused(maya: Member) -> None:
    session = signed_in()
    for weak in ("short", "Riverside Market Maya", "maya@example.org!"):
        with pytest.raises(Invalid) as info:
            sign_in.change_password(Actor.of_member(maya, HERE), maya, session.id, weak, PEPPERS)
        assert info.value.errors[0].field == "new_password"
    assert happened() == [("member.signed_in", "ok")]


def test_session_by_a_link_needs_a_member_who_may_sign_in(maya: Member) -> None:
    guess(times=2)
    token = sign_in.start_session(maya.id, HERE)
    session = session_of(token)
    assert session is not None
    assert session.member_id == maya.id
    assert attempts() == 0
    assert happened()[-1] == ("member.signed_in", "ok")
    db.session.get_one(Member, maya.id).disabled_at = clock.now()
    db.session.commit()
    for number in (maya.id, 10**9):
        with pytest.raises(NotFound):
            sign_in.start_session(number, HERE)


def test_secret_in_a_browsers_name_is_cut(maya: Member) -> None:
    session = signed_in(origin=Origin("192.0.2.1", "fm_org_" + "a" * 38 + "x" * 300))
    assert session.user_agent == "fm_org_aaaa…"

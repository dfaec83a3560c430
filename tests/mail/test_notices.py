"""What is told by mail, to whom, and that it never stands in the way of what it tells of."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys import create_app
from convene_keys.accounts import members, passwords, sign_in
from convene_keys.audit.log import Actor, Origin
from convene_keys.db.session import db
from convene_keys.keys import lifecycle
from convene_keys.leaks import reports
from convene_keys.mail import notices
from convene_keys.models import (
    ApiKey,
    AuditEvent,
    Mail,
    Member,
    Organization,
    Role,
    Scope,
    Tool,
)
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER, environ
from tests.mailbox import SENDER

pytestmark = pytest.mark.on_sqlite

SITE = "https://keys.example.org"
MAIL_ON = {"MAIL_URL": "smtp://127.0.0.1:1", "MAIL_FROM": SENDER, "BASE_URL": SITE}
PASSWORD = "plum kettle orbit sandal"
MAC = "Mozilla/5.0 (Macintosh) AppleWebKit Chrome/140 Safari"
PHONE = "Mozilla/5.0 (iPhone) AppleWebKit Safari"
HOME = Origin("203.0.113.9", MAC)


@contextmanager
def mailing(database_url: str, **settings: str) -> Iterator[Flask]:
    app = create_app(environ(database_url, **settings))
    app.testing = True
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    with mailing(database_url, **MAIL_ON) as app:
        yield app


@pytest.fixture
def off(database_url: str) -> Iterator[Flask]:
    """The same without MAIL_URL."""
    with mailing(database_url) as app:
        yield app


@pytest.fixture
def organization(app: Flask, fake_clock: Clock) -> Organization:
    return factories.organization(timezone="Europe/Stockholm")


@pytest.fixture
def maya(organization: Organization) -> Member:
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    return factories.member(organization, email="maya@example.org", password_hash=hashed)


def add_others(organization: Organization) -> None:
    """Besides Maya: a manager, a viewer, and admins invited and disabled; another organization."""
    factories.member(organization, "manager", "Noor", email="noor@example.org", password_hash="set")
    factories.member(organization, "viewer", "Vic", email="vic@example.org", password_hash="set")
    factories.member(organization, "admin", "Ida", email="ida@example.org")  # who only was invited
    gone = factories.member(
        organization, "admin", "Gus", email="gus@example.org", password_hash="set"
    )
    gone.disabled_at = gone.created_at
    db.session.commit()
    factories.member(factories.organization(), "admin", "Zoe", email="zoe@example.org")


@pytest.fixture
def team_of_four(organization: Organization, maya: Member) -> None:
    add_others(organization)


def mails(kind: str | None = None) -> list[Mail]:
    db.session.rollback()
    query = select(Mail).order_by(Mail.id)
    return list(db.session.scalars(query if kind is None else query.where(Mail.kind == kind)))


def recipients(kind: str | None = None) -> list[str]:
    return [mail.recipient for mail in mails(kind)]


def create(maya: Member, name: str = "Claude on laptop") -> tuple[ApiKey, str]:
    return lifecycle.create(
        Actor.of_member(maya, HOME),
        name=name,
        tool=Tool.CLAUDE,
        scope=Scope.READ_WRITE,
        expires_in_days=30,
        peppers=[PEPPER],
        created_by_id=maya.id,
    )


# Keys ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("team_of_four")
def test_new_key_is_told_to_active_admins_and_managers_without_the_secret(maya: Member) -> None:
    key, secret = create(maya)
    assert recipients() == ["maya@example.org", "noor@example.org"]
    for mail in mails():
        assert (mail.kind, mail.subject) == ("key_created", "New API key: Claude on laptop")
        for form in (mail.text, mail.html):
            assert "Maya" in form
            assert "read and change" in form
            assert "24 Dec 2026, 13:00 CET" in form
            assert "203.0.113.9, Chrome on Mac" in form
            assert f"{SITE}/admin/api_keys/{key.id}" in form
            assert secret not in form
            assert secret[7:] not in form


@pytest.mark.usefixtures("team_of_four")
def test_revoked_key_is_told_once(maya: Member) -> None:
    key, _ = create(maya)
    for _ in range(2):
        lifecycle.revoke(Actor.of_member(maya, HOME), key.id, "Laptop lost")
    assert recipients("key_revoked") == ["maya@example.org", "noor@example.org"]
    [mail, _] = mails("key_revoked")
    assert "Reason: Laptop lost\n" in mail.text
    assert "Maya revoked the API key “Claude on laptop”" in mail.text


@pytest.mark.parametrize("revoked", [False, True])
def test_key_that_leaked_is_told_as_such_also_when_it_was_revoked_before(
    maya: Member, revoked: bool
) -> None:
    key, token = create(maya)
    if revoked:
        lifecycle.revoke(Actor.of_member(maya, HOME), key.id)
    before = len(mails("key_revoked"))
    url = "https://code.example.org/a"
    for _ in range(2):
        reports.report([reports.Finding(token=token, type="convene", url=url)], HOME, [PEPPER])
        reports.report_own(Actor.of_member(maya, HOME), key.id)
    assert len(mails("key_revoked")) == before
    [mail] = mails("key_leaked")
    assert mail.subject == "API key leaked and revoked: Claude on laptop"
    assert f"{SITE}/admin/api_keys/{key.id}/leak" in mail.text
    assert token not in mail.text


def test_names_do_no_harm(maya: Member) -> None:
    create(maya, "<script>alert(1)</script> {{ 7 * 7 }} & co")
    [mail] = mails()
    assert "<script>" not in mail.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} &amp; co" in mail.html
    assert "“<script>alert(1)</script> {{ 7 * 7 }} & co”" in mail.text


def test_html_loads_nothing(maya: Member) -> None:
    create(maya)
    [mail] = mails()
    assert not re.search(r"<(img|link|script|style|iframe|form)|src=|url\(|style=", mail.html)


def test_secret_in_a_reason_is_cut(maya: Member) -> None:
    key, secret = create(maya)
    lifecycle.revoke(Actor.of_member(maya, HOME), key.id, f"it is {secret}")
    assert not any(secret in f"{m.subject}{m.text}{m.html}" for m in mails())


def test_action_that_fails_sends_nothing(maya: Member) -> None:
    create(maya)
    with pytest.raises(Exception, match="Another active key"):
        create(maya)
    assert len(mails()) == 1


@pytest.mark.usefixtures("team_of_four")
def test_notice_that_fails_lets_the_action_be(
    maya: Member, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        db.session.add(Mail(organization_id=maya.organization_id))  # lacks what it needs
        db.session.flush()

    monkeypatch.setattr(notices, "post", broken)
    key, _ = create(maya)
    lifecycle.revoke(Actor.of_member(maya, HOME), key.id)
    assert "a notice could not be written" in caplog.text
    db.session.expire_all()
    assert db.session.get_one(ApiKey, key.id).revoked_at is not None
    assert db.session.scalar(select(func.count(AuditEvent.id))) == 2
    assert mails() == []


def test_nothing_is_written_while_mail_is_off(off: Flask, fake_clock: Clock) -> None:
    maya = factories.member(factories.organization())
    key, _ = create(maya)
    lifecycle.revoke(Actor.of_member(maya, HOME), key.id)
    sign_in.start_session(maya.id, HOME)
    sign_in.start_session(maya.id, Origin("198.51.100.1", PHONE))
    assert mails() == []


# Members -------------------------------------------------------------------------------------------


def test_first_sign_in_and_the_usual_places_are_not_told(maya: Member, fake_clock: Clock) -> None:
    for _ in range(3):
        sign_in.sign_in(maya.email, PASSWORD, HOME, [PEPPER])
        fake_clock.advance(days=1)
    assert mails() == []


@pytest.mark.parametrize(
    "place",
    [Origin("198.51.100.1", MAC), Origin("203.0.113.9", PHONE), Origin("198.51.100.1", PHONE)],
)
def test_sign_in_from_a_new_place_or_browser_is_told_to_the_member(
    maya: Member, fake_clock: Clock, place: Origin
) -> None:
    factories.member(maya.organization, email="other@example.org")
    sign_in.sign_in(maya.email, PASSWORD, HOME, [PEPPER])
    fake_clock.advance(days=1)
    sign_in.sign_in(maya.email, PASSWORD, place, [PEPPER])
    assert recipients() == ["maya@example.org"]
    [mail] = mails()
    assert str(place.ip) in mail.text
    assert f"{SITE}/admin/settings/account" in mail.text
    sign_in.sign_in(maya.email, PASSWORD, place, [PEPPER])
    assert len(mails()) == 1


def test_same_network_of_ipv6_is_one_place(maya: Member, fake_clock: Clock) -> None:
    for ip in ("2001:db8:1:2::1", "2001:db8:1:2:aaaa::9"):
        sign_in.sign_in(maya.email, PASSWORD, Origin(ip, MAC), [PEPPER])
    assert mails() == []


def test_place_is_forgotten_after_ninety_days(maya: Member, fake_clock: Clock) -> None:
    sign_in.sign_in(maya.email, PASSWORD, HOME, [PEPPER])
    fake_clock.advance(days=90)
    sign_in.sign_in(maya.email, PASSWORD, HOME, [PEPPER])
    assert len(mails("signed_in")) == 1


def test_failed_sign_in_is_not_told(maya: Member) -> None:
    sign_in.sign_in(maya.email, PASSWORD, HOME, [PEPPER])
    with pytest.raises(Exception, match="not right"):
        sign_in.sign_in(maya.email, "wrong", Origin("198.51.100.1", PHONE), [PEPPER])
    assert mails() == []


@pytest.mark.usefixtures("team_of_four")
def test_new_member_is_told_and_so_are_the_admins_without_the_link(maya: Member) -> None:
    actor = Actor.of_member(maya, HOME)
    _, code = members.invite(actor, name="Jo", email="jo@example.org", role=Role.MANAGER)
    assert recipients("welcome") == ["jo@example.org"]
    assert recipients("member_added") == ["maya@example.org"]
    assert len(mails()) == 2
    [welcome] = mails("welcome")
    assert "please ask “Maya” for it" in welcome.text
    assert f"{SITE}/login" in welcome.text
    assert not any(code in mail.text or "welcome?" in mail.text for mail in mails())


# What mail programs make a link of by themselves.
LINKS = re.compile(r"\w+://|www\.\w|\w[.。．｡]\w|\w@\w")
HOSTILE = (
    "Your account is locked, visit evil.example/now",
    "http://evil.example win",
    "https:evil.example",
    "www.evil.example",
    "mail help@evil.example",
    "EVIL。EXAMPLE",
    "Ab" + "x" * 98,
)


@pytest.mark.parametrize("name", HOSTILE)
def test_stranger_gets_one_mail_in_which_names_do_no_harm(
    organization: Organization, maya: Member, name: str
) -> None:
    maya.name = organization.name = name
    db.session.commit()
    actor = Actor.of_member(maya, HOME)
    jo, _ = members.invite(actor, name=name, email="jo@stranger.test", role=Role.MANAGER)
    members.invitation(actor, jo.id)
    create(maya, name)
    members.invite(actor, name="Al", email="al@stranger.test", role=Role.ADMIN)

    [mail] = [mail for mail in mails() if mail.recipient == "jo@stranger.test"]
    assert len(mail.subject) <= 78
    for text in (mail.subject, mail.text, mail.html):
        ours = text.replace(SITE, "").replace("jo@stranger.test", "")
        assert not LINKS.search(re.sub(r"<[^>]+>", "", ours))
        assert not re.search(rf"(?<!“){re.escape(name[:9])}", ours), "a name without quotes"
    assert "If you don’t know them, there is nothing to do" in mail.text
    assert len(mails("key_created")) == 1
    assert not LINKS.search(mails("key_created")[0].subject)


def test_names_of_people_stay_as_they_are() -> None:
    for name in ("Dr. Noor Haddad", "Zoë O’Neil-Ruiz", "نور حداد", "Old Harbour (No. 3)", "A/B: x"):
        assert notices.inert(name) == name


@pytest.mark.usefixtures("team_of_four")
def test_member_is_told_of_a_link_and_of_a_new_password(
    organization: Organization, maya: Member
) -> None:
    admin = Actor.of_member(factories.member(organization, name="Ann"), HOME)
    _, code = members.invitation(admin, maya.id)
    [mail] = mails()
    assert (mail.kind, mail.recipient) == ("link_made", "maya@example.org")
    assert "Ann made a link" in mail.text
    assert "It ends on: 27 Nov 2026, 13:00 CET" in mail.text
    assert "change your password now" in mail.text
    assert code not in mail.text

    members.accept(code, "amber cello thicket pond", HOME, [PEPPER])
    session, _ = factories.session(maya)
    sign_in.change_password(Actor.of_member(maya, HOME), maya, session.id, PASSWORD, [PEPPER])
    assert recipients("password") == ["maya@example.org"] * 2
    by_link, by_self = mails("password")
    assert "for your account at Riverside Market, by a link that Ann made." in by_link.text
    assert "for your account at Riverside Market." in by_self.text
    for mail in (by_link, by_self):
        assert "From: 203.0.113.9, Chrome on Mac" in mail.text
        assert "ask an admin of your organization now" in mail.text

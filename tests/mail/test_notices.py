"""What is told by mail, to whom, and that it never stands in the way of what it tells of."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys import create_app
from convene_keys.accounts import members, passwords, sign_in
from convene_keys.audit import seals
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.checkup import reminders
from convene_keys.cli import audit as audit_cli
from convene_keys.db.session import db, transaction
from convene_keys.keys import lifecycle
from convene_keys.leaks import reports
from convene_keys.mail import notices
from convene_keys.models import (
    ApiKey,
    AuditEvent,
    Mail,
    Member,
    Organization,
    Outcome,
    Role,
    Scope,
    Tool,
)
from tests import factories
from tests.conftest import Clock
from tests.databases import PEPPER, environ
from tests.mailbox import SENDER

pytestmark = pytest.mark.pages

SITE = "https://keys.example.org"
MAIL_ON = {"MAIL_URL": "smtp://127.0.0.1:1", "MAIL_FROM": SENDER, "BASE_URL": SITE}
PASSWORD = "plum kettle orbit sandal"
MAC = "Mozilla/5.0 (Macintosh) AppleWebKit Chrome/140 Safari"
PHONE = "Mozilla/5.0 (iPhone) AppleWebKit Safari"
HOME = Origin("203.0.113.9", MAC)


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    app = create_app(environ(database_url, **MAIL_ON))
    app.testing = True
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def off(database_url: str) -> Iterator[Flask]:
    """The same without MAIL_URL."""
    app = create_app(environ(database_url))
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def organization(app: Flask, fake_clock: Clock) -> Organization:
    return factories.organization(timezone="Europe/Stockholm")


@pytest.fixture
def maya(organization: Organization) -> Member:
    hashed = passwords.hash_password(PASSWORD, [PEPPER])
    return factories.member(organization, email="maya@example.org", password_hash=hashed)


@pytest.fixture
def team_of_four(organization: Organization, maya: Member) -> None:
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


# keys remind ---------------------------------------------------------------------------------------


def remind() -> list[Mail]:
    """What one run puts into the outbox, the weekly digest apart."""
    before = {mail.id for mail in mails("reminder")}
    made = reminders.remind()
    new = [mail for mail in mails("reminder") if mail.id not in before]
    assert made == len(new)
    return new


@pytest.mark.usefixtures("team_of_four")
def test_keys_to_replace_are_told_in_one_mail_and_once(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    create(maya, "Ends in a month")
    for name in ("Ann", "Bob"):
        factories.api_key(organization, name)
    assert remind() == []
    fake_clock.advance(days=17)  # the first one has 13 days left
    new = remind()
    assert [mail.recipient for mail in new] == ["maya@example.org", "noor@example.org"]
    assert "These keys are about to end\n- Ends in a month: stops working on 24 Dec" in new[0].text
    assert "Ann" not in new[0].text
    fake_clock.advance(days=1)
    assert remind() == []
    fake_clock.advance(days=73)
    assert remind() == []
    fake_clock.advance(days=1)  # three months
    text = remind()[0].text
    assert "replacement soon\n- Ann: 92 days old\n- Bob: 92 days old\n" in text
    assert "Ends in a month" not in text
    for _ in range(3):
        fake_clock.advance(days=20)
        assert remind() == []
    fake_clock.advance(days=29)  # six months
    assert "replacement now\n- Ann: 181 days old\n- Bob: 181 days old\n" in remind()[0].text
    for _ in range(10):
        fake_clock.advance(days=30)
        assert remind() == []


def test_organization_says_after_how_many_months(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    organization.rotate_months = 2
    db.session.commit()
    factories.api_key(organization)
    fake_clock.advance(days=30)
    assert "replacement soon" in remind()[0].text
    fake_clock.advance(days=31)
    assert "replacement now" in remind()[0].text


def test_one_mail_a_day(organization: Organization, maya: Member, fake_clock: Clock) -> None:
    factories.api_key(organization, "Ann")
    fake_clock.advance(days=92)
    assert len(remind()) == 1
    factories.api_key(organization, "Bob", expires_at=fake_clock.moment + timedelta(days=9))
    fake_clock.advance(hours=2)
    assert remind() == []
    fake_clock.advance(hours=22)
    [mail] = remind()
    assert "Bob" in mail.text
    assert "Ann" not in mail.text


def test_keys_that_ended_or_are_being_replaced_are_left_out(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    now = fake_clock.moment
    factories.api_key(organization, "Revoked", revoked_at=now, released_at=now)
    factories.api_key(organization, "Ended", expires_at=now)
    old, _ = factories.api_key(
        organization, "Old", released_at=now, expires_at=now.replace(year=2028)
    )
    factories.api_key(
        organization, "New", created_at=now + timedelta(days=150), predecessor_id=old.id
    )
    fake_clock.advance(days=200)
    assert remind() == []


def test_reminder_that_can_not_be_written_is_not_counted_as_given(
    organization: Organization, maya: Member, fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.api_key(organization)
    fake_clock.advance(days=200)
    with monkeypatch.context() as patch:
        patch.setattr(reminders, "post", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reminders.remind()
    assert len(remind()) == 1


def test_command_prints_how_many(
    app: Flask, organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    factories.api_key(organization)
    fake_clock.advance(days=200)
    result = app.test_cli_runner().invoke(args=["keys", "remind"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1\n", "")
    result = app.test_cli_runner().invoke(args=["keys", "remind"])
    assert result.stdout == "0\n"


def test_command_says_that_mail_is_off(off: Flask) -> None:
    result = off.test_cli_runner().invoke(args=["keys", "remind"])
    assert (result.exit_code, result.stdout) == (
        0,
        "Mail is off: set MAIL_URL and MAIL_FROM, then it can remind.\n",
    )


# The weekly digest ---------------------------------------------------------------------------------


def did(key: ApiKey, action: Action, times: int = 1, outcome: Outcome = Outcome.OK) -> None:
    with transaction() as session:
        for _ in range(times):
            record(session, Actor.of_key(key, HOME), action, outcome=outcome)


@pytest.mark.usefixtures("team_of_four")
def test_digest_comes_once_a_week_and_tells_what_each_key_did(
    organization: Organization, maya: Member, fake_clock: Clock, tmp_path: Path, app: Flask
) -> None:
    claude, _ = factories.api_key(organization, "Claude")  # on Tuesday, 24 November
    script, _ = factories.api_key(organization, "Script")
    stranger, _ = factories.api_key(factories.organization(), "Stranger")
    did(claude, Action.BOOKING_LISTED, 3)
    did(claude, Action.BOOKING_APPROVED)
    did(claude, Action.OFF_LIMITS, 2, Outcome.DENIED)
    did(script, Action.DASHBOARD_VIEWED, 12)
    did(stranger, Action.BOOKING_LISTED)
    reminders.remind()
    assert mails() == []  # it was not there last week
    fake_clock.moment = fake_clock.moment.replace(
        day=29, hour=22, minute=59
    )  # Sunday, 23:59 in Stockholm
    did(claude, Action.BOOKING_LISTED)
    fake_clock.advance(minutes=1)
    did(claude, Action.MARKET_LISTED, 7)  # next week
    for _ in range(3):
        reminders.remind()
        fake_clock.advance(days=1)
    assert [m.recipient for m in mails() if m.organization_id == organization.id] == [
        "maya@example.org",
        "noor@example.org",
    ]
    mail = mails("weekly")[0]
    assert mail.subject == "Your week with API keys, 23 Nov to 29 Nov"
    assert (
        "What each key did\n"
        "- Script: Looked at the dashboard (12)\n"
        "- Claude: Listed bookings (4), Approved a booking (1), was refused or failed (2)\n"
    ) in mail.text
    assert re.search(
        r"What the check-up found\n(- .+\n)*- 2 keys’ names say little: Claude, Script\n", mail.text
    )
    assert "Stranger" not in mail.text
    fake_clock.moment = fake_clock.moment.replace(month=12, day=7)
    reminders.remind()
    assert "- Claude: Listed markets (7)\n" in mails("weekly")[-2].text


def test_head_in_the_digest_is_a_witness(
    app: Flask, organization: Organization, maya: Member, fake_clock: Clock, tmp_path: Path
) -> None:
    key, _ = factories.api_key(organization)
    for action in (Action.BOOKING_LISTED, Action.MARKET_LISTED):
        did(key, action)
    fake_clock.advance(days=7)
    reminders.remind()
    factories.member(organization, "manager", "Noor", email="noor@example.org", password_hash="set")
    fake_clock.advance(days=7)
    reminders.remind()
    [_, mail, managers] = mails("weekly")
    for form in (managers.text, managers.html):
        assert "signature" not in form
        assert "audit verify" not in form
    assert mail.text.index("Open the audit log") < mail.text.index("audit verify")
    [line] = [line for line in mail.text.splitlines() if line.startswith('{"organization"')]
    file = tmp_path / "head"
    file.write_text(line)
    with file.open() as head:
        assert len(audit_cli.read_heads(head)) == 1
    command = ["audit", "verify", "--head", str(file)]
    assert app.test_cli_runner().invoke(args=command).exit_code == 0
    file.write_text(re.sub(r'"signature": "..', '"signature": "00', line))
    assert app.test_cli_runner().invoke(args=command).exit_code == 4
    assert seals.heads(db.session())[0].signature.hex() in mail.html


def test_finding_in_the_digest_names_at_most_so_many_keys(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    for number in range(reminders.NAMED + 2):
        factories.api_key(organization, f"Key {number}", creator=maya)
    fake_clock.advance(days=7)
    reminders.remind()
    [mail] = mails("weekly")
    assert "names say little: Key 0, Key 1, Key 2, Key 3, Key 4 and 2 more\n" in mail.text


@pytest.mark.usefixtures("team_of_four")
def test_digest_is_for_those_who_want_it(
    organization: Organization, maya: Member, fake_clock: Clock
) -> None:
    factories.api_key(organization)
    members.choose_mail(Actor.of_member(maya, HOME), weekly_digest=False)
    fake_clock.advance(days=7)
    reminders.remind()
    told = [m.recipient for m in mails("weekly") if m.organization_id == organization.id]
    assert told == ["noor@example.org"]

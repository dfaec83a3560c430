"""`keys remind`: which keys are to be replaced, and each week what they did; to whom, how often."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask

from convene_keys.accounts import members
from convene_keys.audit import seals
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, record
from convene_keys.checkup import reminders
from convene_keys.cli import audit as audit_cli
from convene_keys.db.session import db, transaction
from convene_keys.models import ApiKey, Mail, Member, Organization, Outcome
from tests import factories
from tests.conftest import Clock
from tests.mail.test_notices import HOME, MAIL_ON, add_others, create, mailing, mails

pytestmark = pytest.mark.on_sqlite


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
    return factories.member(organization, email="maya@example.org", password_hash="set")


@pytest.fixture
def team_of_four(organization: Organization, maya: Member) -> None:
    add_others(organization)


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

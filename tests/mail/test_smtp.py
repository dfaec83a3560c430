"""Handing a mail over: what arrives, and that a password goes to the right server alone."""

import smtplib
import ssl
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import update

from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.mail import outbox, smtp
from convene_keys.models import Mail, Member
from tests import factories
from tests.conftest import Clock
from tests.mail.conftest import deliver, mail, mailing, put
from tests.mailbox import SENDER, Mailbox


def test_mail_arrives_as_text_and_as_html(box: Mailbox, maya: Member, fake_clock: Clock) -> None:
    put(maya.organization_id)
    deliver()
    [message] = box.taken
    assert message["From"] == f"Convene Keys <{SENDER}>"
    assert message["To"] == "maya@example.org"
    assert message["Subject"] == "Number 0"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"].datetime == fake_clock.moment
    assert message["Message-ID"].endswith("@example.org>")
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert [part.get_content().strip() for part in message.iter_parts()] == [
        "Hello",
        "<p>Hello</p>",
    ]
    assert (mail().sent_at, mail().due_at, mail().error) == (fake_clock.moment, None, None)


@pytest.mark.parametrize("name", ["Mäyä’s läptop 🍐", "مفتاح", "x" * 100, ".", "=?utf-8?q?x?="])
def test_any_name_arrives_in_one_piece(box: Mailbox, maya: Member, name: str) -> None:
    put(maya.organization_id)
    subject = f"New API key: {name}"
    text = f".\n..\nFrom {name}\n.\n{'long ' * 400}"
    db.session.execute(update(Mail).values(subject=subject, text=text))
    db.session.commit()
    deliver()
    [message] = box.taken
    assert " ".join(str(message["Subject"]).replace("\u2060", "").split()) == subject
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().splitlines() == text.splitlines()


def test_no_header_can_be_smuggled_in(box: Mailbox, maya: Member) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(subject="Hello\r\nBcc: eve@example.org"))
    db.session.commit()
    deliver()
    assert box.taken == []
    assert mail().given_up_at is not None


def test_mail_to_an_address_that_is_not_ascii_goes_to_nobody(box: Mailbox, maya: Member) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(recipient="måya@example.org"))
    db.session.commit()
    deliver()
    assert box.taken == []
    assert "not ASCII" in str(mail().error)
    assert mail().given_up_at is not None


@pytest.mark.parametrize(
    ("kind", "header"),
    [("weekly", "<http://127.0.0.1:8000/admin/settings/account#mail>"), ("key_leaked", None)],
)
def test_mail_that_can_be_switched_off_says_where(
    app: Flask, box: Mailbox, maya: Member, kind: str, header: str | None
) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(kind=kind))
    db.session.commit()
    assert outbox.deliver_next()
    assert box.taken[0]["List-Unsubscribe"] == header


def test_goodbye_that_fails_is_no_failure(
    box: Mailbox, maya: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(maya.organization_id)

    def quit(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("smtplib.SMTP.quit", quit)
    deliver()
    assert len(box.taken) == 1
    assert mail().sent_at is not None


# Signing in at the server --------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_password_goes_only_to_a_server_that_proves_who_it_is(
    sqlite_url: str,
    certificate: tuple[Path, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    path, context = certificate
    monkeypatch.setattr("convene_keys.config.is_loopback", lambda _: False)
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with Mailbox(tls=context, login=("us er", "p@ss:word")) as box:
        url = f"smtp://us%20er:p%40ss:word@localhost:{box.port}"
        app = mailing(sqlite_url, MAIL_URL=url)
        with app.app_context():
            put(factories.organization().id)
            deliver()
            if known:
                assert box.signed_in == [("us er", "p@ss:word")]
                assert len(box.taken) == 1
            else:
                assert (box.signed_in, box.taken) == ([], [])
                assert "CERTIFICATE_VERIFY_FAILED" in str(mail().error)
            db.session.remove()
            db.engine.dispose()


def test_password_is_not_sent_in_clear_where_the_server_has_no_encryption(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convene_keys.config.is_loopback", lambda _: False)
    with Mailbox(login=("maya", "secret")) as box:
        app = mailing(sqlite_url, MAIL_URL=f"smtp://maya:secret@localhost:{box.port}")
        with app.app_context():
            put(factories.organization().id)
            deliver()
            assert (box.signed_in, box.taken) == ([], [])
            assert "STARTTLS" in str(mail().error)
            db.session.remove()
            db.engine.dispose()


def test_wrong_password_is_told_without_it(sqlite_url: str) -> None:
    with Mailbox(login=("maya", "right")) as box:
        app = mailing(sqlite_url, MAIL_URL=f"smtp://maya:wr0ng-one@127.0.0.1:{box.port}")
        with app.app_context():
            put(factories.organization().id)
            deliver()
            assert box.taken == []
            assert "535" in str(mail().error)
            assert "wr0ng-one" not in str(mail().error)
            db.session.remove()
            db.engine.dispose()


@pytest.mark.parametrize("password", ["right", "wrong"])
def test_check_signs_in_and_hands_nothing_over(sqlite_url: str, password: str) -> None:
    with Mailbox(login=("maya", "right")) as box:
        app = mailing(sqlite_url, MAIL_URL=f"smtp://maya:{password}@127.0.0.1:{box.port}")
        if password == "right":
            smtp.check(app.config["SETTINGS"])
        else:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                smtp.check(app.config["SETTINGS"])
        assert (set(box.signed_in), box.taken) == ({("maya", password)}, [])


def test_what_went_wrong_is_one_short_line_without_a_key() -> None:
    secret = tokens.mint()
    error = smtplib.SMTPResponseException(554, f"no\r\n such\n{secret} {'x' * 300}".encode())
    assert smtp.why(error).startswith("SMTPResponseException: 554 no such ")
    assert secret not in smtp.why(error)
    assert len(smtp.why(error)) == 200
    assert smtp.why(TimeoutError()) == "TimeoutError:"

"""An organization whose mail goes to a real SMTP server, and its outbox."""

from collections.abc import Iterator

import pytest
from flask import Flask
from sqlalchemy import select

from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.mail import outbox
from convene_keys.models import Mail, Member
from tests import factories
from tests.conftest import Clock
from tests.databases import environ
from tests.mailbox import SENDER, Mailbox


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with Mailbox() as box:
        yield box


def mailing(database_url: str, **settings: str) -> Flask:
    return create_app(environ(database_url, MAIL_FROM=SENDER, **settings))


@pytest.fixture
def app(database_url: str, box: Mailbox) -> Iterator[Flask]:
    app = mailing(database_url, MAIL_URL=box.url)
    with app.app_context():
        yield app
        db.session.remove()
        assert db.engine.pool.checkedout() == 0, "something kept its connection"
        db.engine.dispose()


@pytest.fixture
def maya(app: Flask, fake_clock: Clock) -> Member:
    return factories.member(factories.organization(), password_hash="set")


def put(of: int, count: int = 1) -> None:
    """So many mails in the outbox."""
    for number in range(count):
        mail = Mail(organization_id=of, kind="test", recipient="maya@example.org")
        mail.subject, mail.text, mail.html = f"Number {number}", "Hello", "<p>Hello</p>"
        db.session.add(mail)
    db.session.commit()


def deliver() -> None:
    """All that is due now."""
    while outbox.deliver_next():
        pass


def mails() -> list[Mail]:
    db.session.rollback()
    return list(db.session.scalars(select(Mail).order_by(Mail.id)))


def mail() -> Mail:
    [mail] = mails()
    return mail

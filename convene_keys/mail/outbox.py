"""The outbox worker: a thread of each worker process that sends the mail waiting in the database.

A mail is sent at least once. Where a worker or the connection dies after the whole mail was sent and
before the server's answer, it is sent again, under the same Message-ID, but not for ever: of tries
whose end is not known there are so many at the most.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

from flask import Flask, current_app
from sqlalchemy import delete, select, update

from convene_keys import background, clock
from convene_keys.db.session import db, transaction
from convene_keys.mail import smtp
from convene_keys.models import Mail

EVERY = 5.0
LEASE = timedelta(minutes=5)  # for one try
PAUSES = tuple(timedelta(minutes=n) for n in (1, 5, 15, 60))
GIVE_UP_AFTER = timedelta(days=3)
UNSURE_MAX = 10  # each may have been a copy
NO_ANSWER = "the mail server never said that it took the mail"
KEPT = timedelta(days=30)
log = logging.getLogger(__name__)


def start(app: Flask, *, every: float = EVERY) -> Callable[[], None]:
    """Send what is due, looking every so many seconds, if mail is on. What is returned stops it."""
    if app.config["SETTINGS"].mail_server is None:
        return lambda: None
    return background.start(
        app, "outbox", deliver_next, every=every, failed="mail could not be sent"
    )


def deliver_next() -> bool:
    """Try the mail that is due first; whether there was one."""
    due = select(Mail.id, Mail.due_at).where(Mail.due_at <= clock.now())
    first = db.session.execute(due.order_by(Mail.due_at, Mail.id).limit(1)).first()
    db.session.rollback()  # a server may take its time: nothing is held meanwhile
    if first is None:
        return False
    with transaction() as session:
        mail = session.scalar(
            update(Mail)
            .where(Mail.id == first.id, Mail.due_at == first.due_at)
            .values(due_at=clock.now() + LEASE, attempts=Mail.attempts + 1, unsure=Mail.unsure + 1)
            .returning(Mail)
        )
        if mail is None:
            return True  # another worker was quicker
        session.expunge(mail)
    if mail.unsure > UNSURE_MAX:
        _failed(mail, NO_ANSWER, again=False)
        return True
    try:
        smtp.send(mail, current_app.config["SETTINGS"])
    except smtp.Unanswered as error:
        _failed(mail, smtp.why(error.reason), again=mail.unsure < UNSURE_MAX)
    except (OSError, ValueError) as error:  # smtplib's own are all of the one kind or the other
        mail.unsure -= 1
        _failed(mail, smtp.why(error), again=isinstance(error, OSError))
    else:
        _sent(mail)
    return True


def _failed(mail: Mail, error: str, *, again: bool) -> None:
    """Try a mail again later, or no more. Whoever has claimed it since decides that instead."""
    now = clock.now()
    again = again and now - mail.created_at < GIVE_UP_AFTER
    pause = PAUSES[min(mail.attempts, len(PAUSES)) - 1]
    with transaction() as session:
        session.execute(
            update(Mail)
            .where(Mail.id == mail.id, Mail.due_at == mail.due_at)
            .values(
                due_at=now + pause if again else None,
                given_up_at=None if again else now,
                unsure=mail.unsure,
                error=error,
            )
        )
    log.warning("mail %d was not sent%s: %s", mail.id, "" if again else ", for good", error)


def _sent(mail: Mail) -> None:
    """Keep that a mail was sent; and forget old ones."""
    now = clock.now()
    with transaction() as session:
        values = {"due_at": None, "sent_at": now, "unsure": 0, "error": None, "given_up_at": None}
        session.execute(update(Mail).where(Mail.id == mail.id).values(values))
        session.execute(delete(Mail).where(Mail.sent_at < now - KEPT))
        session.execute(delete(Mail).where(Mail.given_up_at < now - KEPT))

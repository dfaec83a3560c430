"""The postman: a thread of each worker that sends the mail which waits in the database.

A mail is sent exactly once wherever that can be known. It can't where a worker dies, or the
connection does, after the end of the mail was sent and before the server's answer: then it is sent
once more, under the same Message-ID, and never a third time.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from flask import Flask
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.exc import DBAPIError

from convene_keys import background, clock
from convene_keys.db.session import db, transaction
from convene_keys.models import Mail

EVERY = 5.0
LEASE = timedelta(minutes=5)  # for one try, whose every step may take 10 s
PAUSES = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
)
GIVE_UP_AFTER = timedelta(days=3)
UNSURE_MAX = 2
KEPT = timedelta(days=30)
MARK_TRIES = 60  # a second apart
log = logging.getLogger(__name__)


def start(app: Flask, *, every: float = EVERY) -> Callable[[], None]:
    """Send what is due, looking every so many seconds, if mail is on. See `rounds`."""
    if app.config["SETTINGS"].mail_server is None:
        return lambda: None
    return background.start(
        app, "postman", deliver_next, every=every, failed="mail could not be sent"
    )


def deliver_next() -> bool:
    """Try the mail that is due first; whether there was one."""
    from convene_keys.mail import smtp

    due = select(Mail.id, Mail.due_at).where(Mail.due_at <= clock.now())
    first = db.session.execute(due.order_by(Mail.due_at, Mail.id).limit(1)).first()
    db.session.rollback()  # a server may take its time: nothing is held meanwhile
    if first is None:
        return False
    mail = _claim(*first, attempts=Mail.attempts + 1)
    if mail is None:
        return True  # another worker was quicker
    if mail.unsure >= UNSURE_MAX:  # as whoever tried it last died
        _failed(mail, "the connection was lost at the very end: it may have arrived", False)
        return True
    held: Mail | None = mail

    def at_last() -> None:
        nonlocal held
        held = _claim(mail.id, mail.due_at, unsure=mail.unsure + 1)
        if held is None:
            raise TimeoutError("somebody else tries it by now")

    try:
        smtp.send(mail, at_last)
    except (OSError, ValueError) as error:  # smtplib's own are all of the one kind or the other
        if held is not None:
            if smtp.is_refusal(error):
                held.unsure = mail.unsure
            _failed(held, smtp.why(error), isinstance(error, OSError))
    else:
        _sent(mail)
    return True


def _claim(number: int, due_at: datetime | None, **values: int | ColumnElement[int]) -> Mail | None:
    """Have a mail to oneself for a while, unless it has been claimed since it was due at `due_at`."""
    with transaction() as session:
        mail = session.scalar(
            update(Mail)
            .where(Mail.id == number, Mail.due_at == due_at)
            .values(due_at=clock.now() + LEASE, **values)
            .returning(Mail)
        )
        if mail is not None:
            session.expunge(mail)
    return mail


def _failed(mail: Mail, error: str, worth_another_try: bool) -> None:
    """Try a mail again later, or no more."""
    now = clock.now()
    again = worth_another_try and mail.unsure < UNSURE_MAX and now - mail.created_at < GIVE_UP_AFTER
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
    """Keep that a mail was sent, as soon as the database can; and forget old ones."""
    for tries_left in reversed(range(MARK_TRIES)):
        try:
            with transaction() as session:
                now = clock.now()
                values = {"due_at": None, "sent_at": now, "error": None}
                session.execute(update(Mail).where(Mail.id == mail.id).values(values))
                session.execute(delete(Mail).where(Mail.sent_at < now - KEPT))
                session.execute(delete(Mail).where(Mail.given_up_at < now - KEPT))
            return
        except DBAPIError:  # it is known to be sent: better late than a second mail
            if not tries_left:
                raise
            time.sleep(1)

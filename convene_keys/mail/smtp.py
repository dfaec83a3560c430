"""Flask-Mailman's SMTP, made strict. Imported only where mail is really sent: it is 3 MB.

Certificates are checked, which its STARTTLS does not do; and a caller learns the moment from which on
nobody but the server knows whether it has taken the mail.
"""

import smtplib
import ssl
from collections.abc import Callable
from email.utils import format_datetime
from typing import Any

from flask import Flask, current_app
from flask_mailman import DNS_NAME, EmailMultiAlternatives
from flask_mailman import Mail as Mailman
from flask_mailman.backends.smtp import EmailBackend

from convene_keys.config import MailServer
from convene_keys.mail.notices import MAIL_SETTINGS, OPTIONAL
from convene_keys.models import Mail
from convene_keys.text import redact

TIMEOUT = 10  # seconds for each step
_END = b"\r\n.\r\n"  # after it the server has the whole mail (RFC 5321 §4.1.1.4)


class _Plain(smtplib.SMTP):
    at_last: Callable[[], None]

    def send(self, s: bytes | str) -> None:  # type: ignore[override]
        if isinstance(s, bytes) and s.endswith(_END):
            super().send(s[:-3])
            self.at_last()
            s = s[-3:]
        super().send(s)


class _Encrypted(_Plain, smtplib.SMTP_SSL):
    pass


class Backend(EmailBackend):  # type: ignore[misc]
    connection: Any

    def open(self) -> bool:
        if self.connection is not None:
            return False
        host = {"local_hostname": DNS_NAME.get_fqdn(), "timeout": self.timeout}
        connection: _Plain
        if self.use_ssl:
            context = ssl.create_default_context()
            connection = _Encrypted(self.host, self.port, context=context, **host)
        else:
            connection = _Plain(self.host, self.port, **host)
        try:
            if self.use_tls:
                connection.starttls(context=ssl.create_default_context())
            if self.username is not None:
                connection.login(self.username, self.password)
            connection.ehlo_or_helo_if_needed()
        except BaseException:
            connection.close()
            raise
        self.connection = connection
        return True


def init_app(app: Flask, server: MailServer, sender: str | None) -> None:
    app.config.update(
        MAIL_SERVER=server.host,
        MAIL_PORT=server.port,
        MAIL_USERNAME=server.username,
        MAIL_PASSWORD=server.password,
        MAIL_USE_TLS=server.starttls,
        MAIL_USE_SSL=server.tls,
        MAIL_TIMEOUT=TIMEOUT,
        MAIL_DEFAULT_SENDER=("Convene Keys", sender),
    )
    Mailman(app)


def send(mail: Mail, at_last: Callable[[], None]) -> None:
    """Hand `mail` over. `at_last` is called when only the end is left to be sent, and may refuse.

    Raises `smtplib.SMTPException`, `OSError`, `ValueError` for an address that can't be written to,
    and whatever `at_last` raises. What says that it is the same mail stays the same in every try.
    """
    if not mail.recipient.rpartition("@")[0].isascii():  # Flask-Mailman would write to another one
        raise ValueError("the address is not ASCII")
    _, sender = current_app.config["MAIL_DEFAULT_SENDER"]
    headers = {
        "Date": format_datetime(mail.created_at),
        "Message-ID": f"<{mail.id}.{mail.created_at:%Y%m%d%H%M%S%f}@{sender.partition('@')[2]}>",
        "Auto-Submitted": "auto-generated",  # so that no absence note answers (RFC 3834)
    }
    if mail.kind in OPTIONAL:  # RFC 2369 §3.2
        site = current_app.config["SETTINGS"].base_url
        headers["List-Unsubscribe"] = f"<{site}{MAIL_SETTINGS}>"
    message = EmailMultiAlternatives(
        mail.subject.replace(
            "=?", "=\u2060?"
        ),  # a name that looks like an encoded word stays as it is
        mail.text,
        to=[mail.recipient],
        headers=headers,
    )
    message.attach_alternative(mail.html, "text/html")
    backend, connection = _connected()
    connection.at_last = at_last
    try:
        backend.send_messages([message])
    except BaseException:
        connection.close()  # without a goodbye, which would become a part of the mail
        raise
    try:
        backend.close()
    except OSError:  # it is sent, whatever becomes of the goodbye
        connection.close()


def check() -> None:
    """Connect and sign in. Raises as `send` does."""
    backend, _ = _connected()
    backend.close()


def _connected() -> tuple[Backend, _Plain]:
    backend = Backend(mailman=current_app.extensions["mailman"])
    backend.open()
    connection: _Plain = backend.connection
    return backend, connection


def why(error: Exception) -> str:
    """What went wrong, in a line."""
    words = str(error)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        [(code, answer)] = error.recipients.values()
        words = f"{code} {answer.decode(errors='replace')}"
    elif isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        words = f"{error.smtp_code} {said.decode(errors='replace') if isinstance(said, bytes) else said}"
    return redact(" ".join(f"{type(error).__name__}: {words}".split()))[:200]


def is_refusal(error: Exception) -> bool:
    """Whether the server said that it did not take the mail."""
    return isinstance(error, smtplib.SMTPResponseException) and 400 <= error.smtp_code < 600

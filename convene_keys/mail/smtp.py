"""One mail handed over to the mail server. Certificates are checked."""

import smtplib
import ssl
from contextlib import closing, suppress
from email.header import Header
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.policy import SMTP, compat32
from email.utils import format_datetime

from convene_keys.config import Settings
from convene_keys.mail.notices import MAIL_SETTINGS, OPTIONAL
from convene_keys.models import Mail
from convene_keys.text import redact

# Seconds for each step. A server may examine a mail before it acknowledges it.
TIMEOUT = 30
CHECK_TIMEOUT = 10
_CRLF = compat32.clone(linesep="\r\n")


class Unanswered(Exception):
    """The mail may have been taken: the connection was lost, or the server fell silent."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def send(mail: Mail, settings: Settings) -> None:
    """Hand `mail` over.

    Raises `Unanswered`, or where it was not taken `smtplib.SMTPException`, `OSError`, or
    `ValueError` for an address that can't be written to. Its Message-ID is the same in every try,
    so that a second copy can be told to be one.
    """
    message = _message(mail, settings)
    with closing(_connect(settings, TIMEOUT)) as connection:
        content = message.as_bytes(policy=_CRLF)
        try:
            connection.sendmail(settings.mail_from or "", message["To"], content)
        except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused):
            raise
        except OSError as error:  # `SMTPServerDisconnected` among them
            raise Unanswered(error) from error
        with suppress(OSError):  # it is sent, whatever becomes of the goodbye
            connection.quit()


def check(settings: Settings) -> None:
    """Connect and sign in. Raises as `send` does."""
    with closing(_connect(settings, CHECK_TIMEOUT)) as connection:
        connection.quit()


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


def _connect(settings: Settings, timeout: int) -> smtplib.SMTP:
    server = settings.mail_server
    if server is None:
        raise ValueError("mail is off")
    context = ssl.create_default_context()
    connection: smtplib.SMTP
    if server.tls:
        connection = smtplib.SMTP_SSL(server.host, server.port, timeout=timeout, context=context)
    else:
        connection = smtplib.SMTP(server.host, server.port, timeout=timeout)
    try:
        if server.starttls:
            connection.starttls(context=context)
        if server.username is not None:
            connection.login(server.username, server.password or "")
        connection.ehlo_or_helo_if_needed()
    except BaseException:
        connection.close()
        raise
    return connection


def _message(mail: Mail, settings: Settings) -> MIMEMultipart:
    local, _, domain = mail.recipient.rpartition("@")
    if not local.isascii():
        raise ValueError("the address is not ASCII")
    subject = mail.subject.replace("=?", "=\u2060?")  # a name may look like an encoded word
    if "\n" in subject or "\r" in subject:
        raise ValueError("the subject is not one line")
    sender = settings.mail_from or ""
    message = MIMEMultipart("alternative")
    message["Subject"] = Header(subject, None if subject.isascii() else "utf-8").encode()
    message["From"] = f"Convene Keys <{sender}>"
    message["To"] = f"{local}@{domain.encode('idna').decode()}"
    message["Date"] = format_datetime(mail.created_at)
    number = f"{mail.id}.{mail.created_at:%Y%m%d%H%M%S%f}"
    message["Message-ID"] = f"<{number}@{sender.partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # so that no absence note answers (RFC 3834)
    if mail.kind in OPTIONAL:
        message["List-Unsubscribe"] = f"<{settings.base_url}{MAIL_SETTINGS}>"  # RFC 2369 §3.2
    for form, content in (("plain", mail.text), ("html", mail.html)):
        part = EmailMessage(policy=SMTP)
        part.set_content(content, subtype=form)
        del part["MIME-Version"]
        message.attach(part)
    return message

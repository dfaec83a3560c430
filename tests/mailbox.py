"""A real SMTP server on loopback, which keeps what it takes, and can behave badly."""

import asyncio
import email
import ssl
from email.message import EmailMessage
from email.policy import default
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from tests.servers import free_port

SENDER = "keys@example.org"


class Mailbox:
    """Counts as taken what was sent to its end, whether it then says so or not.

    `answer_rcpt` and `answer_data`: what it says there instead of yes; `hang`: that it says nothing
    after the end of a mail; `hang_up`: that it closes the connection there; `hang_before`: that it
    says nothing to RCPT.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, login: tuple[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.url = f"smtp://127.0.0.1:{self.port}"
        self.taken: list[EmailMessage] = []
        self.answer_rcpt = self.answer_data = ""
        self.hang = self.hang_before = self.hang_up = False
        self.signed_in: list[tuple[str, str]] = []
        self._tls, self._login = tls, login
        self._controller: Controller | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        options: dict[str, Any] = {}
        if self._login:
            encrypted = self._tls is not None
            options = {"auth_required": encrypted, "auth_require_tls": encrypted}
            options["authenticator"] = self._authenticate
        if self._tls:
            options |= {"tls_context": self._tls, "require_starttls": True}
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, **options)
        self._controller.start()

    def close(self) -> None:
        if self._controller is not None:
            self._controller.stop(no_assert=True)
            self._controller = None

    def ids(self) -> list[str]:
        return [str(message["Message-ID"]) for message in self.taken]

    def subjects(self) -> list[str]:
        return [str(message["Subject"]) for message in self.taken]

    async def handle_RCPT(
        self, _: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        while self.hang_before:
            await asyncio.sleep(0.01)
        if self.answer_rcpt:
            return self.answer_rcpt
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.answer_data:
            return self.answer_data
        message = email.message_from_bytes(envelope.content or b"", policy=default)
        assert isinstance(message, EmailMessage)
        assert envelope.rcpt_tos == [message["To"].addresses[0].addr_spec]
        self.taken.append(message)
        while self.hang:
            await asyncio.sleep(0.01)
        if self.hang_up and server.transport is not None:
            server.transport.abort()
        return "250 OK"

    def _authenticate(self, *args: Any) -> AuthResult:
        login = args[-1]
        given = (login.login.decode(), login.password.decode())
        self.signed_in.append(given)
        return AuthResult(success=given == self._login, handled=False)

"""An installation whose clock, randomness and rows are fixed, and the doors by which to reach it.

The rows are written as SQL, and what is derived (a key's checksum and digest, a session's digest)
is computed here by the words of the contract: so a database of today has to go on working, whatever
the code is called by then. Everything else goes through HTTP and the command line.

The names of the product that can't be avoided are imported here, and nowhere else in this folder.
"""

import base64
import contextvars
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bcrypt
from flask_migrate import upgrade

from convene_keys import clock, config, create_app
from convene_keys.audit.actions import Action
from convene_keys.config import ConfigError
from convene_keys.keys import tokens
from convene_keys.mail.outbox import deliver_next
from convene_keys.models import Outcome
from convene_keys.text import redact
from tests.databases import AUDIT_KEY, PEPPER, environ

# So that no other file here says what they are called.
__all__ = [
    "AUDIT_KEY",
    "PEPPER",
    "Action",
    "ConfigError",
    "Outcome",
    "create_app",
    "deliver_next",
    "pepper_id",
    "redact",
    "tokens",
]

SITE = "https://keys.example.org"
START = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PASSWORD = "seven lemons under the pier"
LINK_CODE = "the-code-of-a-sign-in-link"
# Where the disk of a database is memory, if there is such a place.
_QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
HINT = len("fm_org_") + 4
# Every answer may have these; they are looked at in headers.json, but for what the hour makes.
EVERYWHERE = {
    "Content-Security-Policy",
    "Cross-Origin-Opener-Policy",
    "Cross-Origin-Resource-Policy",
    "Permissions-Policy",
    "Referrer-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "Content-Length",
    "Date",
}

Json = dict[str, Any]


# By the words of the contract --------------------------------------------------------------------


def checksummed(body: str) -> str:
    """The key with this body of 32 characters."""
    number, digits = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return f"fm_org_{body}{digits.rjust(6, '0')}"


def pepper_id(pepper: str) -> str:
    return hashlib.sha256(b"convene-keys pepper id\0" + pepper.encode()).hexdigest()[:8]


def digest(token: str, pepper: str) -> bytes:
    return hmac.digest(pepper.encode(), token.encode(), "sha256")


def password_hash(password: str, pepper: str) -> str:
    """At the lowest cost and with a fixed salt."""
    inner = base64.b64encode(hmac.digest(pepper.encode(), password.encode(), "sha384"))
    return f"{pepper_id(pepper)}${bcrypt.hashpw(inner, b'$2b$04$' + b'abcdefghijklmnopqrstuu').decode()}"


KEY, READER, REVOKED, EXPIRED, ORPHAN, DRAFT, UNKNOWN = (
    checksummed((name + ALPHABET)[:32])
    for name in ("Key", "Reader", "Revoked", "Expired", "Orphan", "Draft", "Unknown")
)
SESSIONS = {1: "session of Maya", 3: "session of Ines"}


# The installation --------------------------------------------------------------------------------


@cache
def _database(*, furnished: bool) -> bytes:
    """The file of a database, made once: as the migrations make it, or with rows in it."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        path = Path(folder) / "golden.db"
        if furnished:
            path.write_bytes(_database(furnished=False))
            with _opened(path) as connection:
                _furnish(connection)
        else:
            app = create_app(environ(f"sqlite:///{path}"))
            with app.app_context():
                upgrade()
                app.extensions["sqlalchemy"].engine.dispose()
        return path.read_bytes()


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database from beside, in one transaction, which waits for no disk."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            yield connection


def _put(connection: sqlite3.Connection, table: str, *rows: Mapping[str, Any]) -> None:
    for row in rows:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks})",  # noqa: S608
            [_stored(value) for value in row.values()],
        )


class World:
    """Each request and each command is one turn: a second later, and with other random bytes."""

    def __init__(self, folder: Path, database: bytes, **settings: str) -> None:
        self.folder, self.path = folder, folder / "golden.db"
        self.path.write_bytes(database)
        self.turn, self.still = 0, False
        self.start(**settings)

    def start(self, **settings: str) -> None:
        """Begin, or begin again on the same database with other settings."""
        given = environ(f"sqlite:///{self.path}", BASE_URL=SITE, SUPPORT_EMAIL="help@example.org")
        load = config.load
        with patch.object(config, "load", lambda environ: load(environ, self.folder / "instance")):
            self.app = create_app({**given, **settings})
        self.app.testing = True
        self.app.config.update(PROPAGATE_EXCEPTIONS=False, WTF_CSRF_ENABLED=False)

    def stop(self) -> None:
        with self.app.app_context():
            self.app.extensions["sqlalchemy"].engine.dispose()

    def now(self) -> datetime:
        return START + timedelta(seconds=self.turn)

    def random(self, count: int) -> bytes:
        """Bytes that differ from turn to turn; the first is small, so that any choice ends."""
        return bytes((self.turn % 60 * 4 + n) % 240 for n in range(count))

    def bits(self, count: int) -> int:
        """As `random.SystemRandom` takes them from bytes."""
        size = (count + 7) // 8
        return int.from_bytes(self.random(size)) >> (size * 8 - count)

    def put(self, table: str, *rows: Mapping[str, Any]) -> None:
        with _opened(self.path) as connection:
            _put(connection, table, *rows)

    def sql(self, statement: str) -> None:
        with _opened(self.path) as connection:
            connection.execute(statement)

    def rows(self, query: str) -> list[Json]:
        """As the database holds them."""
        with _opened(self.path) as connection:
            return [dict(row) for row in connection.execute(query)]

    def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        member: int | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Json:
        """The answer, with its request's id masked."""
        self.turn += not self.still
        client = self.app.test_client()
        if member is not None:
            with client.session_transaction(base_url=SITE) as cookie:
                cookie.update(_user_id=SESSIONS[member], _fresh=True)
        sent = {"User-Agent": "golden/1", **(headers or {})}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        response = contextvars.Context().run(
            client.open,
            path,
            method=method,
            base_url=SITE,
            headers=sent,
            environ_base={"REMOTE_ADDR": "192.0.2.7"},
            buffered=True,
            **more,
        )
        name = response.headers.get("X-Request-Id", "")
        told = [(n, v) for n, v in response.headers.items() if n not in EVERYWHERE]
        masked = json.dumps(told).replace(name, "REQUEST ID") if name else json.dumps(told)
        text = response.text.replace(name, "REQUEST ID") if name else response.text
        headers_told: Json = {}
        for n, v in json.loads(masked):
            headers_told[n] = f"{headers_told[n]} & {v}" if n in headers_told else v
        return {"status": response.status, "headers": headers_told, **_body(text)}

    def run(self, *args: object, stdin: str | None = None) -> Json:
        self.turn += not self.still
        result = contextvars.Context().run(
            self.app.test_cli_runner().invoke, args=[str(arg) for arg in args], input=stdin
        )
        told: Json = {"command": self._lines(" ".join(map(str, args)))[0]}
        told["exit"] = result.exit_code
        # As bytes, since the text of a result has lost the ends of its lines.
        told["stdout"] = self._lines(result.stdout_bytes.decode())
        told["stderr"] = self._lines(result.stderr_bytes.decode() if result.stderr_bytes else "")
        return told

    def _lines(self, text: str) -> list[str]:
        return text.replace(str(self.folder), "FOLDER").splitlines(keepends=True)


def _furnish(to: sqlite3.Connection) -> None:
    """Two organizations, members, a key of each kind, market data, and sign-ins."""
    past = START - timedelta(days=100)
    for number, name, status in (
        (1, "Riverside “Market” & Søns", "live"),
        (2, "Draft", "draft"),
    ):
        row: Json = {"id": number, "name": name, "slug": f"market-{number}", "status": status}
        row |= {"timezone": "Europe/Stockholm", "plan": "free", "created_at": past}
        _put(to, "organization", row)
    for number, name, role, more in (
        (1, "Maya Lindqvist", "admin", {"password_hash": password_hash(PASSWORD, PEPPER)}),
        (2, "Tomasz", "manager", {"disabled_at": past}),
        (3, "Inès Okonjo", "viewer", {"password_hash": password_hash(PASSWORD, PEPPER)}),
    ):
        email = f"member{number}@example.org"
        row = {"id": number, "organization_id": 1, "name": name, "email": email, "role": role}
        _put(to, "member", row | {"email_folded": email, "created_at": past} | more)
    of_each: tuple[tuple[int, str, str, Json], ...] = (
        (1, KEY, "Claude on “laptop” 🥕", {"created_by_id": 1, "tool": "claude"}),
        (2, READER, "Website", {"scope": "read", "created_by_id": 1}),
        (3, REVOKED, "Revoked", {"revoked_at": past, "released_at": past}),
        (4, EXPIRED, "Expired", {"expires_at": START - timedelta(days=1)}),
        (5, ORPHAN, "Of Tomasz", {"created_by_id": 2}),
        (6, DRAFT, "Of a draft", {"organization_id": 2}),
    )
    for number, secret, name, given in of_each:
        row = {"id": number, "organization_id": 1, "name": name, "name_folded": name.casefold()}
        row |= {"tool": "other", "scope": "read_write", "digest": digest(secret, PEPPER)}
        row |= {"hint": secret[:HINT], "pepper_id": pepper_id(PEPPER), "created_at": past}
        row |= {"refused_count": 0, "refused_recorded_count": 0}
        _put(to, "api_key", row | given)
    for number, token in SESSIONS.items():
        row = {"member_id": number, "digest": hashlib.sha256(token.encode()).digest()}
        for name in ("created_at", "last_seen_at", "password_checked_at"):
            row[name] = START
        _put(to, "sign_in_session", row)
    link: Json = {"organization_id": 1, "member_id": 3, "made_by_id": 1, "created_at": START}
    link |= {"digest": hashlib.sha256(LINK_CODE.encode()).digest()}
    _put(to, "sign_in_link", {**link, "expires_at": START + timedelta(hours=72)})
    _furnish_market(to, past)


def _furnish_market(to: sqlite3.Connection, past: datetime) -> None:
    of = {"organization_id": 1}
    for number, name in ((1, "Old Harbour"), (2, "Pärlan")):
        row: Json = {**of, "id": number, "name": name, "location": f"Quay {number}"}
        _put(to, "market", {**row, "description": "Fish, bread\nand “more”"})
    for number, name in ((1, "Green Acre Farm"), (2, "Smörgås & Co"), (3, "=SUM(A1)")):
        row = {**of, "id": number, "name": name, "name_folded": name.casefold()}
        row |= {"category": "Produce", "contact_name": "Noor Ødegård", "phone": "555-0100"}
        _put(to, "vendor", {**row, "email": f"vendor{number}@example.org", "created_at": past})
    for number, market, day, status in (
        (1, 1, "2026-11-14", "published"),
        (2, 1, "2026-12-05", "published"),
        (3, 2, "2026-12-06", "cancelled"),
        (4, 2, "2027-01-10", "draft"),
    ):
        row = {**of, "id": number, "market_id": market, "date": day, "opens": "08:00"}
        _put(to, "market_date", {**row, "closes": "13:00", "stalls": 20, "status": status})
    for number, status in enumerate(("pending", "approved", "declined", "waitlisted"), 1):
        row = {**of, "id": number, "market_id": 1, "vendor_id": number % 3 + 1}
        row |= {"status": status, "message": "We’d love to.\nTruly", "note": "é"}
        row["submitted_at"] = past + timedelta(days=number)
        row["decided_at"] = None if number == 1 else past + timedelta(days=number, hours=1)
        _put(to, "vendor_application", row)
    for number, status in enumerate(("pending", "approved", "declined", "cancelled"), 1):
        row = {**of, "id": number, "market_date_id": 2, "vendor_id": number % 3 + 1}
        row |= {"status": status, "paid": False, "stall": f"A{number}", "amount": 4500}
        row |= {"currency": "EUR", "reason": "" if number < 3 else "Full — “sorry”"}
        row["created_at"] = past + timedelta(days=number, microseconds=number)
        row["decided_at"] = None if number == 1 else past + timedelta(days=number, hours=1)
        _put(to, "booking", row)


@contextmanager
def world(*, furnished: bool = True, **settings: Any) -> Iterator[World]:
    """One that nothing from outside reaches: neither the time nor chance."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="golden-", dir=_QUICK))
        made = World(Path(folder), _database(furnished=furnished), **settings)
        stack.callback(made.stop)
        stack.enter_context(patch.object(clock, "now", made.now))
        stack.enter_context(patch("random.SystemRandom.getrandbits", made.bits))  # what `secrets`
        stack.enter_context(patch("random.SystemRandom.randbytes", made.random))  # is made of
        # They may change, and what they are inside of must not.
        stack.enter_context(
            patch("convene_keys.http.access.new_request_id", lambda: secrets.token_hex(8))
        )
        stack.enter_context(patch("os.urandom", made.random))
        yield made


# How things are written down ---------------------------------------------------------------------


def in_hex(rows: Iterable[Json]) -> list[Json]:
    return [{n: v.hex() if isinstance(v, bytes) else v for n, v in r.items()} for r in rows]


def written(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    return text.replace("\u2028", "\\u2028").replace("\ufeff", "\\ufeff")  # which nobody would see


def _stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return json.dumps(value) if isinstance(value, dict) else value


_FORMS: dict[str, Json] = {
    "compact": {"ensure_ascii": False, "separators": (",", ":")},
    "spaced": {"ensure_ascii": False},
    "ASCII": {},
}


def _body(text: str) -> Json:
    """A body of JSON in its own order, with how it was written; any other as its lines."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"lines": text.splitlines(keepends=True)} if text else {}
    for form, options in _FORMS.items():
        if json.dumps(value, **options) == text:
            return {"written": form, "json": value}
    return {"lines": text.splitlines(keepends=True)}

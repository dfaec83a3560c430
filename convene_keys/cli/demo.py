"""The organization that `make demo` shows: a season of markets, and keys that have been at work."""

import base64
import hmac
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import click
from flask.cli import with_appcontext
from sqlalchemy import func, select

from convene_keys import clock
from convene_keys.accounts import members, organizations, passwords
from convene_keys.audit.log import Actor, Origin
from convene_keys.cli.types import Command
from convene_keys.db.session import db
from convene_keys.errors import Problem
from convene_keys.http.access import settings
from convene_keys.keys import lifecycle
from convene_keys.markets import sample
from convene_keys.models import Booking, BookingStatus, Member, Role, Scope, Tool
from convene_keys.operations import runner, table

_BEGAN = timedelta(days=34)
ORGANIZATION, ADMIN, EMAIL = "Tidewater Markets", "Maya Lindqvist", "maya@example.org"
_OTHERS = (
    ("Tomasz Adeyemi", "tomasz@example.org", Role.MANAGER),
    ("Inès Okonjo", "ines@example.org", Role.VIEWER),
)


@click.command("demo", cls=Command)
@with_appcontext
def demo() -> None:
    """Set up the demo organization when the database is empty; print how to sign in."""
    password = _password()
    if organizations.is_empty(db.session()):
        _set_up(password)
    admin = db.session.scalar(select(Member).where(Member.email_folded == EMAIL))
    if admin is None:
        raise click.ClickException("This database has another organization: it is no demo.")
    if not passwords.fits(password, admin.password_hash, settings().key_peppers):
        password = "(the one you set)"  # noqa: S105
    click.echo(f"Sign in at {settings().base_url} with {EMAIL} and the password {password}")


def _password() -> str:
    """Derived from the installation's secret: no start needs to keep it, and all print the same."""
    digest = hmac.digest(settings().secret_key.encode(), b"convene-keys demo password", "sha256")
    letters = base64.b32encode(digest).decode().lower()
    return "-".join(letters[i : i + 4] for i in range(0, 20, 4))


def _set_up(password: str) -> None:
    peppers = settings().key_peppers
    with clock.set_back(_BEGAN):
        organization, maya = organizations.create_organization(
            name=ORGANIZATION,
            admin_name=ADMIN,
            admin_email=EMAIL,
            password=password,
            origin=Origin(),
            peppers=peppers,
        )
        actor, maya_id = Actor.system(organization.id), maya.id
        for name, email, role in _OTHERS:
            members.add_member(actor, name=name, email=email, role=role)
    sample.make(actor)  # the season is the one that is on now
    for row in _KEYS:
        with clock.set_back(timedelta(days=row.days, hours=1)):
            key, token = lifecycle.create(
                actor,
                name=row.name,
                tool=row.tool,
                scope=row.scope,
                expires_in_days=row.expires_in_days,
                peppers=peppers,
                created_by_id=maya_id,
            )
            key_id = key.id
        if not row.calls:
            continue
        for ago in range(row.days, row.quiet, -1):
            for number in range(row.daily[ago % len(row.daily)]):
                with clock.set_back(timedelta(days=ago, minutes=-17 * number)):
                    _call(row.calls[number % 2], token, row.origin, organization.id)
        with clock.set_back(timedelta(days=row.quiet)):
            for call in row.calls:
                _call(call, token, row.origin, organization.id)
            if row.revoked_for:
                lifecycle.revoke(actor, key_id, row.revoked_for)
        if row.revoked_for:
            with clock.set_back(timedelta(days=row.quiet - 2)):
                _call(row.calls[0], token, row.origin, organization.id)


def _call(name: str, token: str, origin: Origin, organization_id: int) -> None:
    """A real call, of which the audit log tells like of any other. A path is none a key may open.

    What concerns one booking is done to the newest that waits: number 123 goes on waiting.
    """
    peppers = settings().key_peppers
    if name.startswith("/"):
        runner.record_refusal("GET", name, token, origin, peppers)
        return
    operation = table.BY_NAME[name]
    newest = select(func.max(Booking.id)).where(
        Booking.organization_id == organization_id, Booking.status == BookingStatus.PENDING
    )
    values = {"id": db.session.scalar(newest)} if operation.noun else {}
    # A refusal is recorded like an answer: it shows what a key can't do.
    with suppress(Problem):
        runner.run(operation, token, lambda: operation.from_json(values), origin, peppers)


@dataclass(frozen=True, kw_only=True)
class _Key:
    name: str
    tool: Tool
    scope: Scope
    origin: Origin
    calls: tuple[str, ...] = ()  # names of operations, or paths: one of each on its last day
    days: int  # since it was made
    daily: tuple[int, ...] = (0,)  # how often it called on the days before, over and over
    quiet: int = 0  # days since its last call
    expires_in_days: int | None = None
    revoked_for: str = ""


# Addresses from the ranges kept for examples (RFC 5737, RFC 3849).
_KEYS = (
    _Key(
        name="Test",
        tool=Tool.OTHER,
        scope=Scope.READ_WRITE,
        origin=Origin(),
        days=31,
    ),
    _Key(
        name="Newsletter script",
        tool=Tool.OTHER,
        scope=Scope.READ,
        origin=Origin("198.51.100.7", "python-requests/2.32"),
        calls=("list_market_dates", "list_vendors"),
        days=33,
        daily=(1, 0, 0, 2, 0),
        quiet=12,
        revoked_for="The newsletter is now written elsewhere",
    ),
    _Key(
        name="Holiday cover rota",
        tool=Tool.OTHER,
        scope=Scope.READ,
        origin=Origin("192.0.2.61", "shift-rota/3.2"),
        calls=("list_vendor_applications", "list_market_dates"),
        days=8,
        daily=(1, 0, 2),
        expires_in_days=14,
    ),
    _Key(
        name="Website developer",
        tool=Tool.DEVELOPER,
        scope=Scope.READ,
        origin=Origin("2001:db8:40::c0de", "market-website/2.1 node"),
        calls=("list_markets", "list_market_dates", "whoami", "/billing"),
        days=29,
        daily=(4, 6, 5, 7, 4, 9, 2),
    ),
    _Key(
        name="ChatGPT at the office",
        tool=Tool.CHATGPT,
        scope=Scope.READ,
        origin=Origin("203.0.113.180", "ChatGPT-User/1.0"),
        calls=("dashboard", "list_vendors", "cancel_booking"),
        days=22,
        daily=(2, 0, 3, 1, 0, 0, 4),
    ),
    _Key(
        name="Claude on Maya’s laptop",
        tool=Tool.CLAUDE,
        scope=Scope.READ_WRITE,
        origin=Origin("203.0.113.24", "claude-desktop convene-keys/1.0"),
        calls=("dashboard", "list_bookings", "get_booking", "approve_booking", "list_my_events"),
        days=17,
        daily=(5, 3, 0, 8, 6, 2, 1),
    ),
)

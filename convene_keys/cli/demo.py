"""The organization that `make demo` shows: a season of markets, and keys that have been at work."""

import base64
import hmac
import tomllib
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext
from pydantic import BaseModel
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
from convene_keys.operations.runner import Caller

_BEGAN = timedelta(days=34)
ORGANIZATION, ADMIN, EMAIL = "Tidewater Markets", "Maya Lindqvist", "maya@example.org"
_OTHERS = (
    ("Tomasz Adeyemi", "tomasz@example.org", Role.MANAGER),
    ("Inès Okonjo", "ines@example.org", Role.VIEWER),
)


class _Key(BaseModel):
    """A key of `demo.toml`; `calls` are operations, or paths: one of each on its last day."""

    name: str
    tool: Tool
    scope: Scope
    ip: str | None = None
    user_agent: str | None = None
    calls: tuple[str, ...] = ()
    days: int  # since it was made
    daily: tuple[int, ...] = (0,)  # how often it called on the days before, over and over
    quiet: int = 0  # days since its last call
    expires_in_days: int | None = None
    revoked_for: str = ""

    @property
    def origin(self) -> Origin:
        return Origin(self.ip, self.user_agent)


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
    for row in _keys():
        _add_key(row, actor, maya_id)


def _add_key(row: _Key, actor: Actor, maya_id: int) -> None:
    """Create a key, and let it do what it did until today."""
    with clock.set_back(timedelta(days=row.days, hours=1)):
        key, token = lifecycle.create(
            actor,
            name=row.name,
            tool=row.tool,
            scope=row.scope,
            expires_in_days=row.expires_in_days,
            peppers=settings().key_peppers,
            created_by_id=maya_id,
        )
        key_id = key.id

    def call(name: str, ago: timedelta) -> None:
        with clock.set_back(ago):
            _call(name, token, row.origin, actor.organization_id)

    if not row.calls:
        return
    for days in range(row.days, row.quiet, -1):
        for number in range(row.daily[days % len(row.daily)]):
            call(row.calls[number % 2], timedelta(days=days, minutes=-17 * number))
    for name in row.calls:
        call(name, timedelta(days=row.quiet))
    if row.revoked_for:
        with clock.set_back(timedelta(days=row.quiet)):
            lifecycle.revoke(actor, key_id, row.revoked_for)
        call(row.calls[0], timedelta(days=row.quiet - 2))


def _call(name: str, token: str, origin: Origin, organization_id: int) -> None:
    """A real call, of which the audit log tells like of any other. A path is none a key may open.

    What concerns one booking is done to the newest that waits: number 123 goes on waiting.
    """
    caller = Caller(current_app.extensions["site"], token, origin)
    if name.startswith("/"):
        runner.record_refusal("GET", name, caller)
        return
    operation = table.BY_NAME[name]
    newest = select(func.max(Booking.id)).where(
        Booking.organization_id == organization_id, Booking.status == BookingStatus.PENDING
    )
    values = {"id": db.session.scalar(newest)} if operation.noun else {}
    # A refusal is recorded like an answer: it shows what a key can't do.
    with suppress(Problem):
        runner.run(operation, caller, lambda: operation.from_json(values))


def _keys() -> list[_Key]:
    rows = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["keys"]
    return [_Key.model_validate(row) for row in rows]

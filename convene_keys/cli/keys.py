"""API keys from the command line."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import click
from sqlalchemy import select

from convene_keys import text as text_
from convene_keys.audit.log import Actor, rfc3339
from convene_keys.checkup import reminders
from convene_keys.cli.types import ID, Group, existing, organization_of, organization_option
from convene_keys.db.session import db
from convene_keys.errors import Forbidden, NotFound
from convene_keys.http.access import settings
from convene_keys.keys import lifecycle
from convene_keys.keys import queries as key_queries
from convene_keys.leaks import reports, scanner
from convene_keys.models import ApiKey, Member, Scope, Tool
from convene_keys.text import fold

EXIT_FOUND = 3
AT_ONCE = 1_000


@click.group(cls=Group)
def keys() -> None:
    """Secrets that software holds to act for an organization."""


@keys.command("create")
@organization_option
@click.option("--name", required=True, help="What uses the key, such as “Claude on laptop”.")
@click.option(
    "--scope", type=click.Choice([s.value for s in Scope]), default=Scope.READ_WRITE.value
)
@click.option("--tool", type=click.Choice([t.value for t in Tool]), default=Tool.OTHER.value)
@click.option("--created-by", "email", help="The email of the member who answers for the key.")
def create(organization_id: int, name: str, scope: str, tool: str, email: str | None) -> None:
    """Create a key; prints it, alone, this once."""
    actor = Actor.system(organization_of(organization_id).id)
    creator = _creator(organization_id, email) if email is not None else None
    _, secret = lifecycle.create(
        actor,
        name=name,
        tool=Tool(tool),
        scope=Scope(scope),
        expires_in_days=None,
        peppers=settings().key_peppers,
        created_by_id=creator.id if creator else None,
    )
    click.echo(secret)


@keys.command("list")
@organization_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a script.")
def list_keys(organization_id: int, as_json: bool) -> None:
    """List every key of an organization, those that ended too, by name."""
    organization_of(organization_id)
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "status": key.status.value,
            "created_at": rfc3339(key.created_at),
            "last_used_at": rfc3339(key.last_used_at) if key.last_used_at else None,
        }
        for key in key_queries.list_all(db.session(), organization_id)
    ]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    table: list[tuple[str, ...]] = [("ID", "NAME", "STATUS", "CREATED", "LAST USED")]
    table += [
        tuple("never" if value is None else str(value) for value in row.values()) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


@keys.command("revoke")
@click.argument("key_id", type=ID)
@click.option("--reason", default="", help="Why, for the audit log.")
def revoke(key_id: int, reason: str) -> None:
    """End a key for good, at once. It can’t be undone."""
    key = existing(ApiKey, key_id, "key")
    lifecycle.revoke(Actor.system(key.organization_id), key.id, reason)


@keys.command("scan")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_context
def scan_files(context: click.Context, paths: tuple[Path, ...]) -> None:
    """Find keys of this database in files, folders and git history; exit code 3 if there are any.

    Says where each is, which key, and whether it still works; never the key itself. What can't be
    read is told on stderr, with exit code 1 if nothing was found. Compressed files are not opened.
    """
    unread: list[str] = []

    def complain(line: str) -> None:
        unread.append(line)
        click.echo(_shown(line), err=True)

    found = False
    every = (one for path in paths for one in scanner.scan(path, complain))
    for some in _batches(every):
        known = reports.known(db.session(), {one.token for one in some}, settings().key_peppers)
        for one in some:
            if key := known.get(one.token):
                found = True
                click.echo(f"{_shown(one.place)}:{one.line}: {key.name}, {key.status}")
    if found or unread:
        context.exit(EXIT_FOUND if found else 1)


def _batches(every: Iterable[scanner.Found]) -> Iterator[list[scanner.Found]]:
    left = iter(every)
    while some := list(islice(left, AT_ONCE)):
        yield some


def _shown(text: str) -> str:
    """On one line, whatever a file is named, and without a key that is in the name."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text_.redact(text)


@keys.command("remind")
def remind() -> None:
    """Mail who has keys to replace, and last week's digest; prints how many reminders. For a daily timer."""
    if settings().mail_server is None:  # which is no failure: the timer runs there as well
        click.echo("Mail is off: set MAIL_URL and MAIL_FROM, then it can remind.")
    else:
        click.echo(reminders.remind())


def _creator(organization_id: int, email: str) -> Member:
    member = db.session.scalar(
        select(Member).where(
            Member.organization_id == organization_id, Member.email_folded == fold(email.strip())
        )
    )
    if member is None:
        raise NotFound(f"The organization has no member with the email {email}.")
    if not member.may_make_keys:
        raise Forbidden(f"{member.name} may not make keys: an active admin can.")
    return member

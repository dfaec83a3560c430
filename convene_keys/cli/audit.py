"""The audit log from the command line."""

from collections.abc import Sequence
from datetime import datetime
from typing import TextIO

import click
from pydantic import TypeAdapter
from sqlalchemy import select

from convene_keys.audit import export as audit_export
from convene_keys.audit import log as audit_log
from convene_keys.audit import queries as audit_queries
from convene_keys.audit import seals, verification
from convene_keys.cli.types import ID, Group, Moment, organization_of, organization_option
from convene_keys.db.session import db
from convene_keys.keys import queries as key_queries
from convene_keys.models import Organization

EXIT_WRONG = 4
_HEAD = TypeAdapter(verification.Head)


@click.group(cls=Group)
def audit() -> None:
    """Who did what, when and from where."""


@audit.command("export")
@organization_option
@click.option("--key", "key_id", type=ID, help="Only what the key with this id did.")
@click.option("--since", type=Moment(), help="From this day (UTC) or moment on.")
@click.option(
    "--until", type=Moment(end_of_day=True), help="Up to and with this day, or up to this moment."
)
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), required=True)
def export(
    organization_id: int,
    key_id: int | None,
    since: datetime | None,
    until: datetime | None,
    form: str,
) -> None:
    """Write the events to standard output, oldest first."""
    session = db.session()
    organization_of(organization_id)
    if key_id is not None:
        key_queries.get(session, organization_id, key_id)
    seals.seal()
    events = audit_export.export(
        session, organization_id, audit_queries.Filter(key=key_id, since=since, until=until)
    )
    for line in (
        audit_export.csv_lines(events) if form == "csv" else audit_export.jsonl_lines(events)
    ):
        click.echo(line.encode(), nl=False)


@audit.command("seal")
@click.option("--organization", "organization_id", type=ID, help="Print only this one's head.")
def seal(organization_id: int | None) -> None:
    """Seal all events, and print each organization's head: keep it elsewhere, for verify."""
    if organization_id is not None:
        organization_of(organization_id)
    sealed = seals.seal()
    for head in seals.heads(db.session()):
        if organization_id in (None, head.organization_id):
            click.echo(audit_export.head_line(head, sealed=sealed[head.organization_id]))


@audit.command("verify")
@click.option("--organization", "organization_id", type=ID, help="Only this one.")
@click.option("--head", "file", type=click.File(encoding="utf-8"), help="What `seal` printed once.")
@click.pass_context
def verify(context: click.Context, organization_id: int | None, file: TextIO | None) -> None:
    """Check every event and seal; exit code 4 when anything is wrong."""
    known, session = read_heads(file) if file else [], db.session()
    every = {*session.scalars(select(Organization.id)), *(head.organization for head in known)}
    if organization_id is not None:
        every &= {organization_id}
        if not every:
            organization_of(organization_id)
    wrong = False
    for each in sorted(every):
        mine = [head for head in known if head.organization == each]
        verdict = verification.verify(session, each, mine)
        wrong = wrong or verdict.problem is not None
        click.echo(_line(verdict))
    if wrong:
        context.exit(EXIT_WRONG)


def _line(verdict: verification.Verification) -> str:
    where = f"organization {verdict.organization_id}: "
    if verdict.problem is not None:
        return f"{where}WRONG from event {verdict.event_id} on: {verdict.problem}"
    until = f", up to {audit_log.rfc3339(verdict.sealed_at)}" if verdict.sealed_at else ""
    keys = "; the newest key has sealed nothing yet" if verdict.unchanged else ""
    if verdict.older_until is not None:
        event_id, at = verdict.older_until
        keys += (
            f"; older keys count up to event {event_id}, since {audit_log.rfc3339(at)} no further"
        )
    return (
        f"{where}fine, {verdict.sealed} events in {verdict.batches} batches{until}, "
        f"{verdict.unsealed} not sealed yet{keys}"
    )


def read_heads(file: TextIO) -> Sequence[verification.Head]:
    try:
        heads = [_HEAD.validate_json(line, strict=True) for line in file if line.strip()]
    except ValueError:
        heads = []
    if not heads:
        raise click.ClickException(f"{file.name} holds no head: use what `audit seal` printed")
    return heads

"""The audit log from the command line."""

from datetime import datetime

import click

from convene_keys import audit as log
from convene_keys import keys
from convene_keys.cli.terms import ID, Group, Moment, organization_of, organization_option
from convene_keys.extensions import db


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
        keys.get(session, organization_id, key_id)
    events = log.export(session, organization_id, log.Filter(key=key_id, since=since, until=until))
    for line in log.csv_lines(events) if form == "csv" else log.jsonl_lines(events):
        click.echo(line.encode(), nl=False)

"""Organizations, members, a season to look around in, and the first-run link."""

import sys

import click
from flask.cli import with_appcontext
from sqlalchemy import select

from convene_keys.accounts import members, organizations
from convene_keys.audit.log import Actor, Origin
from convene_keys.cli.types import Command, Group, organization_of, organization_option
from convene_keys.db.session import db
from convene_keys.errors import NotFound
from convene_keys.http.access import settings
from convene_keys.markets import sample
from convene_keys.models import Member, Role
from convene_keys.text import fold


@click.group(cls=Group)
def organization() -> None:
    """Market organizers."""


@click.group(cls=Group)
def member() -> None:
    """People who sign in."""


def _password(_: click.Context, option: click.Parameter, asked: bool) -> str:
    """The first line of standard input: an argument would show in the list of processes."""
    if not asked:
        raise click.UsageError("Give the password on standard input, with --password-stdin.")
    return sys.stdin.readline().rstrip("\r\n")


_password_option = click.option(
    "--password-stdin",
    "password",
    is_flag=True,
    callback=_password,
    help="Read the password from the first line of standard input.",
)


@organization.command("create")
@click.option("--name", required=True, help="The organization's name.")
@click.option("--admin-name", required=True, help="The first admin's name.")
@click.option("--admin-email", required=True, help="The email the first admin signs in with.")
@click.option(
    "--timezone",
    type=click.Choice(organizations.zones()),
    default="UTC",
    show_default=True,
    metavar="ZONE",
    help="The time zone that its pages and mail show, such as Europe/Stockholm.",
)
@_password_option
def create_organization(
    name: str, admin_name: str, admin_email: str, timezone: str, password: str
) -> None:
    """Create an organization and its first admin; prints its id."""
    made, _ = organizations.create_organization(
        name=name,
        admin_name=admin_name,
        admin_email=admin_email,
        password=password,
        origin=Origin(),
        peppers=settings().key_peppers,
        timezone=timezone,
    )
    click.echo(made.id)


@member.command("create")
@organization_option
@click.option("--name", required=True, help="The member's name.")
@click.option("--email", required=True, help="The email they sign in with.")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True)
@_password_option
def create_member(organization_id: int, name: str, email: str, role: str, password: str) -> None:
    """Create a member who can sign in at once; prints their id."""
    made = members.add_member(
        Actor.system(organization_of(organization_id).id),
        name=name,
        email=email,
        role=Role(role),
        password=password,
        peppers=settings().key_peppers,
    )
    click.echo(made.id)


@member.command("link")
@click.argument("email")
def sign_in_link(email: str) -> None:
    """Print a one-time sign-in link for the member who signs in with EMAIL and is locked out."""
    found = db.session.scalar(select(Member).where(Member.email_folded == fold(email.strip())))
    if found is None:
        raise NotFound("There is no member who signs in with this email.")
    _, code = members.invitation(Actor.system(found.organization_id), found.id)
    click.echo(f"{settings().base_url}/welcome?code={code}")


@click.command("sample-data", cls=Command)
@organization_option
@with_appcontext
def sample_data(organization_id: int) -> None:
    """Fill an organization that has no markets with a season that looks real."""
    counts = sample.make(Actor.system(organization_id))
    for kind, count in counts.items():
        click.echo(f"{kind.replace('_', ' ')}: {count}")


@click.command("setup-link", cls=Command)
@with_appcontext
def setup_link() -> None:
    """Print the one-time link of the first run; nothing once there is an organization."""
    if organizations.is_empty(db.session()):
        code = organizations.setup_code(settings().secret_key, settings().key_peppers[0])
        click.echo(f"{settings().base_url}/setup?code={code}")

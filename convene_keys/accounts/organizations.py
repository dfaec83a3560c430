"""Organizations: the first run, their settings and their billing."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from functools import cache
from zoneinfo import available_timezones

from sqlalchemy import select
from sqlalchemy.orm import Session

from convene_keys.accounts import passwords
from convene_keys.accounts.authorization import acting
from convene_keys.accounts.members import (
    apply_changes,
    collect_error,
    flush_email,
    new_member,
    normalize_email,
)
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import serialize, transaction
from convene_keys.errors import FieldError, Invalid, NotFound, cleaned
from convene_keys.models import KeyMakers, Member, Organization, OrganizationStatus, Role
from convene_keys.text import clean_line, slug

ROTATE_MONTHS_MAX = 24
PLANS = ("free", "standard", "plus")
_REGIONS = {
    "Africa",
    "America",
    "Antarctica",
    "Arctic",
    "Asia",
    "Atlantic",
    "Australia",
    "Europe",
    "Indian",
    "Pacific",
}
_STRIPE_PREFIX = "acct_"


def is_empty(session: Session) -> bool:
    """Whether nobody has set this installation up yet."""
    return session.scalar(select(Organization.id).limit(1)) is None


def setup_code(secret_key: str, pepper: str) -> str:
    """The code of the first-run link. It is derived, so all workers agree and none keeps it.

    From both secrets: the one that signs cookies must not be enough.
    """
    keys = secret_key.encode() + b"\0" + pepper.encode()
    return hmac.new(keys, b"convene-keys first run", hashlib.sha256).hexdigest()[:40]


def is_setup_code(code: str, secret_key: str, pepper: str) -> bool:
    wanted = setup_code(secret_key, pepper)
    return hmac.compare_digest(code.encode("utf-8", "replace"), wanted.encode())


def create_organization(
    *,
    name: str,
    admin_name: str,
    admin_email: str,
    password: str,
    origin: Origin,
    peppers: Sequence[str],
    timezone: str = "UTC",
    first_only: bool = False,
) -> tuple[Organization, Member]:
    """A new organization and its first admin.

    An unknown `timezone` becomes UTC, since a browser may know others. With `first_only` it raises
    `NotFound` when there is an organization already, so that the first-run link works once. Raises
    `Invalid` for bad input, naming `organization`, `name`, `email`, `password`.
    """
    organization, admin = _new_organization(name, admin_name, admin_email, password)
    organization.timezone = timezone if timezone in zones() else "UTC"
    admin.password_hash = passwords.hash_password(password, peppers)
    with transaction() as session:
        serialize(session, "organization")
        if first_only and not is_empty(session):
            raise NotFound("This installation has been set up already.")
        organization.slug = _free_slug(session, organization.name)
        session.add(organization)
        session.flush()
        admin.organization = organization
        session.add(admin)
        flush_email(session)
        # Who opens the first-run link acts in person; any other is made by whoever hosts this.
        system = Actor.system(organization.id, origin)
        actor = Actor.of_member(admin, origin) if first_only else system
        where = Target("organization", organization.id, organization.name)
        record(session, actor, Action.ORGANIZATION_CREATED, where)
    return organization, admin


def change_organization(
    actor: Actor,
    *,
    name: str,
    timezone: str,
    status: OrganizationStatus,
    key_makers: KeyMakers,
    rotate_months: int,
) -> None:
    """Change the organization's settings. Raises `Invalid`.

    `rotate_months` is the age at which a key is due to be rotated, 1 to 24 calendar months.
    """
    name = cleaned("name", lambda: clean_line(name))
    if not 1 <= rotate_months <= ROTATE_MONTHS_MAX:
        message = f"Please choose 1 to {ROTATE_MONTHS_MAX} months."
        raise Invalid([FieldError("rotate_months", message)])
    if timezone not in zones():
        raise Invalid([FieldError("timezone", "Please choose a time zone from the list.")])
    changes: dict[str, object] = {"name": name, "timezone": timezone, "status": status}
    changes |= {"key_makers": key_makers, "rotate_months": rotate_months}
    _change_organization(actor, Action.SETTINGS_ORGANIZATION_CHANGED, changes)


def change_billing(actor: Actor, *, billing_email: str, plan: str, stripe_account_id: str) -> None:
    """Change who is billed, the plan and the Stripe account. Raises `Invalid`."""
    errors: list[FieldError] = []
    email = (
        collect_error(errors, "billing_email", lambda: normalize_email(billing_email))
        if billing_email
        else ""
    )
    if plan not in PLANS:
        errors.append(FieldError("plan", "Please choose a plan from the list."))
    account = stripe_account_id.strip()
    digits = account.removeprefix(_STRIPE_PREFIX)
    well_formed = account.startswith(_STRIPE_PREFIX) and digits.isascii() and digits.isalnum()
    if account and not (well_formed and len(account) <= 64):
        message = "A Stripe account id looks like acct_1A2b3C4d5E6f7G8h."
        errors.append(FieldError("stripe_account_id", message))
    if errors:
        raise Invalid(errors)
    changes = {"billing_email": email or None, "plan": plan, "stripe_account_id": account or None}
    _change_organization(actor, Action.SETTINGS_BILLING_CHANGED, changes)


@cache
def zones() -> tuple[str, ...]:
    """The time zones to choose from: those named after places, and UTC; no other aliases."""
    return tuple(
        sorted(z for z in available_timezones() if z == "UTC" or z.split("/")[0] in _REGIONS)
    )


def _change_organization(actor: Actor, action: Action, changes: Mapping[str, object]) -> None:
    with acting(actor, Role.ADMIN) as session:
        lock = {"key_share": True}  # events and keys may point to it meanwhile
        organization = session.get_one(Organization, actor.organization_id, with_for_update=lock)
        changed = apply_changes(organization, changes)
        if changed:
            where = Target("organization", organization.id, organization.name)
            record(session, actor, action, where, detail=changed)


def _new_organization(
    name: str, admin_name: str, admin_email: str, password: str
) -> tuple[Organization, Member]:
    """The rows of an organization and its first admin, not in the database yet. Raises `Invalid`."""
    errors: list[FieldError] = []
    organization_name = collect_error(errors, "organization", lambda: clean_line(name))
    admin = new_member(errors, admin_name, admin_email, Role.ADMIN)
    weakness = passwords.weakness(password, [organization_name, admin.name, admin.email])
    if weakness:
        errors.append(FieldError("password", weakness))
    if errors:
        raise Invalid(errors)
    return Organization(name=organization_name), admin


def _free_slug(session: Session, name: str) -> str:
    wanted = slug(name)
    taken = set(
        session.scalars(select(Organization.slug).where(Organization.slug.startswith(wanted)))
    )
    free, number = wanted, 1
    while free in taken:
        number += 1
        free = f"{wanted}-{number}"
    return free

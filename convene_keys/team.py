"""The organization and its people: first run, members and roles, settings."""

import hashlib
import hmac
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from convene_keys import clock, links, notices, passwords
from convene_keys.accounts import acting, changing_team, end_sessions_of, require_strong
from convene_keys.audit import Actor, Origin, Target, record
from convene_keys.errors import Conflict, FieldError, Invalid, NotFound
from convene_keys.events import Action
from convene_keys.extensions import serialize, transaction
from convene_keys.models import (
    ID_MAX,
    ApiKey,
    KeyMakers,
    Member,
    Organization,
    OrganizationStatus,
    Role,
    SignInLink,
)
from convene_keys.names import EMAIL_MAX, clean_line, fold, slug

ROTATE_MONTHS_MAX = 24
PLANS = ("free", "standard", "plus")
_REGIONS = frozenset(
    [
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
    ]
)
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

    A `timezone` that there is not becomes UTC, since a browser may know others. With `first_only` it raises `NotFound` when there is one already, so that the first-run link
    works once. Raises `Invalid` for bad input, naming `organization`, `name`, `email`, `password`.
    """
    errors: list[FieldError] = []
    organization_name = _collect(errors, "organization", lambda: clean_line(name))
    member_name = _collect(errors, "name", lambda: clean_line(admin_name))
    email = _collect(errors, "email", lambda: _email(admin_email))
    weakness = passwords.weakness(password, [organization_name, member_name, email])
    if weakness:
        errors.append(FieldError("password", weakness))
    if errors:
        raise Invalid(errors)
    hashed = passwords.hash_password(password, peppers)
    with transaction() as session:
        serialize(session, "organization")
        if first_only and not is_empty(session):
            raise NotFound("This installation has been set up already.")
        organization = Organization(
            name=organization_name,
            slug=_free_slug(session, organization_name),
            timezone=timezone if timezone in zones() else "UTC",
        )
        session.add(organization)
        session.flush()
        member = Member(
            organization=organization,
            name=member_name,
            email=email,
            email_folded=fold(email),
            role=Role.ADMIN,
            password_hash=hashed,
        )
        session.add(member)
        _flush_email(session)
        # Who opens the first-run link acts in person; any other is made by whoever hosts this.
        system = Actor.system(organization.id, origin)
        actor = Actor.of_member(member, origin) if first_only else system
        where = Target("organization", organization.id, organization.name)
        record(session, actor, Action.ORGANIZATION_CREATED, where)
    return organization, member


def members(session: Session, organization_id: int) -> Sequence[Member]:
    return session.scalars(
        select(Member)
        .where(Member.organization_id == organization_id)
        .order_by(Member.disabled_at.is_not(None), func.lower(Member.name), Member.id)
    ).all()


def get(session: Session, organization_id: int, member_id: int) -> Member:
    """The organization's member. Raises `NotFound` for anyone else."""
    query = select(Member).where(Member.organization_id == organization_id, Member.id == member_id)
    member = session.scalar(query) if member_id <= ID_MAX else None
    if member is None:
        raise NotFound("There is no such member.")
    return member


def keys_of(session: Session, member: Member) -> Sequence[ApiKey]:
    """The keys that work for as long as this member is active and in this role, by name."""
    if not Role(member.role).covers(Role.MANAGER):
        return ()
    made = select(ApiKey).where(
        ApiKey.organization_id == member.organization_id,
        ApiKey.created_by_id == member.id,
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > clock.now()),
    )
    return session.scalars(made.order_by(ApiKey.name_folded)).all()


def add_member(
    actor: Actor,
    *,
    name: str,
    email: str,
    role: Role,
    password: str | None = None,
    peppers: Sequence[str] = (),
) -> Member:
    """A new member; without a password they need a link from `invitation` to sign in.

    Raises `Invalid` for bad input or an email that is taken, `NotFound` without an organization.
    """
    member = _new_member(actor, name, email, role)
    if password is not None:
        require_strong("password", password, member.name, member.email)
        member.password_hash = passwords.hash_password(password, peppers)
    with changing_team(actor) as session:
        _add(session, actor, member)
    return member


def invite(actor: Actor, *, name: str, email: str, role: Role) -> tuple[Member, str]:
    """A new member, and the code of the link with which they set their password.

    Raises as `add_member` does, and `TooMany` as `invitation`.
    """
    member = _new_member(actor, name, email, role)
    with changing_team(actor) as session:
        _add(session, actor, member)
        return member, links.make(session, actor, member)


def change_member(actor: Actor, member_id: int, *, name: str, role: Role) -> Member:
    """Change a member's name and role. Raises `NotFound`, `Invalid`, or `Conflict` for one's own role."""
    name = clean_name("name", name)
    with changing_team(actor) as session:
        member = get(session, actor.organization_id, member_id)
        if role != member.role and member.id == actor.member_id:
            raise Conflict("You can’t change your own role. Please ask another admin.")
        changed = _changes(member, {"name": name, "role": role})
        if changed:
            _require_admin(session, actor.organization_id)
            record(session, actor, Action.MEMBER_CHANGED, _target(member), detail=changed)
            if role != Role.ADMIN:
                _withdraw_links_of(session, actor, member)
    return member


def set_disabled(actor: Actor, member_id: int, *, disabled: bool) -> Member:
    """Disable a member, which ends their sessions and stops the keys they made; or enable again.

    Raises `NotFound`, or `Conflict` for oneself or the last admin.
    """
    with changing_team(actor) as session:
        member = get(session, actor.organization_id, member_id)
        if member.id == actor.member_id:
            raise Conflict("You can’t disable yourself. Please ask another admin.")
        if disabled == (member.disabled_at is not None):
            return member
        member.disabled_at = clock.now() if disabled else None
        if disabled:
            end_sessions_of(session, member.id)
        session.flush()
        _require_admin(session, actor.organization_id)
        action = Action.MEMBER_DISABLED if disabled else Action.MEMBER_ENABLED
        record(session, actor, action, _target(member))
        if disabled:
            _withdraw_links_of(session, actor, member)
            theirs = SignInLink.member_id == member.id
            links.withdraw(session, actor, theirs, reason="they were disabled")
    return member


def invitation(actor: Actor, member_id: int) -> tuple[Member, str]:
    """A member and the code of a link with which they set their password, once, within 72 hours.

    Raises `NotFound`, `Forbidden`, `Conflict` for a disabled member, or `TooMany`: see `links.make`.
    """
    with changing_team(actor) as session:
        member = get(session, actor.organization_id, member_id)
        if member.disabled_at is not None:
            raise Conflict("This member is disabled. Please enable them first.")
        return member, links.make(session, actor, member)


def withdraw_link(actor: Actor, link_id: int) -> Member:
    """End an open link, and give whom it was for. Raises `NotFound` or `Forbidden`."""
    with changing_team(actor) as session:
        for link in links.withdraw(session, actor, SignInLink.id == min(link_id, ID_MAX)):
            return link.member
    raise NotFound("This link doesn’t work any more.")


def accept(code: str, password: str, origin: Origin, peppers: Sequence[str]) -> Member:
    """Set the password of the member whom the link of `code` was made for; it works once.

    Raises `NotFound`, or `Invalid` for a weak password.
    """
    with transaction() as session:
        member = links.opened_by(session, code).member
        organization_id = member.organization_id
        words = (member.name, member.email, member.organization.name)
    require_strong("password", password, *words)
    hashed = passwords.hash_password(password, peppers)
    with transaction() as session:
        links.serialize_team(session, organization_id)
        link = links.opened_by(session, code)
        link.member.password_hash = hashed
        end_sessions_of(session, link.member_id)
        links.use(session, link, origin)
        return link.member


def rename_self(actor: Actor, name: str) -> None:
    """Change the acting member's own name. Raises `Invalid`."""
    name = clean_name("name", name)
    with acting(actor, Role.VIEWER) as session:
        member = get(session, actor.organization_id, actor.member_id or 0)
        changed = _changes(member, {"name": name})
        if changed:
            record(session, actor, Action.MEMBER_RENAMED, _target(member), detail=changed)


def choose_mail(actor: Actor, *, weekly_digest: bool) -> None:
    """Change whether the acting member gets the weekly digest."""
    with acting(actor, Role.VIEWER) as session:
        member = get(session, actor.organization_id, actor.member_id or 0)
        changed = _changes(member, {"weekly_digest": weekly_digest})
        if changed:
            record(session, actor, Action.MEMBER_MAIL_CHANGED, _target(member), detail=changed)


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
    name = clean_name("name", name)
    if not 1 <= rotate_months <= ROTATE_MONTHS_MAX:
        message = f"Please choose 1 to {ROTATE_MONTHS_MAX} months."
        raise Invalid([FieldError("rotate_months", message)])
    if timezone not in zones():
        raise Invalid([FieldError("timezone", "Please choose a time zone from the list.")])
    changes: dict[str, Any] = {"name": name, "timezone": timezone, "status": status}
    changes |= {"key_makers": key_makers, "rotate_months": rotate_months}
    _change_organization(actor, Action.SETTINGS_ORGANIZATION_CHANGED, changes)


def change_billing(actor: Actor, *, billing_email: str, plan: str, stripe_account_id: str) -> None:
    """Change who is billed, the plan and the Stripe account. Raises `Invalid`."""
    errors: list[FieldError] = []
    email = (
        _collect(errors, "billing_email", lambda: _email(billing_email)) if billing_email else ""
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


def clean_name(field: str, value: str) -> str:
    """A clean name. Raises `Invalid` on `field`."""
    errors: list[FieldError] = []
    name = _collect(errors, field, lambda: clean_line(value))
    if errors:
        raise Invalid(errors)
    return name


def _change_organization(actor: Actor, action: Action, changes: Mapping[str, Any]) -> None:
    with acting(actor, Role.ADMIN) as session:
        lock = {"key_share": True}  # events and keys may point to it meanwhile
        organization = session.get_one(Organization, actor.organization_id, with_for_update=lock)
        changed = _changes(organization, changes)
        if changed:
            where = Target("organization", organization.id, organization.name)
            record(session, actor, action, where, detail=changed)


def _changes(row: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set what differs on `row`; what it was before and is now, for the log."""
    changed = {}
    for name, value in values.items():
        before = getattr(row, name)
        if before != value:
            setattr(row, name, value)
            changed[name] = {"before": before, "after": value}
    return changed


def _collect(errors: list[FieldError], field: str, clean: Any) -> str:
    try:
        return str(clean())
    except ValueError as error:
        errors.append(FieldError(field, str(error)))
        return ""


def _new_member(actor: Actor, name: str, email: str, role: Role) -> Member:
    """Not in the database yet. Raises `Invalid`."""
    errors: list[FieldError] = []
    clean_name = _collect(errors, "name", lambda: clean_line(name))
    clean_email = _collect(errors, "email", lambda: _email(email))
    if errors:
        raise Invalid(errors)
    return Member(
        organization_id=actor.organization_id,
        name=clean_name,
        email=clean_email,
        email_folded=fold(clean_email),
        role=role,
    )


def _add(session: Session, actor: Actor, member: Member) -> None:
    if session.get(Organization, actor.organization_id) is None:
        raise NotFound("There is no such organization.")
    session.add(member)
    _flush_email(session)
    record(session, actor, Action.MEMBER_ADDED, _target(member), detail={"role": member.role})
    notices.member_added(session, actor, member)


def _email(value: str) -> str:
    """A well-formed address. Raises `ValueError` with a sentence for a person."""
    email = clean_line(value, most=EMAIL_MAX)
    try:
        # Where letters stand for many, checking each of those would take long.
        if len(unicodedata.normalize("NFKC", email)) <= EMAIL_MAX:
            return validate_email(
                email, check_deliverability=False, test_environment=True
            ).normalized
    except EmailNotValidError:
        pass
    raise ValueError("Please enter an email address, like maya@example.org.")


def _flush_email(session: Session) -> None:
    try:
        session.flush()
    except IntegrityError as error:
        if "email" not in str(error.orig):
            raise
        raise Invalid([FieldError("email", "Somebody signs in with this email already.")]) from None


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


def _require_admin(session: Session, organization_id: int) -> None:
    session.flush()
    admins = select(Member.id).where(
        Member.organization_id == organization_id,
        Member.role == Role.ADMIN,
        Member.disabled_at.is_(None),
    )
    if session.scalar(admins.limit(1)) is None:
        raise Conflict("An organization needs at least one admin.")


def _withdraw_links_of(session: Session, actor: Actor, maker: Member) -> None:
    """Those that somebody made who is no longer an admin, so that they don't come back."""
    made = SignInLink.made_by_id == maker.id
    links.withdraw(session, actor, made, reason="who made it is no longer an admin")


def _target(member: Member) -> Target:
    return Target("member", member.id, member.name)

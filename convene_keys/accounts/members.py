"""Members of an organization: added, invited, changed, disabled."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.accounts import links, passwords
from convene_keys.accounts.authorization import acting, changing_team
from convene_keys.accounts.sessions import end_sessions
from convene_keys.accounts.sign_in import require_strong
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import transaction
from convene_keys.errors import Conflict, FieldError, Invalid, NotFound, cleaned
from convene_keys.mail import notices
from convene_keys.models import (
    ID_MAX,
    ApiKey,
    Member,
    Organization,
    Role,
    SignInLink,
    SignInSession,
)
from convene_keys.text import EMAIL_MAX, clean_line, fold


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
    name = cleaned("name", lambda: clean_line(name))
    with changing_team(actor) as session:
        member = get(session, actor.organization_id, member_id)
        if role != member.role and member.id == actor.member_id:
            raise Conflict("You can’t change your own role. Please ask another admin.")
        changed = apply_changes(member, {"name": name, "role": role})
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
            end_sessions(session, SignInSession.member_id == member.id)
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
        end_sessions(session, SignInSession.member_id == link.member_id)
        links.use(session, link, origin)
        return link.member


def rename_self(actor: Actor, name: str) -> None:
    """Change the acting member's own name. Raises `Invalid`."""
    name = cleaned("name", lambda: clean_line(name))
    _change_self(actor, Action.MEMBER_RENAMED, {"name": name})


def choose_mail(actor: Actor, *, weekly_digest: bool) -> None:
    """Change whether the acting member gets the weekly digest."""
    _change_self(actor, Action.MEMBER_MAIL_CHANGED, {"weekly_digest": weekly_digest})


def _change_self(actor: Actor, action: Action, changes: Mapping[str, object]) -> None:
    with acting(actor, Role.VIEWER) as session:
        member = get(session, actor.organization_id, actor.member_id or 0)
        changed = apply_changes(member, changes)
        if changed:
            record(session, actor, action, _target(member), detail=changed)


def apply_changes(row: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set what differs on `row`; what it was before and is now, for the log."""
    changed = {}
    for name, value in values.items():
        before = getattr(row, name)
        if before != value:
            setattr(row, name, value)
            changed[name] = {"before": before, "after": value}
    return changed


def collect_error(errors: list[FieldError], field: str, clean: Callable[[], str]) -> str:
    """What `clean` returns; when it can't, an error on `field` is added, and it is nothing."""
    try:
        return clean()
    except ValueError as error:
        errors.append(FieldError(field, str(error)))
        return ""


def new_member(errors: list[FieldError], name: str, email: str, role: Role) -> Member:
    """Of no organization yet. What is wrong with the input is added to `errors`."""
    name = collect_error(errors, "name", lambda: clean_line(name))
    email = collect_error(errors, "email", lambda: normalize_email(email))
    return Member(name=name, email=email, email_folded=fold(email), role=role)


def _new_member(actor: Actor, name: str, email: str, role: Role) -> Member:
    """Not in the database yet. Raises `Invalid`."""
    errors: list[FieldError] = []
    member = new_member(errors, name, email, role)
    if errors:
        raise Invalid(errors)
    member.organization_id = actor.organization_id
    return member


def _add(session: Session, actor: Actor, member: Member) -> None:
    if session.get(Organization, actor.organization_id) is None:
        raise NotFound("There is no such organization.")
    session.add(member)
    flush_email(session)
    record(session, actor, Action.MEMBER_ADDED, _target(member), detail={"role": member.role})
    notices.member_added(session, actor, member)


def normalize_email(value: str) -> str:
    """A well-formed address. Raises `ValueError` with a sentence for a person."""
    email = clean_line(value, most=EMAIL_MAX)
    try:
        # Where letters stand for many, checking each of those would take long.
        if len(unicodedata.normalize("NFKC", email)) <= EMAIL_MAX:
            found = validate_email(email, check_deliverability=False, test_environment=True)
            return found.normalized
    except EmailNotValidError:
        pass
    raise ValueError("Please enter an email address, like maya@example.org.")


def flush_email(session: Session) -> None:
    """Write a new member. Raises `Invalid` when their email is taken."""
    try:
        session.flush()
    except IntegrityError as error:
        if "email" not in str(error.orig):
            raise
        raise Invalid([FieldError("email", "Somebody signs in with this email already.")]) from None


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

"""Sign-in links: with one its member sets a password, once. Only the digest of its code is kept.

All of it happens in the caller's transaction, which goes through `serialize_team` first: so a link
is used once, and not while it is being withdrawn.
"""

import hashlib
import math
import secrets
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, aliased, contains_eager

from convene_keys import clock
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, Target, record
from convene_keys.db.session import serialize
from convene_keys.errors import NotFound, TooMany
from convene_keys.mail import notices
from convene_keys.mail.notices import HOST, moment
from convene_keys.models import ActorKind, Member, Organization, Role, SignInLink

VALID = timedelta(hours=72)
# What members make: each link may send a mail to an address that they chose.
PER_HOUR, HOUR = 20, timedelta(hours=1)
_Maker = aliased(Member)


def serialize_team(session: Session, organization_id: int) -> None:
    """Let only one transaction at a time change an organization's members and their links."""
    serialize(session, f"team {organization_id}")


def make(session: Session, actor: Actor, member: Member) -> str:
    """The code of a new link for `member`; the older ones end.

    Raises `TooMany` when the members of the organization made 20 within an hour.
    """
    if actor.kind is ActorKind.MEMBER:
        _require_room(session, actor.organization_id)
    withdraw(session, actor, SignInLink.member_id == member.id, reason="a newer link")
    code = secrets.token_urlsafe(32)
    now = clock.now()
    link = SignInLink(
        organization_id=member.organization_id,
        member=member,
        made_by_id=actor.member_id,
        digest=digest(code),
        created_at=now,
        expires_at=now + VALID,
    )
    session.add(link)
    record(session, actor, Action.MEMBER_INVITED, Target("member", member.id, member.name))
    notices.link_made(session, actor, link)
    return code


def opened_by(session: Session, code: str) -> SignInLink:
    """The link that `code` opens. Raises `NotFound`, alike for all that open nothing (any more)."""
    link = session.scalar(_open().where(SignInLink.digest == digest(code)))
    if link is None:
        raise NotFound(
            "This link was withdrawn, used already or is too old. Please ask for a new one."
        )
    return link


def use(session: Session, link: SignInLink, origin: Origin) -> None:
    """Note that the link's member set their password by it."""
    link.used_at = clock.now()
    maker, actor = link.made_by, Actor.of_member(link.member, origin)
    made_by = Target("member", maker.id, maker.name) if maker else Target("system", None, HOST)
    record(session, actor, Action.MEMBER_PASSWORD_SET, made_by)
    notices.password_changed(session, actor, made_by.name)


def listed(session: Session, organization_id: int) -> Sequence[SignInLink]:
    """The organization's open links, the one that ends next first."""
    query = _open().where(SignInLink.organization_id == organization_id)
    return session.scalars(query.order_by(SignInLink.expires_at, SignInLink.id)).all()


def withdraw(
    session: Session, actor: Actor, *which: ColumnElement[bool], reason: str | None = None
) -> Sequence[SignInLink]:
    """End those of the organization's unused links that are `which`, and record each."""
    unused = _unused().where(SignInLink.organization_id == actor.organization_id, *which)
    found = session.scalars(unused).all()
    for link in found:
        link.withdrawn_at = clock.now()
        detail = {"made_by": link.made_by.name if link.made_by else HOST}
        detail |= {"reason": reason} if reason else {}
        target = Target("member", link.member_id, link.member.name)
        record(session, actor, Action.MEMBER_LINK_WITHDRAWN, target, detail=detail)
    return found


def _require_room(session: Session, organization_id: int) -> None:
    now = clock.now()
    query = select(func.count(), func.min(SignInLink.created_at)).where(
        SignInLink.organization_id == organization_id,
        SignInLink.made_by_id.is_not(None),
        SignInLink.created_at > now - HOUR,
    )
    made, first = session.execute(query).one()
    if made >= PER_HOUR:
        free = moment(session.get_one(Organization, organization_id), first + HOUR)
        raise TooMany(
            f"Your organization made {PER_HOUR} sign-in links within an hour, which is the most. "
            f"You can go on at {free}.",
            retry_after=math.ceil((first + HOUR - now).total_seconds()),
        )


def _unused() -> Select[SignInLink]:
    return select(SignInLink).where(
        SignInLink.used_at.is_(None),
        SignInLink.withdrawn_at.is_(None),
        SignInLink.expires_at > clock.now(),
    )


def _open() -> Select[SignInLink]:
    """Those that work: unused, for an active member, and made by one who still is an admin."""
    is_admin = (_Maker.role == Role.ADMIN) & _Maker.disabled_at.is_(None)
    return (
        _unused()
        .join(SignInLink.member)
        .outerjoin(_Maker, SignInLink.made_by)
        .where(Member.disabled_at.is_(None), or_(SignInLink.made_by_id.is_(None), is_admin))
        .options(
            contains_eager(SignInLink.member), contains_eager(SignInLink.made_by.of_type(_Maker))
        )
    )


def digest(text: str) -> bytes:
    """What is kept of the secret in a link or cookie, or of an email that nobody may have."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

"""Mail about what happened: written in the same transaction, sent later by the outbox worker."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.audit.log import Actor, Origin
from convene_keys.audit.user_agents import device
from convene_keys.models import (
    MAKERS_OF_KEYS,
    ApiKey,
    Mail,
    Member,
    Organization,
    Role,
    Scope,
    SignInLink,
    SignInSession,
)
from convene_keys.text import NAME_MAX, redact

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates" / "mail"
# Kinds of mail that each member may switch off; what warns them always comes.
OPTIONAL = frozenset({"weekly"})
MAIL_SETTINGS = "/admin/settings/account#mail"
PLACES_KNOWN_FOR = timedelta(days=90)
UNDELIVERED_SHOWN_FOR = timedelta(days=7)
HOST = "whoever hosts Convene Keys"
IN_SUBJECT = 40
# Where an address begins to be one, for mail programs that make a link of whatever looks like it.
_JOINT = re.compile(r"((?<=\S)[.。．｡@](?=[\w\u200c\u200d])|(?<=[^\W\d]):(?=[/\w]))")
P = ParamSpec("P")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What a mail says, as text. `link` is a label and a path; `head` the audit log's, as a line.

    `optional`: a path to where whoever gets it can switch such mail off.
    """

    subject: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[tuple[str, Sequence[str]]] = ()
    head: str = ""
    advice: str
    link: tuple[str, str]
    optional: str = ""


def site_of(bind: Engine | Connection) -> str | None:
    """The address for links, which `create_app` gave to the engine; None while mail is off."""
    site: str | None = bind.get_execution_options()["mail_site"]
    return site


def _notice(
    tell: Callable[Concatenate[Session, P], None],
) -> Callable[Concatenate[Session, P], None]:
    """Nothing while mail is off. A notice that can't be written takes nothing else down with it."""

    @wraps(tell)
    def safely(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if site_of(session.get_bind()) is None:
            return
        try:
            with session.begin_nested():
                tell(session, *args, **kwargs)
        except Exception:
            log.exception("a notice could not be written")

    return safely


@_notice
def key_created(session: Session, actor: Actor, key: ApiKey) -> None:
    organization = session.get_one(Organization, key.organization_id)
    may = "read and change" if key.scope == Scope.READ_WRITE else "only read"
    ends = moment(organization, key.expires_at) if key.expires_at else "no date"
    letter = Letter(
        subject=f"New API key: {inert(key.name, IN_SUBJECT)}",
        lead=(
            f"{_name(actor)} created the API key “{inert(key.name)}” for "
            f"{inert(organization.name)}."
        ),
        facts=[
            ("It may", may),
            ("It ends on", ends),
            *_whence(organization, key.created_at, actor.origin),
        ],
        advice="If nobody on your team meant to do this, revoke the key now.",
        link=("See the key", f"/admin/api_keys/{key.id}"),
    )
    post(session, organization, "key_created", letter, makers_of_keys(session, organization))


@_notice
def key_revoked(session: Session, actor: Actor, key: ApiKey) -> None:
    """Also of one that was revoked because it leaked."""
    organization = session.get_one(Organization, key.organization_id)
    ended = moment(organization, key.revoked_at or clock.now())
    facts = [("Reason", inert(key.revoke_reason, 300))] if key.revoke_reason else []
    if key.leaked_at is not None:
        letter = Letter(
            subject=f"API key leaked and revoked: {inert(key.name, IN_SUBJECT)}",
            lead=(
                f"The API key “{inert(key.name)}” of {inert(organization.name)} was found where "
                "others can read it. It has been revoked: nobody can use it any more."
            ),
            facts=[*facts, ("When", ended)],
            advice="See what it did, and make a new key for the tool that used it.",
            link=("See what to do", f"/admin/api_keys/{key.id}/leak"),
        )
        kind = "key_leaked"
    else:
        letter = Letter(
            subject=f"API key revoked: {inert(key.name, IN_SUBJECT)}",
            lead=(
                f"{_name(actor)} revoked the API key “{inert(key.name)}” of "
                f"{inert(organization.name)}. What used it has stopped working."
            ),
            facts=[*facts, *_whence(organization, key.revoked_at or clock.now(), actor.origin)],
            advice="If the tool is still needed, make a new key for it.",
            link=("See the key", f"/admin/api_keys/{key.id}"),
        )
        kind = "key_revoked"
    post(session, organization, kind, letter, makers_of_keys(session, organization))


@_notice
def signed_in(session: Session, member: Member, begun: SignInSession) -> None:
    """To the member, where the network or the kind of browser is new; never of the first sign-in."""
    earlier = select(SignInSession.ip, SignInSession.user_agent, SignInSession.created_at).where(
        SignInSession.member_id == member.id, SignInSession.id != begun.id
    )
    rows = session.execute(earlier.order_by(SignInSession.id.desc()).limit(500)).all()
    known = [row for row in rows if row.created_at > begun.created_at - PLACES_KNOWN_FOR]
    origin = Origin(begun.ip, begun.user_agent)
    networks = {Origin(row.ip).network for row in known}
    devices = {device(row.user_agent) for row in known}
    if not rows or (origin.network in networks and device(origin.user_agent) in devices):
        return
    organization = session.get_one(Organization, member.organization_id)
    letter = Letter(
        subject="New sign-in to your account",
        lead=(
            f"Somebody signed in as {inert(member.name)} from a place or a browser that is new to us."
        ),
        facts=_whence(organization, begun.created_at, origin),
        advice="If this was you, there is nothing to do. If not, change your password now.",
        link=("Your account", "/admin/settings/account"),
    )
    post(session, organization, "signed_in", letter, [member])


@_notice
def member_added(session: Session, actor: Actor, member: Member) -> None:
    """To the new member and to the admins. The link that sets a password is never in a mail."""
    organization = session.get_one(Organization, member.organization_id)
    role = {Role.MANAGER: "market manager"}.get(Role(member.role), member.role)
    # To somebody who may know nobody here, in words that a stranger may have chosen: so in quotes.
    who = f"“{_name(actor)}”" if actor.member_name else HOST
    welcome = Letter(
        subject=f"You are on the team of “{inert(organization.name, IN_SUBJECT)}”",
        lead=(
            f"You were added to the team of “{inert(organization.name)}” on Convene Keys by {who}, "
            f"as {role}."
        ),
        facts=[("You sign in with", member.email)],
        advice=(
            "To choose a password you need a link, which we don’t send by mail: please ask "
            f"{who} for it. If you don’t know them, there is nothing to do: until you choose a "
            "password, we write to you no more."
        ),
        link=("Sign in", "/login"),
    )
    post(session, organization, "welcome", welcome, [member])
    news = Letter(
        subject=f"New member: {inert(member.name, IN_SUBJECT)}",
        lead=(
            f"{_name(actor)} added {inert(member.name)} to the team of {inert(organization.name)}, "
            f"as {role}."
        ),
        facts=[
            ("They sign in with", member.email),
            *_whence(organization, member.created_at, actor.origin),
        ],
        advice="If nobody on your team meant to do this, disable them now.",
        link=("See the team", "/admin/team"),
    )
    admins = makers_of_keys(session, organization, roles=[Role.ADMIN])
    others = [admin for admin in admins if admin.id != member.id]
    post(session, organization, "member_added", news, others)


@_notice
def link_made(session: Session, actor: Actor, link: SignInLink) -> None:
    """To the member, in whose account somebody else could be soon. The link is not in the mail.

    Not to who has no password yet: there is nothing in the account, and the mail that they were
    added says that they need a link.
    """
    member = link.member
    if member.password_hash is None:
        return
    organization = session.get_one(Organization, member.organization_id)
    letter = Letter(
        subject="A sign-in link was made for you",
        lead=(
            f"{_name(actor)} made a link with which a new password can be chosen for your account "
            f"at {inert(organization.name)}. It is not in this mail."
        ),
        facts=[
            ("When", moment(organization, link.created_at)),
            ("It ends on", moment(organization, link.expires_at)),
        ],
        advice=(
            "If you asked for it, there is nothing to do. If not, sign in and change your password "
            "now, which ends the link, and tell the admins of your organization."
        ),
        link=("Your account", "/admin/settings/account"),
    )
    post(session, organization, "link_made", letter, [member])


@_notice
def password_changed(session: Session, actor: Actor, maker: str | None = None) -> None:
    """To the acting member, whose password was set just now; `maker` is who made the link to do so."""
    member = session.get_one(Member, actor.member_id)
    organization = session.get_one(Organization, actor.organization_id)
    by = f", by a link that {inert(maker)} made" if maker else ""
    letter = Letter(
        subject="Your password was set",
        lead=f"A new password was set for your account at {inert(organization.name)}{by}.",
        facts=_whence(organization, clock.now(), actor.origin),
        advice=(
            "If this was you, there is nothing to do. If not, somebody else is in your account: ask "
            "an admin of your organization now for a sign-in link, which gets it back to you, or "
            "to disable it."
        ),
        link=("Sign in", "/login"),
    )
    post(session, organization, "password", letter, [member])


def inert(name: str, most: int = NAME_MAX) -> str:
    """A name that somebody chose, for a mail: one line, cut, and with no address to follow in it."""
    line = _JOINT.sub(r"\1 ", " ".join(name.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def post(
    session: Session,
    organization: Organization,
    kind: str,
    letter: Letter,
    members: Sequence[Member],
    once: str | None = None,
) -> int:
    """Put a letter in the outbox for each of `members`, in the caller's transaction; how many.

    Whatever looks like a key is cut to its hint. For `once` see `without`.
    """
    site = site_of(session.get_bind())
    context = {"letter": letter, "organization": inert(organization.name), "site": site}
    text, html = (
        redact(_templates().get_template(f"letter.{form}").render(context))
        for form in ("txt", "html")
    )
    mails = [
        Mail(
            organization_id=organization.id,
            kind=kind,
            recipient=member.email,
            subject=redact(letter.subject)[:300],
            text=text,
            html=html,
            once=f"{once} {member.id}" if once is not None else None,
        )
        for member in members
    ]
    session.add_all(mails)
    session.flush()
    return len(mails)


def without(session: Session, members: Sequence[Member], once: str) -> Sequence[Member]:
    """Those of `members` who were not sent the letter that is to be sent `once`."""
    wanted = [f"{once} {member.id}" for member in members]
    had = {*session.scalars(select(Mail.once).where(Mail.once.in_(wanted)))}
    return [member for member in members if f"{once} {member.id}" not in had]


def makers_of_keys(
    session: Session, organization: Organization, roles: Sequence[Role] = MAKERS_OF_KEYS
) -> Sequence[Member]:
    """The members who are told of keys: active admins and managers.

    Only those who set a password: to be told, who was merely added has to want it.
    """
    query = select(Member).where(
        Member.organization_id == organization.id,
        Member.role.in_(roles),
        Member.disabled_at.is_(None),
        Member.password_hash.is_not(None),
    )
    return session.scalars(query.order_by(Member.id)).all()


def undelivered(session: Session, organization_id: int | None = None) -> int:
    """How many mails of the last days could not be delivered, of one organization or of all."""
    query = select(func.count()).where(Mail.given_up_at > clock.now() - UNDELIVERED_SHOWN_FOR)
    if organization_id is not None:
        query = query.where(Mail.organization_id == organization_id)
    return session.scalar(query) or 0


def moment(organization: Organization, at: datetime) -> str:
    """`27 Nov 2026, 10:42 CET`"""
    there = at.astimezone(ZoneInfo(organization.timezone))
    return f"{there.day} {there:%b %Y, %H:%M %Z}"


def _whence(organization: Organization, at: datetime, origin: Origin) -> list[tuple[str, str]]:
    when = [("When", moment(organization, at))]
    if origin.ip is None and origin.user_agent is None:  # the command line
        return when
    return [*when, ("From", f"{origin.ip or 'unknown'}, {device(origin.user_agent)}")]


def _name(actor: Actor) -> str:
    name = actor.member_name or actor.key_name
    return inert(name) if name else "Whoever hosts Convene Keys"


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

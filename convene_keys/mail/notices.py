"""Mail about what happened: written in the same transaction, sent later by the outbox worker."""

import logging
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
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
_COPY: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("letters.toml").read_text(encoding="utf-8")
)
P = ParamSpec("P")
log = logging.getLogger(__name__)


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
    facts = [
        ("It may", "read and change" if key.scope == Scope.READ_WRITE else "only read"),
        ("It ends on", moment(organization, key.expires_at) if key.expires_at else "no date"),
        *_whence(organization, key.created_at, actor.origin),
    ]
    members = makers_of_keys(session, organization)
    words = {"who": _name(actor), "key": inert(key.name), "id": str(key.id)}
    post(session, organization, "key_created", members, words, facts=facts)


@_notice
def key_revoked(session: Session, actor: Actor, key: ApiKey) -> None:
    """Also of one that was revoked because it leaked: then it is no matter from where."""
    organization = session.get_one(Organization, key.organization_id)
    kind, origin = ("key_leaked", Origin()) if key.leaked_at else ("key_revoked", actor.origin)
    facts = [("Reason", inert(key.revoke_reason, 300))] if key.revoke_reason else []
    facts += _whence(organization, key.revoked_at or clock.now(), origin)
    members = makers_of_keys(session, organization)
    words = {"who": _name(actor), "key": inert(key.name), "id": str(key.id)}
    post(session, organization, kind, members, words, facts=facts)


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
    facts = _whence(organization, begun.created_at, origin)
    post(session, organization, "signed_in", [member], {"member": inert(member.name)}, facts=facts)


@_notice
def member_added(session: Session, actor: Actor, member: Member) -> None:
    """To the new member and to the admins. The link that sets a password is never in a mail."""
    organization = session.get_one(Organization, member.organization_id)
    role = {Role.MANAGER: "market manager"}.get(Role(member.role), member.role)
    words = {"who": f"“{_name(actor)}”" if actor.member_name else HOST, "role": role}
    facts = [("You sign in with", member.email)]
    post(session, organization, "welcome", [member], words, facts=facts)
    words |= {"who": _name(actor), "member": inert(member.name)}
    facts = [
        ("They sign in with", member.email),
        *_whence(organization, member.created_at, actor.origin),
    ]
    admins = makers_of_keys(session, organization, roles=[Role.ADMIN])
    others = [admin for admin in admins if admin.id != member.id]
    post(session, organization, "member_added", others, words, facts=facts)


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
    facts = [
        ("When", moment(organization, link.created_at)),
        ("It ends on", moment(organization, link.expires_at)),
    ]
    post(session, organization, "link_made", [member], {"who": _name(actor)}, facts=facts)


@_notice
def password_changed(session: Session, actor: Actor, maker: str | None = None) -> None:
    """To the acting member, whose password was set just now; `maker` is who made the link to do so."""
    member = session.get_one(Member, actor.member_id)
    organization = session.get_one(Organization, actor.organization_id)
    words = {"by": f", by a link that {inert(maker)} made" if maker else ""}
    facts = _whence(organization, clock.now(), actor.origin)
    post(session, organization, "password", [member], words, facts=facts)


def inert(name: str, most: int = NAME_MAX) -> str:
    """A name that somebody chose, for a mail: one line, cut, and with no address to follow in it."""
    line = _JOINT.sub(r"\1 ", " ".join(name.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def post(
    session: Session,
    organization: Organization,
    kind: str,
    members: Sequence[Member],
    words: Mapping[str, str],
    *,
    facts: Sequence[tuple[str, str]] = (),
    sections: Sequence[tuple[str, Sequence[str]]] = (),
    head: str = "",
    once: str | None = None,
) -> int:
    """Put a letter in the outbox for each of `members`, in the caller's transaction; how many.

    What it says is in `letters.toml`, filled in with `words`, which have to be inert. `head` is the
    audit log's, as a line. Whatever looks like a key is cut to its hint. For `once` see `without`.
    """
    context = {
        "facts": facts,
        "sections": sections,
        "head": head,
        "optional": MAIL_SETTINGS if kind in OPTIONAL else "",
        "organization": inert(organization.name),
        "site": site_of(session.get_bind()),
    }
    subject, text, html = _written(kind, words, context)
    session.add_all(
        Mail(
            organization_id=organization.id,
            kind=kind,
            recipient=member.email,
            subject=subject,
            text=text,
            html=html,
            once=f"{once} {member.id}" if once is not None else None,
        )
        for member in members
    )
    session.flush()
    return len(members)


def _written(kind: str, words: Mapping[str, str], context: Mapping[str, object]) -> list[str]:
    """The subject, the text and the HTML of a letter."""
    words = {"organization": str(context["organization"]), **words}
    short = {word: inert(value, IN_SUBJECT) for word, value in words.items()}
    letter = {
        part: text.format_map(short if part == "subject" else words)
        for part, text in _COPY[kind].items()
    }
    templates = [_templates().get_template(f"letter.{form}") for form in ("txt", "html")]
    written = [template.render(context, letter=letter) for template in templates]
    return [redact(letter["subject"])[:300], *map(redact, written)]


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

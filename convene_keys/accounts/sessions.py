"""Sessions, kept on the server: begun, looked up, ended."""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, select, update
from sqlalchemy.orm import Session, joinedload

from convene_keys import clock
from convene_keys.accounts.authorization import acting
from convene_keys.accounts.links import digest
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.db.session import transaction
from convene_keys.mail import notices
from convene_keys.models import Member, Role, SignInSession
from convene_keys.text import redact

RECENT_FOR = timedelta(minutes=30)
SEEN_EVERY = timedelta(minutes=1)


def session_of(
    session: Session, token: str, *, idle: timedelta, most: timedelta
) -> SignInSession | None:
    """The living session that `token` opens, with its member and organization."""
    return session.scalar(
        _living(idle, most)
        .join(SignInSession.member)
        .where(SignInSession.digest == digest(token), Member.disabled_at.is_(None))
        .options(joinedload(SignInSession.member).joinedload(Member.organization))
    )


def why_ended(session: Session, token: str, *, idle: timedelta, most: timedelta) -> str | None:
    """Why a session lives no more, in a sentence; None when `token` never opened one."""
    found = session.scalar(select(SignInSession).where(SignInSession.digest == digest(token)))
    if found is None:
        return None
    if found.ended_at is None and found.last_seen_at <= clock.now() - idle:
        return f"You were signed out after {_span(idle)} without a click."
    if found.ended_at is None and found.created_at <= clock.now() - most:
        return f"You were signed out {_span(most)} after you signed in."
    return "You were signed out."


def _living(idle: timedelta, most: timedelta) -> Select[SignInSession]:
    now = clock.now()
    return select(SignInSession).where(
        SignInSession.ended_at.is_(None),
        SignInSession.last_seen_at > now - idle,
        SignInSession.created_at > now - most,
    )


def _span(time: timedelta) -> str:
    """`45 minutes`, `2 hours`."""
    hours, minutes = divmod(time // timedelta(minutes=1), 60)
    number, unit = (hours, "hour") if not minutes else (hours * 60 + minutes, "minute")
    return f"{number} {unit}{'' if number == 1 else 's'}"


def is_recent(signed_in: SignInSession) -> bool:
    """Whether the password was checked in the last 30 minutes (OWASP ASVS 5.0 7.5.1)."""
    return signed_in.password_checked_at > clock.now() - RECENT_FOR


def note_seen(session_id: int, last_seen_at: datetime) -> bool:
    """Keep that a session is in use, at most once a minute; whether anything was written."""
    if clock.now() - last_seen_at < SEEN_EVERY:
        return False
    this = update(SignInSession).where(SignInSession.id == session_id)
    with transaction() as session:
        session.execute(this.values(last_seen_at=clock.now()))
    return True


def sign_out(actor: Actor, session_id: int) -> None:
    """End one session on the server: a copy of its cookie is dead from now on."""
    with transaction() as session:
        end_sessions(session, SignInSession.id == session_id)
        record(session, actor, Action.MEMBER_SIGNED_OUT)


def end_other_sessions(actor: Actor, session_id: int) -> None:
    """End every session of the acting member but this one."""
    with acting(actor, Role.VIEWER) as session:
        theirs = SignInSession.member_id == actor.member_id
        end_sessions(session, theirs, SignInSession.id != session_id)
        record(session, actor, Action.MEMBER_SESSIONS_ENDED)


def sessions(
    session: Session, member_id: int, *, idle: timedelta, most: timedelta
) -> Sequence[SignInSession]:
    """The member's living sessions, the one used last first."""
    return session.scalars(
        _living(idle, most)
        .where(SignInSession.member_id == member_id)
        .order_by(SignInSession.last_seen_at.desc(), SignInSession.id.desc())
        .limit(50)
    ).all()


def begin_session(session: Session, member: Member, origin: Origin) -> str:
    token = secrets.token_urlsafe(32)
    begun = SignInSession(
        member=member,
        digest=digest(token),
        ip=origin.ip,
        user_agent=redact(origin.user_agent or "")[:256] or None,
    )
    session.add(begun)
    record(session, Actor.of_member(member, origin), Action.MEMBER_SIGNED_IN)
    notices.signed_in(session, member, begun)
    return token


def end_sessions(session: Session, *conditions: ColumnElement[bool]) -> None:
    """End the sessions that fit, in the caller's transaction."""
    living = update(SignInSession).where(SignInSession.ended_at.is_(None), *conditions)
    session.execute(living.values(ended_at=clock.now()))

"""Signing in: passwords checked, tries counted for all workers, sessions kept on the server."""

import hashlib
import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session, contains_eager, joinedload

from convene_keys import clock, links, notices, passwords
from convene_keys.audit import Actor, Origin, record
from convene_keys.audit import network as network_of
from convene_keys.errors import FieldError, Forbidden, Invalid, NotFound, TooMany
from convene_keys.events import Action, ActorKind, Outcome
from convene_keys.extensions import db, serialize, transaction
from convene_keys.models import (
    MAKER,
    Member,
    Organization,
    Role,
    SignInAttempt,
    SignInLink,
    SignInSession,
)
from convene_keys.names import fold
from convene_keys.tokens import redact

# OWASP ASVS 5.0 6.3.1: guessing is slowed per account and address, per address, and per account.
WINDOW = timedelta(minutes=15)
TRIES_PER_ACCOUNT_AND_NETWORK, TRIES_PER_NETWORK, TRIES_PER_ACCOUNT = 10, 50, 50

FRESH_FOR = timedelta(minutes=30)
SEEN_EVERY = timedelta(minutes=1)
WRONG = "The email or the password is not right. Please check both and try again."


def sign_in(email: str, password: str, origin: Origin, peppers: Sequence[str]) -> str:
    """The token of a new session, for the cookie.

    Raises `Invalid` when they don't fit, alike for a wrong password and an unknown or disabled
    member, and `TooMany` after too many tries.
    """
    email_folded = fold(email.replace("\0", "").strip())  # PostgreSQL keeps no null bytes
    try:  # before anything is locked or written, since a flood comes this far
        of_network = SignInAttempt.network == origin.network
        _check_tries(db.session(), TRIES_PER_NETWORK, of_network)
    except TooMany:
        if not _of_email(db.session(), email_folded, origin.network)[1]:
            raise
    with transaction() as session:
        member, known = _of_email(session, email_folded, origin.network)
        _count(session, _digest(email_folded), origin.network, known=known)
        stored = member.password_hash if member else None
    fitting = passwords.fits(password, stored, peppers)
    renewed = None
    if fitting and stored is not None and passwords.is_outdated(stored, peppers):
        renewed = passwords.hash_password(password, peppers)
    with transaction() as session:
        member = session.scalar(
            select(Member)
            .where(Member.email_folded == email_folded)
            .options(joinedload(Member.organization))
        )
        if member is None or not fitting or member.disabled_at or member.password_hash != stored:
            if member is not None:
                actor = Actor.of_member(member, origin)
                record(session, actor, Action.MEMBER_SIGN_IN_FAILED, outcome=Outcome.FAILED)
            failed = True
        else:
            failed = False
            _forget_tries(session, email_folded)
            member.password_hash = renewed or stored
            token = _begin(session, member, origin)
    if failed:
        raise Invalid([FieldError("password", WRONG)])
    return token


def start_session(member_id: int, origin: Origin) -> str:
    """The token of a new session for a member who proved by a one-time link who they are.

    Raises `NotFound` when they were disabled meanwhile.
    """
    with transaction() as session:
        member = session.get(Member, member_id)
        if member is None or member.disabled_at is not None:
            raise NotFound("There is no such member.")
        _forget_tries(session, member.email_folded)
        return _begin(session, member, origin)


def check_password(
    member: Member, session_id: int, password: str, origin: Origin, peppers: Sequence[str]
) -> None:
    """Ask a signed-in member for the password again, and keep that it was right.

    Raises `Invalid` or `TooMany`. Counted by session, so that nobody who guesses elsewhere can keep
    the member from it.
    """
    where = f"session {session_id}"
    with transaction() as session:
        _count(session, b"", where, known=True)
        stored = session.scalar(select(Member.password_hash).where(Member.id == member.id))
    fitting = passwords.fits(password, stored, peppers)
    with transaction() as session:
        if fitting:
            session.execute(delete(SignInAttempt).where(SignInAttempt.network == where))
            session.execute(
                update(SignInSession)
                .where(SignInSession.id == session_id)
                .values(password_checked_at=clock.now())
            )
        else:
            actor = Actor.of_member(member, origin)
            record(session, actor, Action.MEMBER_SIGN_IN_FAILED, outcome=Outcome.FAILED)
    if not fitting:
        raise Invalid([FieldError("current_password", "This is not your password.")])


@contextmanager
def acting(actor: Actor, needed: str) -> Iterator[Session]:
    """A write transaction in which the actor may do what needs the role `needed`, or `MAKER`.

    Raises as `authorize` does.
    """
    with transaction() as session:
        authorize(session, actor, needed)
        yield session


@contextmanager
def changing_team(actor: Actor, needed: str = Role.ADMIN) -> Iterator[Session]:
    """The same to change members, their passwords or links in.

    One at a time: two admins who change each other would wait for each other's rows for ever.
    """
    with transaction() as session:
        links.serialize_team(session, actor.organization_id)
        authorize(session, actor, needed)
        yield session


def authorize(session: Session, actor: Actor, needed: str) -> None:
    """Read again, in the caller's transaction, that the actor may still do this.

    What was true when the request came may have changed while it waited: the member's role or
    state, their session, or who may make keys. What is read here stays as it is until the
    transaction ends; the member's row is locked as for a change of it, since two that held it for
    reading and then changed it would wait for each other. A key or the system has no role. Raises
    `Forbidden`.
    """
    if actor.kind is not ActorKind.MEMBER:
        return
    member = session.scalar(
        select(Member)
        .join(Member.organization)
        .where(Member.organization_id == actor.organization_id, Member.id == actor.member_id)
        .options(contains_eager(Member.organization))
        .with_for_update(key_share=True, of=(Member, Organization) if needed == MAKER else Member)
        .execution_options(populate_existing=True)
    )
    if member is None or not member.may(needed):
        raise Forbidden("Your role doesn’t allow this. Please ask an admin of your organization.")
    if actor.session_id is not None:
        living = select(SignInSession.id).where(
            SignInSession.id == actor.session_id,
            SignInSession.member_id == member.id,
            SignInSession.ended_at.is_(None),
        )
        if session.scalar(living.with_for_update(read=True)) is None:
            raise Forbidden("You were signed out meanwhile. Please sign in again.")


def session_of(
    session: Session, token: str, *, idle: timedelta, most: timedelta
) -> SignInSession | None:
    """The living session that `token` opens, with its member and organization."""
    now = clock.now()
    return session.scalar(
        select(SignInSession)
        .join(SignInSession.member)
        .where(
            SignInSession.digest == _digest(token),
            SignInSession.ended_at.is_(None),
            SignInSession.last_seen_at > now - idle,
            SignInSession.created_at > now - most,
            Member.disabled_at.is_(None),
        )
        .options(joinedload(SignInSession.member).joinedload(Member.organization))
    )


def why_ended(session: Session, token: str, *, idle: timedelta, most: timedelta) -> str | None:
    """Why a session lives no more, in a sentence; None when `token` never opened one."""
    found = session.scalar(select(SignInSession).where(SignInSession.digest == _digest(token)))
    if found is None:
        return None
    if found.ended_at is None and found.last_seen_at <= clock.now() - idle:
        return f"You were signed out after {_span(idle)} without a click."
    if found.ended_at is None and found.created_at <= clock.now() - most:
        return f"You were signed out {_span(most)} after you signed in."
    return "You were signed out."


def _span(time: timedelta) -> str:
    """`45 minutes`, `2 hours`."""
    hours, minutes = divmod(time // timedelta(minutes=1), 60)
    number, unit = (hours, "hour") if not minutes else (hours * 60 + minutes, "minute")
    return f"{number} {unit}{'' if number == 1 else 's'}"


def is_fresh(signed_in: SignInSession) -> bool:
    """Whether the password was checked in the last 30 minutes (OWASP ASVS 5.0 7.5.1)."""
    return signed_in.password_checked_at > clock.now() - FRESH_FOR


def note_seen(session_id: int, last_seen_at: datetime) -> bool:
    """Keep that a session is in use, at most once a minute; whether anything was written."""
    if clock.now() - last_seen_at < SEEN_EVERY:
        return False
    with transaction() as session:
        session.execute(
            update(SignInSession)
            .where(SignInSession.id == session_id)
            .values(last_seen_at=clock.now())
        )
    return True


def sign_out(actor: Actor, session_id: int) -> None:
    """End one session on the server: a copy of its cookie is dead from now on."""
    with transaction() as session:
        _end(session, SignInSession.id == session_id)
        record(session, actor, Action.MEMBER_SIGNED_OUT)


def end_other_sessions(actor: Actor, session_id: int) -> None:
    """End every session of the acting member but this one."""
    with acting(actor, Role.VIEWER) as session:
        _end(session, SignInSession.member_id == actor.member_id, SignInSession.id != session_id)
        record(session, actor, Action.MEMBER_SESSIONS_ENDED)


def sessions(
    session: Session, member_id: int, *, idle: timedelta, most: timedelta
) -> Sequence[SignInSession]:
    """The member's living sessions, the one used last first."""
    now = clock.now()
    return session.scalars(
        select(SignInSession)
        .where(
            SignInSession.member_id == member_id,
            SignInSession.ended_at.is_(None),
            SignInSession.last_seen_at > now - idle,
            SignInSession.created_at > now - most,
        )
        .order_by(SignInSession.last_seen_at.desc(), SignInSession.id.desc())
        .limit(50)
    ).all()


def change_password(
    actor: Actor, member: Member, session_id: int, new: str, peppers: Sequence[str]
) -> None:
    """Set the acting member's own password; every other session, and link, of theirs ends.

    The current one has been checked by the caller. Raises `Invalid` for a weak password.
    """
    require_strong("new_password", new, member.name, member.email, member.organization.name)
    hashed = passwords.hash_password(new, peppers)
    with changing_team(actor, Role.VIEWER) as session:
        session.execute(
            update(Member).where(Member.id == actor.member_id).values(password_hash=hashed)
        )
        _end(session, SignInSession.member_id == actor.member_id, SignInSession.id != session_id)
        record(session, actor, Action.MEMBER_PASSWORD_CHANGED)
        links.withdraw(
            session, actor, SignInLink.member_id == actor.member_id, reason="a new password"
        )
        notices.password_changed(session, actor)


def end_sessions_of(session: Session, member_id: int) -> None:
    """End every session of a member in the caller's transaction."""
    _end(session, SignInSession.member_id == member_id)


def require_strong(field: str, password: str, *words: str) -> None:
    """Raises `Invalid` on `field` when the password is too weak for this person."""
    weakness = passwords.weakness(password, words)
    if weakness is not None:
        raise Invalid([FieldError(field, weakness)])


def _count(session: Session, email_digest: bytes, network: str, *, known: bool) -> None:
    """Count a try before it is made, so that many at once can't slip through.

    To one who is `known` there, others' tries elsewhere, or for other accounts, don't matter.
    Raises `TooMany`.
    """
    now = clock.now()
    serialize(session, "sign-in")
    session.execute(delete(SignInAttempt).where(SignInAttempt.at <= now - WINDOW))
    account, address = SignInAttempt.email_digest == email_digest, SignInAttempt.network == network
    _check_tries(session, TRIES_PER_ACCOUNT_AND_NETWORK, account, address)
    if not known:
        _check_tries(session, TRIES_PER_NETWORK, address)
        _check_tries(session, TRIES_PER_ACCOUNT, account)
    session.add(SignInAttempt(at=now, email_digest=email_digest, network=network))


def _of_email(session: Session, email_folded: str, network: str) -> tuple[Member | None, bool]:
    """Who signs in with an email, and whether they did from this network lately."""
    member = session.scalar(select(Member).where(Member.email_folded == email_folded))
    return member, member is not None and _knows(session, member.id, network)


def _knows(session: Session, member_id: int, network: str) -> bool:
    """Whether the member signed in from this network lately."""
    addresses = select(SignInSession.ip).where(
        SignInSession.member_id == member_id,
        SignInSession.created_at > clock.now() - notices.PLACES_KNOWN_FOR,
        SignInSession.ip.is_not(None),
    )
    return network in {network_of(ip) for ip in session.scalars(addresses.distinct()) if ip}


def _check_tries(session: Session, most: int, *which: ColumnElement[bool]) -> None:
    """Raises `TooMany` when `most` tries of these were made in the last 15 minutes."""
    tries, first = session.execute(
        select(func.count(), func.min(SignInAttempt.at)).where(
            SignInAttempt.at > clock.now() - WINDOW, *which
        )
    ).one()
    if tries >= most:
        wait = math.ceil((first + WINDOW - clock.now()).total_seconds())
        minutes = "a minute" if wait <= 60 else f"{math.ceil(wait / 60)} minutes"
        raise TooMany(f"There were too many tries. Please wait {minutes}.", retry_after=wait)


def _begin(session: Session, member: Member, origin: Origin) -> str:
    token = secrets.token_urlsafe(32)
    begun = SignInSession(
        member=member,
        digest=_digest(token),
        ip=origin.ip,
        user_agent=redact(origin.user_agent or "")[:256] or None,
    )
    session.add(begun)
    record(session, Actor.of_member(member, origin), Action.MEMBER_SIGNED_IN)
    notices.signed_in(session, member, begun)
    return token


def _forget_tries(session: Session, email_folded: str) -> None:
    session.execute(
        delete(SignInAttempt).where(SignInAttempt.email_digest == _digest(email_folded))
    )


def _end(session: Session, *conditions: object) -> None:
    session.execute(
        update(SignInSession)
        .where(SignInSession.ended_at.is_(None), *conditions)  # type: ignore[arg-type]
        .values(ended_at=clock.now())
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

"""Signing in: passwords checked, tries counted for all workers."""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, LargeBinary, String, bindparam, delete, func, select, update
from sqlalchemy.orm import Session, joinedload

from convene_keys import clock
from convene_keys.accounts import links, passwords
from convene_keys.accounts.authorization import changing_team
from convene_keys.accounts.links import digest
from convene_keys.accounts.sessions import begin_session, end_sessions
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.audit.log import network as network_of
from convene_keys.db.session import db, raw_connection, serialize, transaction
from convene_keys.db.statements import CompiledStatement
from convene_keys.db.types import UTCDateTime
from convene_keys.errors import FieldError, Invalid, NotFound, TooMany
from convene_keys.mail import notices
from convene_keys.models import Member, Outcome, Role, SignInAttempt, SignInLink, SignInSession
from convene_keys.text import fold

# OWASP ASVS 5.0 6.3.1: guessing is slowed per account and address, per address, and per account.
WINDOW = timedelta(minutes=15)
TRIES_PER_ACCOUNT_AND_NETWORK, TRIES_PER_NETWORK, TRIES_PER_ACCOUNT = 10, 50, 50

WRONG = "The email or the password is not right. Please check both and try again."


def sign_in(email: str, password: str, origin: Origin, peppers: Sequence[str]) -> str:
    """The token of a new session, for the cookie.

    Raises `Invalid` when they don't fit, alike for a wrong password and an unknown or disabled
    member, and `TooMany` after too many tries.
    """
    email_folded = fold(email.replace("\0", "").strip())  # PostgreSQL keeps no null bytes
    known = partial(_is_known, db.session(), email_folded, origin.network)
    # Before anything is locked or written, since a flood comes this far.
    email_digest = digest(email_folded)
    _check_tries(db.session(), email_digest, origin.network, known)
    with transaction() as session:
        _count(session, email_digest, origin.network, known)
        stored = session.scalar(
            select(Member.password_hash).where(Member.email_folded == email_folded)
        )
    fitting = passwords.fits(password, stored, peppers)
    renewed = None
    if fitting and stored is not None and passwords.is_outdated(stored, peppers):
        renewed = passwords.hash_password(password, peppers)
    token: str | None = None
    with transaction() as session:
        member = session.scalar(
            select(Member)
            .where(Member.email_folded == email_folded)
            .options(joinedload(Member.organization))
        )
        if member is None:
            pass
        elif not fitting or member.disabled_at or member.password_hash != stored:
            actor = Actor.of_member(member, origin)
            record(session, actor, Action.MEMBER_SIGN_IN_FAILED, outcome=Outcome.FAILED)
        else:
            _forget_tries(session, email_folded)
            member.password_hash = renewed or stored
            token = begin_session(session, member, origin)
    if token is None:
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
        return begin_session(session, member, origin)


def check_password(
    member: Member, session_id: int, password: str, origin: Origin, peppers: Sequence[str]
) -> None:
    """Ask a signed-in member for the password again, and keep that it was right.

    Raises `Invalid` or `TooMany`. Counted by session, so that nobody who guesses elsewhere can keep
    the member from it.
    """
    where = f"session {session_id}"
    with transaction() as session:
        _count(session, b"", where, known=lambda: True)
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


def change_password(
    actor: Actor, member: Member, session_id: int, new: str, peppers: Sequence[str]
) -> None:
    """Set the acting member's own password; every other session, and link, of theirs ends.

    The current one has been checked by the caller. Raises `Invalid` for a weak password.
    """
    require_strong("new_password", new, member.name, member.email, member.organization.name)
    hashed = passwords.hash_password(new, peppers)
    with changing_team(actor, Role.VIEWER) as session:
        member = session.get_one(Member, actor.member_id)
        member.password_hash = hashed
        theirs = SignInSession.member_id == member.id
        end_sessions(session, theirs, SignInSession.id != session_id)
        record(session, actor, Action.MEMBER_PASSWORD_CHANGED)
        links.withdraw(session, actor, SignInLink.member_id == member.id, reason="a new password")
        notices.password_changed(session, actor)


def require_strong(field: str, password: str, *words: str) -> None:
    """Raises `Invalid` on `field` when the password is too weak for this person."""
    weakness = passwords.weakness(password, words)
    if weakness is not None:
        raise Invalid([FieldError(field, weakness)])


def _count(session: Session, email_digest: bytes, network: str, known: Callable[[], bool]) -> None:
    """Count a try before it is made, so that many at once can't slip through.

    Raises `TooMany` as `_check_tries` does.
    """
    now = clock.now()
    serialize(session, "sign-in")
    session.execute(delete(SignInAttempt).where(SignInAttempt.at <= now - WINDOW))
    _check_tries(session, email_digest, network, known)
    session.add(SignInAttempt(at=now, email_digest=email_digest, network=network))


def _check_tries(
    session: Session, email_digest: bytes, network: str, known: Callable[[], bool]
) -> None:
    """Raises `TooMany` when too many tries were made in the last 15 minutes.

    To one who is `known` there, others' tries elsewhere, or for other accounts, don't matter.
    """
    now = clock.now()
    tries = raw_connection(session).first(
        _TRIES, since=now - WINDOW, email_digest=email_digest, network=network
    )
    assert tries is not None  # noqa: S101  counts are one row
    first = None
    if tries.here >= TRIES_PER_ACCOUNT_AND_NETWORK:
        first = tries.first_here
    elif tries.of_network >= TRIES_PER_NETWORK and not known():
        first = tries.first_of_network
    elif tries.of_account >= TRIES_PER_ACCOUNT and not known():
        first = tries.first_of_account
    if first is not None:
        wait = math.ceil((first + WINDOW - now).total_seconds())
        minutes = "a minute" if wait <= 60 else f"{math.ceil(wait / 60)} minutes"
        raise TooMany(f"There were too many tries. Please wait {minutes}.", retry_after=wait)


def _tries() -> CompiledStatement:
    """How many tries there were, and the first: for the account here, anyone's here, its anywhere."""
    account = SignInAttempt.email_digest == bindparam("email_digest", type_=LargeBinary())
    network = SignInAttempt.network == bindparam("network", type_=String())
    since = SignInAttempt.at > bindparam("since", type_=UTCDateTime())
    columns: list[ColumnElement[Any]] = []
    for name, tries in {
        "here": account & network,
        "of_network": network,
        "of_account": account,
    }.items():
        columns.append(func.count().filter(tries).label(name))
        columns.append(func.min(SignInAttempt.at).filter(tries).label(f"first_{name}"))
    return CompiledStatement(select(*columns).where(since, account | network))


_TRIES = _tries()


def _is_known(session: Session, email_folded: str, network: str) -> bool:
    """Whether the member with this email signed in from this network lately."""
    addresses = (
        select(SignInSession.ip)
        .join(SignInSession.member)
        .where(
            Member.email_folded == email_folded,
            SignInSession.created_at > clock.now() - notices.PLACES_KNOWN_FOR,
            SignInSession.ip.is_not(None),
        )
    )
    return network in {network_of(ip) for ip in session.scalars(addresses.distinct()) if ip}


def _forget_tries(session: Session, email_folded: str) -> None:
    session.execute(delete(SignInAttempt).where(SignInAttempt.email_digest == digest(email_folded)))

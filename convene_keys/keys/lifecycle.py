"""The life of an API key: made, renamed, edited, rotated, replaced, revoked."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from convene_keys import clock, config, text
from convene_keys.accounts.authorization import acting, authorize
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, KeyLike, Target, record, rfc3339
from convene_keys.db.session import is_duplicate
from convene_keys.errors import Conflict, FieldError, Invalid, cleaned
from convene_keys.keys import tokens
from convene_keys.keys.queries import get
from convene_keys.mail import notices
from convene_keys.models import ACTIVE_NAME, MAKER, ApiKey, Role, Scope, Tool
from convene_keys.text import clean_line, clean_text, fold

REASON_MAX = 300
EXPIRY_MAX_DAYS = 3_650


def target(key: KeyLike) -> Target:
    return Target("key", key.id, key.name)


def create(
    actor: Actor,
    *,
    name: str,
    tool: Tool,
    scope: Scope,
    expires_in_days: int | None,
    peppers: Sequence[str],
    created_by_id: int | None = None,
) -> tuple[ApiKey, str]:
    """A new key of the actor's organization and its secret, which is nowhere else from now on.

    `created_by_id` answers for the key: when that member is disabled or loses the role, it stops.
    Raises `Invalid` for a bad name, one that is taken, or an expiry beyond ten years.
    """
    name = _clean_name(name)
    if expires_in_days is not None and not 1 <= expires_in_days <= EXPIRY_MAX_DAYS:
        message = f"Please choose 1 to {EXPIRY_MAX_DAYS:,} days, or no end date."
        raise Invalid([FieldError("expires_in_days", message)])
    life = timedelta(days=expires_in_days) if expires_in_days else None
    with acting(actor, MAKER) as session:
        _release_expired(session, actor.organization_id, fold(name))
        key = ApiKey(name=name, tool=tool, scope=scope, created_by_id=created_by_id)
        return key, insert_key(session, actor, key, life, peppers)


def insert_key(
    session: Session, actor: Actor, key: ApiKey, life: timedelta | None, peppers: Sequence[str]
) -> str:
    """Write a new key of the actor's organization, and tell of it; the secret that it gets here."""
    token, now = tokens.mint(), clock.now()
    key.organization_id, key.name_folded = actor.organization_id, fold(key.name)
    key.digest, key.hint = tokens.digest(token, peppers[0]), tokens.hint(token)
    key.pepper_id = config.pepper_id(peppers[0])
    key.created_at = now
    key.expires_at = now + life if life else None
    session.add(key)
    _flush_name(session)
    detail = {"scope": key.scope, "tool": key.tool, "hint": key.hint}
    record(session, actor, Action.KEY_CREATED, target(key), detail=detail)
    notices.key_created(session, actor, key)
    return token


def rotate(
    actor: Actor,
    key_id: int,
    *,
    grace: timedelta,
    peppers: Sequence[str],
    created_by_id: int | None = None,
) -> tuple[ApiKey, str]:
    """A key's successor, which takes its name, tool, scope and span of life, and the secret.

    The old key goes on for the `grace`, or to its own end if that comes first; without any it is
    revoked. Raises `NotFound`, `Conflict` for a key that has ended or has a successor, or `Invalid`
    when it was rotated before, and its name is another key's by now.
    """
    with acting(actor, MAKER) as session:
        old = get(session, actor.organization_id, key_id, lock=True)
        require_rotatable(old)
        now = clock.now()
        life, old.released_at = _lifetime(old), now
        old.expires_at = min(filter(None, (old.expires_at, now + grace)))
        session.flush()  # its name is free for the successor
        new, token = _successor(session, actor, old, life, peppers, created_by_id)
        detail = {"successor": new.id, "works_until": rfc3339(old.expires_at)}
        record(session, actor, Action.KEY_ROTATED, target(old), detail=detail)
        if not grace:
            revoke_in(session, actor, old, "Rotated without a grace period")
    return new, token


def replace(
    actor: Actor, key_id: int, *, peppers: Sequence[str], created_by_id: int | None = None
) -> tuple[ApiKey, str]:
    """A successor of a key that leaked, with its name, tool, scope and span of life; and the secret.

    Raises `NotFound`, `Invalid` when the name is another key's by now, or `Conflict` for a key
    that did not leak or has a successor.
    """
    with acting(actor, MAKER) as session:
        old = get(session, actor.organization_id, key_id, lock=True)
        if old.successor is not None:
            raise Conflict("This key was replaced already.")
        if old.leaked_at is None:
            raise Conflict("Please report the key as leaked first.")
        _release_expired(session, actor.organization_id, old.name_folded)
        return _successor(session, actor, old, _lifetime(old), peppers, created_by_id)


def _lifetime(key: ApiKey) -> timedelta | None:
    """How long a key was meant to live: one rotated before was cut short, its successor was not."""
    meant = key.successors[-1] if key.successors else key
    return meant.expires_at - meant.created_at if meant.expires_at else None


def _successor(
    session: Session,
    actor: Actor,
    old: ApiKey,
    life: timedelta | None,
    peppers: Sequence[str],
    created_by_id: int | None,
) -> tuple[ApiKey, str]:
    # An older key that goes on beside one that has ended now has its place taken in its stead.
    older = old.predecessor
    place = older if old.ended and older is not None and older.works else old
    new = ApiKey(name=old.name, tool=old.tool, scope=old.scope, created_by_id=created_by_id)
    new.predecessor_id = place.id
    return new, insert_key(session, actor, new, life, peppers)


def rotation_due(created_at: datetime, rotate_months: int) -> tuple[datetime, datetime]:
    """When a key is due to be rotated: soon, which is at half of the months, and now."""
    half, odd = divmod(rotate_months, 2)
    soon = clock.months_after(created_at, half) + timedelta(days=15 * odd)
    return soon, clock.months_after(created_at, rotate_months)


def require_rotatable(key: ApiKey) -> None:
    """Raises `Conflict` for a key that has a successor or has ended."""
    if key.successor is not None:
        raise Conflict("This key was rotated already. Its successor can be rotated.")
    if key.ended:
        raise Conflict("This key has ended. Please create a new one.")


def rename(actor: Actor, key_id: int, name: str) -> ApiKey:
    """Give a key another name. The log keeps the name it had under what it did before.

    Raises `NotFound`, or `Invalid` for a bad name or one that is taken.
    """
    name = _clean_name(name)
    with acting(actor, Role.MANAGER) as session:
        key = get(session, actor.organization_id, key_id, lock=True)
        if key.name != name:
            _release_expired(session, actor.organization_id, fold(name))
            before, key.name, key.name_folded = key.name, name, fold(name)
            _flush_name(session)
            record(session, actor, Action.KEY_RENAMED, target(key), detail={"before": before})
    return key


def revoke(actor: Actor, key_id: int, reason: str = "") -> ApiKey:
    """End a key for good, at once: no call that begins after this returns is accepted.

    Revoking twice is safe: the first time stands. Raises `NotFound`, or `Invalid` for the reason.
    """
    reason = cleaned("reason", lambda: clean_text(reason, most=REASON_MAX, lines=False))
    with acting(actor, Role.MANAGER) as session:
        key = get(session, actor.organization_id, key_id, lock=True)
        revoke_in(session, actor, key, reason)
    return key


def revoke_in(session: Session, actor: Actor, key: ApiKey, reason: str = "") -> bool:
    """Revoke `key` in the caller's transaction; whether it was not revoked before."""
    if key.revoked_at is not None:
        return False
    key.revoked_at = clock.now()
    key.released_at = key.released_at or key.revoked_at
    key.revoked_by_name, key.revoke_reason = actor.name, text.redact(reason) or None
    detail = {"reason": reason} if reason else {}
    record(session, actor, Action.KEY_REVOKED, target(key), detail=detail)
    notices.key_revoked(session, actor, key)
    return True


def edit(
    actor: Actor, key_id: int, *, scope: Scope, expires_on: date | None, confirmed: bool
) -> ApiKey:
    """Change what a key may do, and the last day on which it works, in its organization's time zone.

    More of either takes a member who may make keys, and `confirmed`: their password, given lately.
    Raises `NotFound`, `Forbidden`, `Conflict` for a key that has ended or was rotated, or `Invalid`.
    """
    with acting(actor, Role.MANAGER) as session:
        key = get(session, actor.organization_id, key_id, lock=True)
        if key.ended:
            raise Conflict("A key that has ended can’t be brought back. Please create a new one.")
        if key.released_at is not None:
            raise Conflict("This key was rotated and ends soon. Please rotate it again instead.")
        ends = key.expires_at if expires_on == key.last_day else _end_of(expires_on, key)
        later = key.expires_at is not None and (ends is None or ends > key.expires_at)
        if later or (scope != Scope.READ and key.scope == Scope.READ):
            authorize(session, actor, MAKER)
            if not confirmed:
                raise Invalid([FieldError("current_password", "Please type your password.")])
        set_scope(session, actor, key, scope)
        set_expiry(session, actor, key, ends)
    return key


def end_of(day: date, zone: str) -> datetime:
    """The last second of a day in a time zone: a key's end is written as that day."""
    return datetime.combine(day, time(23, 59, 59), ZoneInfo(zone)).astimezone(UTC)


def _end_of(day: date | None, key: ApiKey) -> datetime | None:
    if day is None:
        return None
    zone = key.organization.timezone
    today = clock.today(zone)
    if not today <= day <= today + timedelta(days=EXPIRY_MAX_DAYS):
        message = "Please choose a day from today on, within ten years. To stop it now, revoke it."
        raise Invalid([FieldError("expires_on", message)])
    return end_of(day, zone)


def set_scope(session: Session, actor: Actor, key: ApiKey, scope: Scope) -> None:
    """Let `key` do this from its next call on, in the caller's transaction."""
    if key.scope != scope:
        before, key.scope = key.scope, scope
        action = Action.KEY_NARROWED if scope is Scope.READ else Action.KEY_WIDENED
        record(session, actor, action, target(key), detail={"before": before, "after": scope})


def set_expiry(session: Session, actor: Actor, key: ApiKey, at: datetime | None) -> None:
    """Let `key` stop working `at` a moment, or never, in the caller's transaction."""
    if key.expires_at == at:
        return
    before, key.expires_at = key.expires_at, at
    action = Action.KEY_EXPIRY_CHANGED if at else Action.KEY_EXPIRY_REMOVED
    if before is None:
        action = Action.KEY_EXPIRY_SET
    detail = {"before": rfc3339(before)} if before else {}
    detail |= {"after": rfc3339(at)} if at else {}
    record(session, actor, action, target(key), detail=detail)


def _clean_name(value: str) -> str:
    return text.redact(cleaned("name", lambda: clean_line(value)))


def _flush_name(session: Session) -> None:
    """Write to the database, whose unique index is the judge of names."""
    try:
        session.flush()
    except IntegrityError as error:
        if not is_duplicate(error, ACTIVE_NAME):
            raise
        raise Invalid(
            [FieldError("name", "Another active key has this name. Please choose a new one.")]
        ) from None


def _release_expired(session: Session, organization_id: int, name_folded: str) -> None:
    """Let a key that has expired give up its name."""
    key = session.scalar(
        select(ApiKey).where(
            ApiKey.organization_id == organization_id,
            ApiKey.name_folded == name_folded,
            ApiKey.released_at.is_(None),
            ApiKey.expires_at <= clock.now(),
        )
    )
    if key is not None:
        record_expired(session, key)
        session.flush()


def record_expired(session: Session, key: ApiKey) -> None:
    key.released_at = key.expires_at
    record(session, Actor.system(key.organization_id), Action.KEY_EXPIRED, target(key))

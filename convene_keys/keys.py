"""API keys: create, list, rename, rotate, revoke, and tell whose key a request carries."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Row, Select, bindparam, case, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from convene_keys import clients, clock, notices, tokens
from convene_keys.accounts import acting, authorize
from convene_keys.audit import Actor, Origin, Target, network, record, rfc3339
from convene_keys.errors import (
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    Problem,
    Unauthenticated,
)
from convene_keys.events import Action, Outcome
from convene_keys.extensions import Base, Statement, direct, serialize
from convene_keys.models import (
    EXPIRING_SOON,
    ID_MAX,
    MAKER,
    ApiKey,
    AuditEvent,
    KeyUse,
    Member,
    Organization,
    Role,
    Scope,
    Tool,
)
from convene_keys.names import clean_line, clean_text, fold
from convene_keys.prepared import Direct, Prepared

PAGE_SIZE = 20
CHOICES = 100
REASON_MAX = 300
EXPIRY_MAX_DAYS = 3_650
REFUSALS_RECORDED_EVERY = timedelta(minutes=1)
NEW_FOR = timedelta(minutes=10)  # how long pages wait for a new key's first call
USE_NOTED_EVERY = timedelta(minutes=1)
CHANGE_NOTED_EVERY = timedelta(days=1)
AT_ONCE = timedelta(hours=1)  # who comes back sooner was hardly elsewhere meanwhile


def target(key: Any) -> Target:
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
    name = _name(name)
    if expires_in_days is not None and not 1 <= expires_in_days <= EXPIRY_MAX_DAYS:
        message = f"Please choose 1 to {EXPIRY_MAX_DAYS:,} days, or no end date."
        raise Invalid([FieldError("expires_in_days", message)])
    life = timedelta(days=expires_in_days) if expires_in_days else None
    with acting(actor, MAKER) as session:
        _release_expired(session, actor.organization_id, fold(name))
        return _made(session, actor, name, tool, scope, life, peppers, created_by_id)


def _made(
    session: Session,
    actor: Actor,
    name: str,
    tool: str,
    scope: str,
    life: timedelta | None,
    peppers: Sequence[str],
    created_by_id: int | None,
    predecessor_id: int | None = None,
) -> tuple[ApiKey, str]:
    token, now = tokens.mint(), clock.now()
    key = ApiKey(
        organization_id=actor.organization_id,
        name=name,
        name_folded=fold(name),
        tool=tool,
        scope=scope,
        digest=tokens.digest(token, peppers[0]),
        hint=tokens.hint(token),
        pepper_id=tokens.pepper_id(peppers[0]),
        created_at=now,
        created_by_id=created_by_id,
        expires_at=now + life if life else None,
        predecessor_id=predecessor_id,
    )
    session.add(key)
    _flush_name(session)
    detail = {"scope": scope, "tool": tool, "hint": key.hint}
    record(session, actor, Action.KEY_CREATED, target(key), detail=detail)
    notices.key_created(session, actor, key)
    return key, token


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
        life, old.released_at = _life(old), now
        old.expires_at = min(filter(None, (old.expires_at, now + grace)))
        session.flush()  # its name is free for the successor
        new, token = _successor(session, actor, old, life, peppers, created_by_id)
        detail = {"successor": new.id, "works_until": rfc3339(old.expires_at)}
        record(session, actor, Action.KEY_ROTATED, target(old), detail=detail)
        if not grace:
            end(session, actor, old, "Rotated without a grace period")
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
        return _successor(session, actor, old, _life(old), peppers, created_by_id)


def _life(key: ApiKey) -> timedelta | None:
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
    return _made(
        session,
        actor,
        old.name,
        old.tool,
        old.scope,
        life,
        peppers,
        created_by_id,
        predecessor_id=place.id,
    )


def due(created_at: datetime, rotate_months: int) -> tuple[datetime, datetime]:
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
    name = _name(name)
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
    try:
        reason = clean_text(reason, most=REASON_MAX, lines=False)
    except ValueError as error:
        raise Invalid([FieldError("reason", str(error))]) from None
    with acting(actor, Role.MANAGER) as session:
        key = get(session, actor.organization_id, key_id, lock=True)
        end(session, actor, key, reason)
    return key


def end(session: Session, actor: Actor, key: ApiKey, reason: str = "") -> bool:
    """Revoke `key` in the caller's transaction; whether it was not revoked before."""
    if key.revoked_at is not None:
        return False
    key.revoked_at = clock.now()
    key.released_at = key.released_at or key.revoked_at
    key.revoked_by_name, key.revoke_reason = actor.name, tokens.redact(reason) or None
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
    today = clock.now().astimezone(ZoneInfo(zone)).date()
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


def get(session: Session, organization_id: int, key_id: int, *, lock: bool = False) -> ApiKey:
    """The organization's key. Raises `NotFound` for anything else, another organization's too."""
    query = (
        select(ApiKey)
        .where(ApiKey.organization_id == organization_id, ApiKey.id == key_id)
        .options(joinedload(ApiKey.creator))
    )
    if lock:
        query = query.with_for_update(of=ApiKey)
    key = session.scalar(query) if key_id <= ID_MAX else None
    if key is None:
        raise NotFound("There is no such key.")
    return key


@dataclass(frozen=True)
class KeyPage:
    keys: Sequence[ApiKey]
    total: int
    page: int
    pages: int


def list_keys(
    session: Session,
    organization_id: int,
    *,
    q: str = "",
    status: str = "active",
    sort: str = "created",
    descending: bool = True,
    page: int = 1,
    page_size: int = PAGE_SIZE,
) -> KeyPage:
    """One page of the organization's keys. `page` counts from 1; one that isn't there is the nearest.

    A key that goes on beside its successor is not listed: its successor has it as `predecessor`.
    """
    query = _listed(organization_id, q, status)
    total = count(session, organization_id, q, status)
    pages = max(1, -(-total // page_size))
    page = min(max(page, 1), pages)
    column: ColumnElement[object] = {
        "name": ApiKey.name_folded,
        "created": ApiKey.created_at,
        "last_used": ApiKey.last_used_at,
    }[sort].expression
    by_id = ApiKey.id.desc() if descending else ApiKey.id.asc()
    ordered = column.desc() if descending else column.asc()
    if sort == "last_used":  # only here, since PostgreSQL's indices don't have this order
        ordered = ordered.nulls_last() if descending else ordered.nulls_first()
    keys = session.scalars(
        query.options(joinedload(ApiKey.creator), selectinload(ApiKey.predecessor))
        .order_by(ordered, by_id)
        .limit(page_size)
        .offset((page - 1) * page_size)
    ).all()
    return KeyPage(keys, total, page, pages)


def count(session: Session, organization_id: int, q: str, status: str) -> int:
    """How many keys `list_keys` has in all its pages."""
    query = _listed(organization_id, q, status).with_only_columns(func.count())
    return session.scalar(query) or 0


def _listed(organization_id: int, q: str, status: str) -> Select[ApiKey]:
    query = select(ApiKey).where(
        ApiKey.organization_id == organization_id, *_in_status(status), ~_beside_successor()
    )
    if q:
        query = query.where(ApiKey.name_folded.contains(fold(q), autoescape=True))
    return query


def expiring(session: Session, organization_id: int) -> int:
    """How many of the organization's keys stop working soon."""
    return count(session, organization_id, "", "expiring")


def newest(session: Session, organization_id: int) -> ApiKey | None:
    """The key that was made last, while it is new and not revoked."""
    return session.scalar(
        select(ApiKey)
        .where(
            ApiKey.organization_id == organization_id,
            ApiKey.created_at > clock.now() - NEW_FOR,
            ApiKey.revoked_at.is_(None),
        )
        .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
        .limit(1)
    )


def any_ever(session: Session, organization_id: int) -> bool:
    """Whether the organization ever had a key."""
    one = select(ApiKey.id).where(ApiKey.organization_id == organization_id).limit(1)
    return session.scalar(one) is not None


def names(session: Session, organization_id: int) -> Sequence[ApiKey]:
    """Every key the organization ever had, by name."""
    return session.scalars(
        select(ApiKey)
        .where(ApiKey.organization_id == organization_id)
        .order_by(ApiKey.name_folded, ApiKey.id)
    ).all()


def choices(
    session: Session, organization_id: int, chosen: int | None = None
) -> tuple[Sequence[Row[int, str, bool, bool]], bool]:
    """`id`, `name`, `ended` and `old` of keys to choose one from in the audit log, by name; and more?

    `old` is one that goes on beside its successor, whose name is the same.

    All of them while they are few, else those used last, and the `chosen` one.
    """
    (ended,) = _in_status("revoked")
    old = _beside_successor().label("old")
    query = select(ApiKey.id, ApiKey.name, ended.label("ended"), old).where(
        ApiKey.organization_id == organization_id
    )
    by_name = query.order_by(ApiKey.name_folded, ApiKey.id)
    rows = session.execute(by_name.limit(CHOICES + 1)).all()
    if len(rows) <= CHOICES:
        return rows, False
    used = query.where(ApiKey.last_used_at.is_not(None))
    rows = session.execute(
        used.order_by(ApiKey.last_used_at.desc(), ApiKey.id.desc()).limit(CHOICES)
    ).all()
    if chosen is not None and chosen not in {row.id for row in rows}:
        rows = [*rows, *session.execute(query.where(ApiKey.id == chosen))]
    return sorted(rows, key=lambda row: (fold(row.name), row.id)), True


_keys, _members, _organizations, _events, _uses = (
    Base.metadata.tables[model.__tablename__]
    for model in (ApiKey, Member, Organization, AuditEvent, KeyUse)
)
_FIND = Prepared(
    select(
        *(
            _keys.c[name]
            for name in (
                *("id", "organization_id", "name", "tool", "scope", "digest", "hint", "pepper_id"),
                *("created_at", "created_by_id", "expires_at", "revoked_at"),
                *("last_used_at", "last_used_ip", "last_used_user_agent"),
                "last_changed_at",
            )
        ),
        _members.c.role.label("creator_role"),
        _members.c.disabled_at.label("creator_disabled_at"),
        _organizations.c.name.label("organization_name"),
        _organizations.c.slug.label("organization_slug"),
        _organizations.c.status.label("organization_status"),
        _organizations.c.timezone.label("organization_timezone"),
    )
    .join_from(_keys, _organizations)
    .outerjoin(_members, _members.c.id == _keys.c.created_by_id)
    .where(_keys.c.digest == bindparam("presented"))
)
_NOTE_USE = Prepared(
    update(_keys)
    .where(_keys.c.id == bindparam("key"))
    .values(
        last_used_at=bindparam("at"),
        last_used_ip=bindparam("ip"),
        last_used_user_agent=bindparam("user_agent"),
    )
)
# PostgreSQL's insert: SQLite's compiler takes it as well, since the two say the same.
_use = insert(_uses).values(
    key_id=bindparam("key"),
    place=bindparam("place"),
    client=bindparam("client"),
    first_at=bindparam("at"),
    last_at=bindparam("at"),
)
_NOTE_PLACE = Prepared(
    _use.inline().on_conflict_do_update(
        index_elements=list(_uses.primary_key),
        set_={
            "last_at": _use.excluded.last_at,
            # Without a `since`, as after no time, it stays.
            "returned_at": case(
                (_uses.c.last_at >= bindparam("since"), _use.excluded.last_at),
                else_=_uses.c.returned_at,
            ),
        },
    )
)
_NOTE_CHANGE = Prepared(
    update(_keys).where(_keys.c.id == bindparam("key")).values(last_changed_at=bindparam("at"))
)
_RENEW_DIGEST = Prepared(
    update(_keys)
    .where(_keys.c.id == bindparam("key"))
    .values(digest=bindparam("renewed"), pepper_id=bindparam("pepper"))
)
_LIMIT_TOLD = Prepared(
    select(_events.c.id)
    .where(
        _events.c.organization_id == bindparam("organization"),
        _events.c.action == bindparam("action"),
        _events.c.key_id == bindparam("key"),
        _events.c.at > bindparam("since"),
    )
    .limit(1)
)


def find(connection: Direct, token: str, peppers: Sequence[str]) -> Any:
    """The key that `token` is, working or not, with all that its walls need to know.

    A row of its columns and `creator_role`, `creator_disabled_at`, `organization_name`, `_slug`,
    `_status` and `_timezone`, read afresh. Raises `Unauthenticated` when it is no key.
    """
    for pepper in peppers:
        digest = tokens.digest(token, pepper)
        key = connection.first(_FIND, presented=digest)
        if key is None or key.pepper_id != tokens.pepper_id(pepper):
            continue
        if hmac.compare_digest(key.digest, digest):
            return key
    raise Unauthenticated("This API key is not known.", code="key_unknown")


def refusal(key: Any) -> Problem | None:
    """Why this key no longer works; None while it does."""
    if key.revoked_at is not None:
        return Unauthenticated("This API key was revoked.", code="key_revoked")
    if key.expires_at is not None and key.expires_at <= clock.now():
        return Unauthenticated("This API key has expired.", code="key_expired")
    return None


def notes_of_use(key: Any, token: str, origin: Origin, peppers: Sequence[str]) -> list[Statement]:
    """What is to be written beside the event of a call: when, whence and with what it was used.

    Whence and with what is kept for the check-up as well, which looks for keys that are shared.
    At most once a minute, but at once for the first use and when the address or client is another.
    A digest under an older pepper is replaced by one under the newest.
    """
    notes: list[Statement] = []
    now, agent = clock.now(), tokens.redact(origin.user_agent or "")[:256] or None
    same = (key.last_used_ip, key.last_used_user_agent) == (origin.ip, agent)
    if not same or key.last_used_at is None or now - key.last_used_at >= USE_NOTED_EVERY:
        values = {"key": key.id, "at": now, "ip": origin.ip, "user_agent": agent}
        notes.append((_NOTE_USE, values))
        here = _place(key, origin.ip, agent)
        came_back = here != _place(key, key.last_used_ip, key.last_used_user_agent)
        since = now - AT_ONCE if came_back else None
        values = {"key": key.id, "at": now, "since": since, "place": here[0], "client": here[1]}
        notes.append((_NOTE_PLACE, values))
    if key.pepper_id != tokens.pepper_id(peppers[0]):
        renewed, pepper = tokens.digest(token, peppers[0]), tokens.pepper_id(peppers[0])
        notes.append((_RENEW_DIGEST, {"key": key.id, "renewed": renewed, "pepper": pepper}))
    return notes


def notes_of_change(key: Any) -> list[Statement]:
    """What is to be written beside the event of a call that may change something and succeeded."""
    now, last = clock.now(), key.last_changed_at
    if last is not None and now - last < CHANGE_NOTED_EVERY:
        return []
    return [(_NOTE_CHANGE, {"key": key.id, "at": now})]


def _place(key: Any, ip: str | None, user_agent: str | None) -> tuple[str, str]:
    """From where, and with what kind of client. A cloud is one place, whatever its addresses."""
    client = clients.kind(user_agent)
    cloud = key.tool == Tool.CHATGPT or clients.is_cloud(client)
    return "" if cloud or ip is None else network(ip), client


def note_refusal(
    session: Session,
    organization_id: int,
    key_id: int,
    origin: Origin,
    code: str,
    *,
    count: int = 1,
    at: datetime | None = None,
) -> None:
    """Count tries of a key that no longer works; record them at most once a minute a key.

    There were `count`, the last of them `at`, by default now. The event tells how many tries there
    were since the last one that was recorded.
    """
    now, key = clock.now(), get(session, organization_id, key_id, lock=True)
    # One that was rotated gave up its name before its end; that its end has come is news still.
    if key.revoked_at is None and key.released_at != key.expires_at:
        _note_expired(session, key)
    # Counted by the database, so that tries at the same moment are all counted.
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key.id)
        .values(refused_count=ApiKey.refused_count + count, refused_at=at or now)
        .execution_options(synchronize_session=False)
    )
    session.refresh(key)
    last: datetime | None = key.refused_recorded_at
    if last is None or now - last >= REFUSALS_RECORDED_EVERY:
        count = key.refused_count - key.refused_recorded_count
        key.refused_recorded_at, key.refused_recorded_count = now, key.refused_count
        actor = Actor.of_key(key, origin)
        detail = {"count": count, "code": code}
        record(session, actor, Action.KEY_REFUSED, target(key), Outcome.DENIED, detail)


def limit_told(connection: Direct, key: Any) -> bool:
    """Whether the log told in the last minute that this key calls too often."""
    told = connection.first(
        _LIMIT_TOLD,
        organization=key.organization_id,
        action=Action.KEY_LIMITED,
        key=key.id,
        since=clock.now() - REFUSALS_RECORDED_EVERY,
    )
    return told is not None


def note_limited(session: Session, key: Any, origin: Origin, count: int) -> int:
    """Record that a key calls too often, at most once a minute a key.

    `count` calls were refused since the last event. Returns how many of them were told of now.
    """
    serialize(session, f"limited {key.id}")
    if limit_told(direct(session), key):
        return 0
    actor = Actor.of_key(key, origin)
    record(session, actor, Action.KEY_LIMITED, target(key), Outcome.DENIED, {"count": count})
    return count


def _name(value: str) -> str:
    try:
        return tokens.redact(clean_line(value))
    except ValueError as error:
        raise Invalid([FieldError("name", str(error))]) from None


def _flush_name(session: Session) -> None:
    """Write to the database, whose unique index is the judge of names."""
    try:
        session.flush()
    except IntegrityError as error:
        if "name" not in str(error.orig):  # it names the index or, in SQLite, the columns
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
        _note_expired(session, key)
        session.flush()


def _note_expired(session: Session, key: ApiKey) -> None:
    key.released_at = key.expires_at
    record(session, Actor.system(key.organization_id), Action.KEY_EXPIRED, target(key))


def replaced() -> ColumnElement[bool]:
    """Whether one that a key was rotated to works."""
    successor = aliased(ApiKey)
    return exists().where(
        successor.predecessor_id == ApiKey.id,
        successor.revoked_at.is_(None),
        successor.expires_at.is_(None) | (successor.expires_at > clock.now()),
    )


def _beside_successor() -> ColumnElement[bool]:
    """Whether a key works, and so does one that it was rotated to."""
    now = clock.now()
    # A rotated key has an end, so most need no look at their successor.
    ends = ApiKey.expires_at.is_not(None) & (ApiKey.expires_at > now)
    return ends & ApiKey.revoked_at.is_(None) & replaced()


def _in_status(status: str) -> list[ColumnElement[bool]]:
    now = clock.now()
    working = (ApiKey.revoked_at.is_(None)) & (
        ApiKey.expires_at.is_(None) | (ApiKey.expires_at > now)
    )
    if status == "all":
        return []
    if status == "revoked":
        return [~working]
    if status == "expiring":
        return [working, ApiKey.expires_at <= now + EXPIRING_SOON]
    return [working]

"""Authenticating a call by its key, and recording how the key is used."""

import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, case, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from convene_keys import clock, config, text
from convene_keys.audit import user_agents
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, network, record
from convene_keys.db.session import Base, raw_connection, serialize
from convene_keys.db.statements import CompiledStatement, RawConnection, Statement
from convene_keys.errors import Problem, Unauthenticated
from convene_keys.keys import tokens
from convene_keys.keys.lifecycle import record_expired, target
from convene_keys.keys.queries import get
from convene_keys.models import ApiKey, AuditEvent, KeyUse, Member, Organization, Outcome, Tool

REFUSALS_RECORDED_EVERY = timedelta(minutes=1)
USE_WRITTEN_EVERY = timedelta(minutes=1)
CHANGE_WRITTEN_EVERY = timedelta(days=1)
AT_ONCE = timedelta(hours=1)  # who comes back sooner was hardly elsewhere meanwhile

_keys, _members, _organizations, _events, _uses = (
    Base.metadata.tables[model.__tablename__]
    for model in (ApiKey, Member, Organization, AuditEvent, KeyUse)
)


class FoundKey(NamedTuple):
    """A key that a call carries, working or not, with all that its checks need to know."""

    id: int
    organization_id: int
    name: str
    tool: str
    scope: str
    digest: bytes
    hint: str
    pepper_id: str
    created_at: datetime
    created_by_id: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    last_used_ip: str | None
    last_used_user_agent: str | None
    last_changed_at: datetime | None
    creator_role: str | None
    creator_disabled_at: datetime | None
    organization_name: str
    organization_slug: str
    organization_status: str
    organization_timezone: str


_KEY_BY_DIGEST = CompiledStatement(
    select(
        *(_keys.c[name] for name in FoundKey._fields if name in _keys.c),
        _members.c.role.label("creator_role"),
        _members.c.disabled_at.label("creator_disabled_at"),
        _organizations.c.name.label("organization_name"),
        _organizations.c.slug.label("organization_slug"),
        _organizations.c.status.label("organization_status"),
        _organizations.c.timezone.label("organization_timezone"),
    )
    .join_from(_keys, _organizations)
    .outerjoin(_members, _members.c.id == _keys.c.created_by_id)
    .where(_keys.c.digest == bindparam("presented")),
    row=FoundKey,
)
_UPDATE_USE = CompiledStatement(
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
_UPSERT_SOURCE = CompiledStatement(
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
_UPDATE_CHANGE = CompiledStatement(
    update(_keys).where(_keys.c.id == bindparam("key")).values(last_changed_at=bindparam("at"))
)
_RENEW_DIGEST = CompiledStatement(
    update(_keys)
    .where(_keys.c.id == bindparam("key"))
    .values(digest=bindparam("renewed"), pepper_id=bindparam("pepper"))
)
_LIMIT_REPORTED = CompiledStatement(
    select(_events.c.id)
    .where(
        _events.c.organization_id == bindparam("organization"),
        _events.c.action == bindparam("action"),
        _events.c.key_id == bindparam("key"),
        _events.c.at > bindparam("since"),
    )
    .limit(1)
)


def authenticate(connection: RawConnection, token: str, peppers: Sequence[str]) -> FoundKey:
    """The key that `token` is, read afresh. Raises `Unauthenticated` when it is no key."""
    for pepper in peppers:
        digest = tokens.digest(token, pepper)
        key: FoundKey | None = connection.first(_KEY_BY_DIGEST, presented=digest)
        if key is None or key.pepper_id != config.pepper_id(pepper):
            continue
        if hmac.compare_digest(key.digest, digest):
            return key
    raise Unauthenticated("This API key is not known.", code="key_unknown")


def refusal(key: FoundKey) -> Problem | None:
    """Why this key no longer works; None while it does."""
    if key.revoked_at is not None:
        return Unauthenticated("This API key was revoked.", code="key_revoked")
    if key.expires_at is not None and key.expires_at <= clock.now():
        return Unauthenticated("This API key has expired.", code="key_expired")
    return None


def usage_updates(
    key: FoundKey, token: str, origin: Origin, peppers: Sequence[str]
) -> list[Statement]:
    """Statements recording time, address and client of a call.

    Address and client are kept for the check-up as well, which looks for keys that are shared.
    At most once a minute, but at once for the first use and when the address or client is another.
    A digest under an older pepper is replaced by one under the newest.
    """
    updates: list[Statement] = []
    now, agent = clock.now(), text.redact(origin.user_agent or "")[:256] or None
    same = (key.last_used_ip, key.last_used_user_agent) == (origin.ip, agent)
    if not same or key.last_used_at is None or now - key.last_used_at >= USE_WRITTEN_EVERY:
        values = {"key": key.id, "at": now, "ip": origin.ip, "user_agent": agent}
        updates.append((_UPDATE_USE, values))
        here = _source_of(key, origin.ip, agent)
        came_back = here != _source_of(key, key.last_used_ip, key.last_used_user_agent)
        since = now - AT_ONCE if came_back else None
        values = {"key": key.id, "at": now, "since": since, "place": here[0], "client": here[1]}
        updates.append((_UPSERT_SOURCE, values))
    if key.pepper_id != config.pepper_id(peppers[0]):
        renewed, pepper = tokens.digest(token, peppers[0]), config.pepper_id(peppers[0])
        updates.append((_RENEW_DIGEST, {"key": key.id, "renewed": renewed, "pepper": pepper}))
    return updates


def change_updates(key: FoundKey) -> list[Statement]:
    """Statements recording a successful call that may change something, at most once a day."""
    now, last = clock.now(), key.last_changed_at
    if last is not None and now - last < CHANGE_WRITTEN_EVERY:
        return []
    return [(_UPDATE_CHANGE, {"key": key.id, "at": now})]


def _source_of(key: FoundKey, ip: str | None, user_agent: str | None) -> tuple[str, str]:
    """The network and the kind of client. A cloud is one place, whatever its addresses."""
    client = user_agents.kind(user_agent)
    cloud = key.tool == Tool.CHATGPT or user_agents.is_cloud(client)
    return "" if cloud or ip is None else network(ip), client


def record_refusal(
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
        record_expired(session, key)
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


def is_limit_reported(connection: RawConnection, key: FoundKey) -> bool:
    """Whether the log told in the last minute that this key calls too often."""
    told = connection.first(
        _LIMIT_REPORTED,
        organization=key.organization_id,
        action=Action.KEY_LIMITED,
        key=key.id,
        since=clock.now() - REFUSALS_RECORDED_EVERY,
    )
    return told is not None


def record_limited(session: Session, key: FoundKey, origin: Origin, count: int) -> int:
    """Record that a key calls too often, at most once a minute a key.

    `count` calls were refused since the last event. Returns how many of them were told of now.
    """
    serialize(session, f"limited {key.id}")
    if is_limit_reported(raw_connection(session), key):
        return 0
    actor = Actor.of_key(key, origin)
    record(session, actor, Action.KEY_LIMITED, target(key), Outcome.DENIED, {"count": count})
    return count

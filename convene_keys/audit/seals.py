"""The audit log's seals: a mac on every event and a signed chain of batches, so that a change shows.

What is hashed is what the database holds, as text, so that a value written in another way is a
change as well, and both kinds of database give the same. See docs/security.md for the limits.

A key's age is its place among the keys of the log, 0 for the newest. In each organization's chain
it only falls, and a seal vouches for no event under an older key than its own. When the newest key
is new, every chain gets a seal of no events under it: up to there the older ones count.
"""

import hashlib
import hmac
import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any

from flask import Flask
from sqlalchemy import Connection, CursorResult, Engine, Row, func, select, text, tuple_
from sqlalchemy.orm import Session

from convene_keys import background, clock
from convene_keys.db.session import db, serialize, transaction
from convene_keys.models import AuditEvent, AuditSeal

# What a mac covers, for good: a column that is added later needs a mac of another form.
COLUMNS = (
    *("at", "organization_id", "actor", "key_id", "key_name", "member_id", "member_name"),
    *("action", "target_type", "target_id", "target_name", "outcome"),
    *("ip", "user_agent", "request_id", "detail"),
)
SIGNED_COLUMNS = (
    *("organization_id", "batch", "first_event_id", "last_event_id", "count"),
    *("root", "previous", "sealed_at"),
)
BATCH_MAX = 5_000  # events of all organizations together
PATIENCE = "2s"

# What the database holds, as it is: no value is read in a way that could fail or forgive.
StoredRow = Row[object]
StoredRows = CursorResult[object]

NO_SIGNATURE = bytes(32)
_PLAIN = (str, int, type(None))
ENTRY = struct.Struct(">q8s")  # an event's id and the beginning of its mac

NEWEST = """WHERE (organization_id, batch) IN
    (SELECT organization_id, max(batch) FROM audit_seal GROUP BY organization_id)"""


def keys(secrets: Sequence[str]) -> tuple[bytes, ...]:
    """The keys of the audit log, one a secret, newest first."""
    return tuple(hmac.digest(s.encode(), b"convene-keys audit log", "sha256") for s in secrets)


def keys_of(bind: Engine | Connection) -> tuple[bytes, ...]:
    """The keys that `create_app` gave to the engine."""
    found: tuple[bytes, ...] = bind.get_execution_options()["audit_keys"]
    return found


def mac(values: Mapping[str, object], key: bytes) -> bytes:
    """The 32 bytes that vouch for an event: all its columns but the id, which its seal binds."""
    return compute_mac("event", values, COLUMNS, key)


def compute_mac(
    kind: str, values: Mapping[str, object], columns: Sequence[str], key: bytes
) -> bytes:
    plain = [kind, *[v if isinstance(v := values[c], _PLAIN) else _plain(v) for c in columns]]
    message = json.dumps(plain)
    return hmac.new(key, message.encode(), "sha256").digest()


def _plain(value: object) -> object:
    """What the database holds for `value`; bytes in a list, so that no text is equal to them."""
    if isinstance(value, datetime):
        there = value.astimezone(UTC).replace(tzinfo=None)
        return there.isoformat(" ", "microseconds")
    if isinstance(value, dict):
        return json.dumps(value)
    return [value.hex()] if isinstance(value, bytes) else value


# Sealing


def seal() -> Counter[int]:
    """Close all events that are there into batches; how many were sealed, by organization.

    Safe to call from several processes at once. Only writing a batch's seals is a transaction that
    others wait for.
    """
    session, sealed = db.session(), Counter[int]()
    horizon = _horizon(session)
    while True:
        mark = sealed_up_to(session)
        rows = session.execute(
            select(AuditEvent.id, AuditEvent.organization_id, AuditEvent.mac)
            .where(AuditEvent.id > mark, AuditEvent.id <= horizon)
            .order_by(AuditEvent.id)
            .limit(BATCH_MAX)
        ).all()
        session.rollback()
        if not rows:
            break
        with transaction():
            serialize(session, "audit_seal")
            if sealed_up_to(session) == mark:  # otherwise another sealer was quicker
                age = current_key_age(session)
                for organization_id, events in groupby(
                    sorted(rows, key=attrgetter("organization_id", "id")),
                    attrgetter("organization_id"),
                ):
                    sealed[organization_id] += _close(session, organization_id, [*events], age)
    if current_key_age(session) > 0:
        with transaction():
            serialize(session, "audit_seal")
            if current_key_age(session) > 0:
                for head in heads(session):
                    _close(session, head.organization_id, [], 0)
    session.rollback()
    return sealed


def is_due(session: Session, age: timedelta) -> bool:
    """Whether the oldest event without a seal is at least so old, or the newest key is new."""
    first = (
        select(AuditEvent.at).where(AuditEvent.id > sealed_up_to(session)).order_by(AuditEvent.id)
    )
    at = session.scalar(first.limit(1))
    return current_key_age(session) > 0 or (at is not None and at <= clock.now() - age)


def heads(session: Session) -> Sequence[AuditSeal]:
    """Each organization's newest seal."""
    newest = select(AuditSeal.organization_id, func.max(AuditSeal.batch)).group_by(
        AuditSeal.organization_id
    )
    place = tuple_(AuditSeal.organization_id, AuditSeal.batch)
    query = select(AuditSeal).where(place.in_(newest)).order_by(AuditSeal.organization_id)
    return session.scalars(query).all()


def _horizon(session: Session) -> int:
    """An id up to which no event will appear any more.

    On PostgreSQL every writer holds the shared form of this lock (see the migration); on SQLite
    ids are committed in order. A writer that takes long makes this one give up, not the others wait.
    """
    session.rollback()
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
    serialize(session, "audit_event")
    horizon = session.scalar(select(func.max(AuditEvent.id))) or 0
    session.rollback()
    return horizon


def sealed_up_to(session: Session) -> int:
    """The id up to which every event of every organization is sealed."""
    return session.scalar(select(func.max(AuditSeal.last_event_id))) or 0


def current_key_age(session: Session) -> int:
    """The age of the key that counts at the end of the log: see `_age`."""
    connection, keys = session.connection(), keys_of(session.get_bind())
    last = "WHERE last_event_id = (SELECT max(last_event_id) FROM audit_seal)"
    with seal_rows(connection, last) as newest:  # several, where a new key has just begun
        ages = [key_age(seal, keys) or 0 for seal in newest]
    if ages:
        return min(ages)
    first = event_rows(connection, "id = (SELECT min(id) FROM audit_event)").first()
    return 0 if first is None or is_vouched(first, keys[:1]) else len(keys)


def key_age(seal: StoredRow, keys: Sequence[bytes]) -> int | None:
    """The age of the key that a seal was made under; None when it is none of `keys`.

    That is their number, older than all, for the form that seals had before AUDIT_KEY: under them
    every key counted. They are good for as long as there are logs that begin with them.
    """
    for age, key in enumerate(keys):
        if matches("seal of a key", seal, SIGNED_COLUMNS, seal.signature, key):
            return age
    first = any(matches("seal", seal, SIGNED_COLUMNS, seal.signature, key) for key in keys)
    return len(keys) if first else None


def _close(
    session: Session, organization_id: int, events: Sequence[Row[int, int, bytes]], age: int
) -> int:
    """Write the seal of some events, or of none under a new key, as of an age; give their number."""
    before = session.execute(
        select(AuditSeal.batch, AuditSeal.signature)
        .where(AuditSeal.organization_id == organization_id)
        .order_by(AuditSeal.batch.desc())
        .limit(1)
    ).first()
    entries = b"".join(ENTRY.pack(event.id, event.mac[:8]) for event in events)
    mark, keys = sealed_up_to(session), keys_of(session.get_bind())
    values = {
        "organization_id": organization_id,
        "batch": before.batch + 1 if before else 1,
        "first_event_id": events[0].id if events else mark + 1,
        "last_event_id": events[-1].id if events else mark,
        "count": len(events),
        "root": hashlib.sha256(entries).digest(),
        "previous": before.signature if before else NO_SIGNATURE,
        "sealed_at": clock.now(),
    }
    form, key = ("seal of a key", keys[age]) if age < len(keys) else ("seal", keys[-1])
    signature = compute_mac(form, values, SIGNED_COLUMNS, key)
    session.add(AuditSeal(**values, signature=signature, entries=entries))
    return len(events)


def is_vouched(event: StoredRow, keys: Sequence[bytes]) -> bool:
    return any(matches("event", event, COLUMNS, event.mac, key) for key in keys)


def matches(kind: str, row: StoredRow, columns: Sequence[str], found: Any, key: bytes) -> bool:
    try:
        return hmac.compare_digest(compute_mac(kind, row._asdict(), columns, key), found)
    except TypeError:  # something that is no bytes, or no value of a column: SQLite takes anything
        return False


def event_rows(
    connection: Connection, where: str, stream: int | None = None, **values: object
) -> StoredRows:
    columns = ", ".join(COLUMNS[1:-1])
    at = _as_text(connection, "at")
    return connection.execute(
        text(
            f"SELECT id, {at}, {columns}, CAST(detail AS TEXT) AS detail, mac "  # noqa: S608
            f"FROM audit_event WHERE {where}"
        ),
        values,
        execution_options={"yield_per": stream} if stream else {},
    )


def seal_rows(connection: Connection, which: str, **values: object) -> StoredRows:
    columns, at = ", ".join(SIGNED_COLUMNS[:-1]), _as_text(connection, "sealed_at")
    return connection.execute(
        text(
            f"SELECT {columns}, {at}, signature, entries "  # noqa: S608
            f"FROM audit_seal {which}"
        ),
        values,
        execution_options={"yield_per": 10},
    )


def _as_text(connection: Connection, column: str) -> str:
    if connection.dialect.name == "sqlite":
        return column
    return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') AS {column}"


# Together at most 40 s behind. Several workers find the same events due and only one seals them.
AGE = timedelta(seconds=30)
EVERY = 10.0


def start(app: Flask, *, age: timedelta = AGE, every: float = EVERY) -> Callable[[], None]:
    """Seal events as soon as they are `age` old, looking every so many seconds. See `rounds`."""

    def turn() -> None:
        if is_due(db.session(), age):
            seal()

    return background.start(
        app, "sealer", turn, every=every, failed="the audit log could not be sealed"
    )

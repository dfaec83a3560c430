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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Row, func, select, text, tuple_
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.extensions import db, serialize, transaction
from convene_keys.models import AuditEvent, AuditSeal

# What a mac covers, for good: a column that is added later needs a mac of another form.
COLUMNS = (
    "at",
    "organization_id",
    "actor",
    "key_id",
    "key_name",
    "member_id",
    "member_name",
    "action",
    "target_type",
    "target_id",
    "target_name",
    "outcome",
    "ip",
    "user_agent",
    "request_id",
    "detail",
)
_SIGNED = (
    "organization_id",
    "batch",
    "first_event_id",
    "last_event_id",
    "count",
    "root",
    "previous",
    "sealed_at",
)
BATCH_MAX = 5_000  # events of all organizations together
PATIENCE = "2s"
OVERDUE = timedelta(minutes=5)
_FIRST = bytes(32)
_PLAIN = (str, int, type(None))
_ENTRY = struct.Struct(">q8s")  # an event's id and the beginning of its mac
_GLANCE = 200
_NEWEST = """WHERE (organization_id, batch) IN
    (SELECT organization_id, max(batch) FROM audit_seal GROUP BY organization_id)"""
_OLDER = (
    "an older key, which no longer counts: by somebody who has it, or by a worker that was not "
    "restarted with the new one"
)


def keys(secrets: Sequence[str]) -> tuple[bytes, ...]:
    """The keys of the audit log, one a secret, newest first."""
    return tuple(hmac.digest(s.encode(), b"convene-keys audit log", "sha256") for s in secrets)


def keys_of(bind: Engine | Connection) -> tuple[bytes, ...]:
    """The keys that `create_app` gave to the engine."""
    found: tuple[bytes, ...] = bind.get_execution_options()["audit_keys"]
    return found


def mac(values: Mapping[str, Any], key: bytes) -> bytes:
    """The 32 bytes that vouch for an event: all its columns but the id, which its seal binds."""
    return _hmac("event", values, COLUMNS, key)


def _hmac(kind: str, values: Mapping[str, Any], columns: Sequence[str], key: bytes) -> bytes:
    plain = [kind, *[v if isinstance(v := values[c], _PLAIN) else _plain(v) for c in columns]]
    message = json.dumps(plain)
    return hmac.digest(key, message.encode(), "sha256")


def _plain(value: Any) -> Any:
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
        mark = _mark(session)
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
            if _mark(session) == mark:  # otherwise another sealer was quicker
                age = _age_now(session)
                for organization_id, events in groupby(
                    sorted(rows, key=attrgetter("organization_id", "id")),
                    attrgetter("organization_id"),
                ):
                    sealed[organization_id] += _close(session, organization_id, [*events], age)
    if _age_now(session) > 0:
        with transaction():
            serialize(session, "audit_seal")
            if _age_now(session) > 0:
                for head in heads(session):
                    _close(session, head.organization_id, [], 0)
    session.rollback()
    return sealed


def is_due(session: Session, age: timedelta) -> bool:
    """Whether the oldest event without a seal is at least so old, or the newest key is new."""
    first = select(AuditEvent.at).where(AuditEvent.id > _mark(session)).order_by(AuditEvent.id)
    at = session.scalar(first.limit(1))
    return _age_now(session) > 0 or (at is not None and at <= clock.now() - age)


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


def _mark(session: Session) -> int:
    """The id up to which every event of every organization is sealed."""
    return session.scalar(select(func.max(AuditSeal.last_event_id))) or 0


def _age_now(session: Session) -> int:
    """The age of the key that counts at the end of the log: see `_age`."""
    connection, keys = session.connection(), keys_of(session.get_bind())
    last = "WHERE last_event_id = (SELECT max(last_event_id) FROM audit_seal)"
    with _seals(connection, last) as newest:  # several, where a new key has just begun
        ages = [_age(seal, keys) or 0 for seal in newest]
    if ages:
        return min(ages)
    first = events(connection, "id = (SELECT min(id) FROM audit_event)").first()
    return 0 if first is None or _vouched(first, keys[:1]) else len(keys)


def _age(seal: Row[Any], keys: Sequence[bytes]) -> int | None:
    """The age of the key that a seal was made under; None when it is none of `keys`.

    That is their number, older than all, for the form that seals had before AUDIT_KEY: under them
    every key counted. They are good for as long as there are logs that begin with them.
    """
    for age, key in enumerate(keys):
        if _fits("seal of a key", seal, _SIGNED, seal.signature, key):
            return age
    first = any(_fits("seal", seal, _SIGNED, seal.signature, key) for key in keys)
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
    entries = b"".join(_ENTRY.pack(event.id, event.mac[:8]) for event in events)
    mark, keys = _mark(session), keys_of(session.get_bind())
    values = {
        "organization_id": organization_id,
        "batch": before.batch + 1 if before else 1,
        "first_event_id": events[0].id if events else mark + 1,
        "last_event_id": events[-1].id if events else mark,
        "count": len(events),
        "root": hashlib.sha256(entries).digest(),
        "previous": before.signature if before else _FIRST,
        "sealed_at": clock.now(),
    }
    form, key = ("seal of a key", keys[age]) if age < len(keys) else ("seal", keys[-1])
    signature = _hmac(form, values, _SIGNED, key)
    session.add(AuditSeal(**values, signature=signature, entries=entries))
    return len(events)


# Verifying


@dataclass(frozen=True)
class Head:
    """An organization's newest seal as it was written down elsewhere."""

    organization: int
    batch: int
    last_event_id: int
    signature: str


@dataclass
class Verdict:
    """What was found in an organization's log, up to the first thing that is wrong.

    `event_id` is the first bad event; where events are gone with their seal, the id after the last
    good one. `older_until`: the event up to which older keys count, and since when no further;
    `unchanged`: whether the newest key has sealed nothing yet in a log that has seals.
    """

    organization_id: int
    batches: int = 0
    sealed: int = 0
    unsealed: int = 0
    sealed_at: datetime | None = None
    last_event_id: int = 0
    older_until: tuple[int, datetime] | None = None
    unchanged: bool = False
    event_id: int | None = None
    problem: str | None = field(default=None)


class _Bad(Exception):
    def __init__(self, event_id: int, problem: str) -> None:
        super().__init__(problem)
        self.event_id, self.problem = event_id, problem


def verify(session: Session, organization_id: int, known: Sequence[Head] = ()) -> Verdict:
    """Check every event and seal of an organization in one snapshot, reading them as a stream.

    `known` are heads of this organization; they show what the log alone can't: that it was
    replaced by an older or another copy of itself.
    """
    session.rollback()
    snapshot = {"isolation_level": "REPEATABLE READ"}
    postgresql = session.get_bind().dialect.name == "postgresql"
    connection = session.connection(execution_options=snapshot if postgresql else {})
    verdict = Verdict(organization_id)
    try:
        _walk(connection, verdict, known, keys_of(session.get_bind()), _mark(session))
    except _Bad as bad:
        verdict.event_id, verdict.problem = bad.event_id, bad.problem
    session.rollback()
    return verdict


def _walk(
    connection: Connection,
    verdict: Verdict,
    known: Sequence[Head],
    keys: Sequence[bytes],
    mark: int,
) -> None:
    of = verdict.organization_id
    with _seals(connection, _NEWEST) as newest:
        ages = [age for seal in newest if (age := _age(seal, keys)) is not None]
    now = min(ages, default=len(keys))
    with (
        events(connection, "organization_id = :of ORDER BY id", stream=500, of=of) as stream,
        _seals(connection, "WHERE organization_id = :of ORDER BY batch", of=of) as sealed,
    ):
        _compare(verdict, known, keys, mark, now, sealed, stream)
    copies = (
        select(func.max(AuditEvent.id))
        .where(AuditEvent.organization_id == of)
        .group_by(AuditEvent.mac)
        .having(func.count() > 1)
    )
    copy = connection.scalar(select(func.min(copies.subquery().c[0])))
    if copy is not None:
        raise _Bad(copy, "it is a copy of an earlier event")


def _compare(
    verdict: Verdict,
    known: Sequence[Head],
    keys: Sequence[bytes],
    mark: int,
    now: int,
    sealed: CursorResult[Any],
    stream: CursorResult[Any],
) -> None:
    ahead, previous, age = next(stream, None), _FIRST, len(keys)
    for seal in sealed:
        number = verdict.batches + 1
        coming = ahead.id if ahead else verdict.last_event_id + 1
        before, age = age, _check_seal(seal, coming, keys, age)
        if age < before and verdict.batches:
            verdict.older_until = (seal.last_event_id, _moment(seal))
        if seal.batch != number:
            if coming >= seal.first_event_id:  # its events are gone as well
                coming = verdict.last_event_id + 1
            raise _Bad(coming, f"batch {number} is missing, or its seal")
        if seal.previous != previous:
            raise _Bad(coming, f"the seal of batch {number} does not follow the one before it")
        for head in known:
            if head.batch == number and head.signature != seal.signature.hex():
                raise _Bad(seal.first_event_id, f"batch {number} is not the one of the head given")
        for event_id, beginning in _ENTRY.iter_unpack(seal.entries):
            if ahead is None or ahead.id > event_id:
                raise _Bad(event_id, "it is missing")
            if ahead.id < event_id:
                raise _Bad(ahead.id, "it was put in later: no seal has it")
            _check_event(ahead, keys, age, beginning)
            ahead = next(stream, None)
            verdict.sealed += 1
        verdict.batches, verdict.last_event_id = number, seal.last_event_id
        verdict.sealed_at, previous = _moment(seal), seal.signature
    for head in known:
        if head.batch > verdict.batches:
            coming = verdict.last_event_id + 1
            if ahead is not None and ahead.id <= head.last_event_id:
                coming = ahead.id
            raise _Bad(coming, f"what was sealed up to {head.last_event_id} is not there any more")
    if verdict.batches and age > now:
        coming = ahead.id if ahead else verdict.last_event_id + 1
        raise _Bad(coming, "a newer key counts by now, and nothing here is sealed under it")
    verdict.unchanged = now > 0 and verdict.batches > 0
    while ahead is not None:
        if ahead.id <= mark:
            raise _Bad(ahead.id, "no seal has it, though newer events are sealed")
        _check_event(ahead, keys, now)
        verdict.unsealed += 1
        ahead = next(stream, None)


def _check_seal(seal: Row[Any], coming: int, keys: Sequence[bytes], oldest: int) -> int:
    """The age of its key, which is at most `oldest`."""
    age = _age(seal, keys)
    if age is None or hashlib.sha256(seal.entries).digest() != seal.root:
        problem = f"the seal of batch {seal.batch} was changed, or its AUDIT_KEY is not set"
        raise _Bad(coming, problem)
    if age > oldest:
        raise _Bad(coming, f"the seal of batch {seal.batch} was made under {_OLDER}")
    return age


def _check_event(
    event: Row[Any], keys: Sequence[bytes], oldest: int, beginning: bytes | None = None
) -> None:
    if not _vouched(event, keys[: oldest + 1]):
        if _vouched(event, keys):
            raise _Bad(event.id, f"it was made under {_OLDER}")
        raise _Bad(event.id, "it was changed, or made under an AUDIT_KEY that is not set")
    if beginning is not None and event.mac[:8] != beginning:
        raise _Bad(event.id, "it is not the event that was sealed under this id")


def _vouched(event: Row[Any], keys: Sequence[bytes]) -> bool:
    return any(_fits("event", event, COLUMNS, event.mac, key) for key in keys)


def _fits(kind: str, row: Row[Any], columns: Sequence[str], found: Any, key: bytes) -> bool:
    try:
        return hmac.compare_digest(_hmac(kind, row._asdict(), columns, key), found)
    except TypeError:  # something that is no bytes, or no value of a column: SQLite takes anything
        return False


@dataclass(frozen=True)
class Glance:
    """What the audit page says of the seals. `problem` is in plain words."""

    sealed_at: datetime | None = None
    overdue: bool = False
    problem: str | None = None


def glance(session: Session, organization_id: int) -> Glance:
    """A check that costs the same however long the log is: the newest seal and its last events."""
    connection, keys = session.connection(), keys_of(session.get_bind())
    mine = "WHERE organization_id = :of ORDER BY batch DESC LIMIT 1"
    newest = _seals(connection, mine, of=organization_id).first()
    late = (
        select(AuditEvent.id)
        .where(AuditEvent.organization_id == organization_id)
        .where(AuditEvent.at <= clock.now() - OVERDUE)
        .order_by(AuditEvent.at.desc(), AuditEvent.id.desc())
        .limit(1)
    )
    overdue = (session.scalar(late) or 0) > (newest.last_event_id if newest else 0)
    if newest is None:
        return Glance(overdue=overdue)
    try:
        age = _check_seal(newest, newest.first_event_id, keys, _age_now(session))
        entries = list(_ENTRY.iter_unpack(newest.entries[-_GLANCE * _ENTRY.size :]))
        wanted = ", ".join(str(event_id) for event_id, _ in entries) or "NULL"  # our own numbers
        found = {event.id: event for event in events(connection, f"id IN ({wanted})")}
        for event_id, beginning in entries:
            if event_id not in found:
                raise _Bad(event_id, "it is missing")
            _check_event(found[event_id], keys, age, beginning)
    except _Bad as bad:
        return Glance(problem=f"event {bad.event_id}: {bad.problem}")
    return Glance(_moment(newest), overdue)


# What the database holds, as it is: no value is read in a way that could fail or forgive.


def events(
    connection: Connection, where: str, stream: int | None = None, **values: Any
) -> CursorResult[Any]:
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


def _seals(connection: Connection, which: str, **values: Any) -> CursorResult[Any]:
    columns, at = ", ".join(_SIGNED[:-1]), _as_text(connection, "sealed_at")
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


def _moment(seal: Row[Any]) -> datetime:
    return datetime.fromisoformat(seal.sealed_at).replace(tzinfo=UTC)

"""The audit log's seals: a mac on every event and a signed chain of batches, so that a change shows.

What is hashed is what the database holds, as text, so that a value written in another way is a
change as well, and both kinds of database give the same. See docs/security.md for the limits.
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


def keys(peppers: Sequence[str]) -> tuple[bytes, ...]:
    """The keys of the audit log, one a pepper, newest first."""
    return tuple(hmac.digest(p.encode(), b"convene-keys audit log", "sha256") for p in peppers)


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
            return sealed
        with transaction():
            serialize(session, "audit_seal")
            if _mark(session) == mark:  # otherwise another sealer was quicker
                for organization_id, events in groupby(
                    sorted(rows, key=attrgetter("organization_id", "id")),
                    attrgetter("organization_id"),
                ):
                    sealed[organization_id] += _close(session, organization_id, [*events])


def is_due(session: Session, age: timedelta) -> bool:
    """Whether the oldest event without a seal is at least so old."""
    first = select(AuditEvent.at).where(AuditEvent.id > _mark(session)).order_by(AuditEvent.id)
    at = session.scalar(first.limit(1))
    return at is not None and at <= clock.now() - age


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


def _close(session: Session, organization_id: int, events: Sequence[Row[int, int, bytes]]) -> int:
    before = session.execute(
        select(AuditSeal.batch, AuditSeal.signature)
        .where(AuditSeal.organization_id == organization_id)
        .order_by(AuditSeal.batch.desc())
        .limit(1)
    ).first()
    entries = b"".join(_ENTRY.pack(event.id, event.mac[:8]) for event in events)
    values = {
        "organization_id": organization_id,
        "batch": before.batch + 1 if before else 1,
        "first_event_id": events[0].id,
        "last_event_id": events[-1].id,
        "count": len(events),
        "root": hashlib.sha256(entries).digest(),
        "previous": before.signature if before else _FIRST,
        "sealed_at": clock.now(),
    }
    signature = _hmac("seal", values, _SIGNED, keys_of(session.get_bind())[0])
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
    good one.
    """

    organization_id: int
    batches: int = 0
    sealed: int = 0
    unsealed: int = 0
    sealed_at: datetime | None = None
    last_event_id: int = 0
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
    with (
        events(connection, "organization_id = :of ORDER BY id", stream=500, of=of) as stream,
        _seals(connection, of, "ORDER BY batch") as sealed,
    ):
        _compare(verdict, known, keys, mark, sealed, stream)
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
    sealed: CursorResult[Any],
    stream: CursorResult[Any],
) -> None:
    ahead, previous = next(stream, None), _FIRST
    for seal in sealed:
        number = verdict.batches + 1
        coming = ahead.id if ahead else verdict.last_event_id + 1
        _check_seal(seal, coming, keys)
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
            _check_event(ahead, keys, beginning)
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
    while ahead is not None:
        if ahead.id <= mark:
            raise _Bad(ahead.id, "no seal has it, though newer events are sealed")
        _check_event(ahead, keys)
        verdict.unsealed += 1
        ahead = next(stream, None)


def _check_seal(seal: Row[Any], coming: int, keys: Sequence[bytes]) -> None:
    signed = any(_fits("seal", seal, _SIGNED, seal.signature, key) for key in keys)
    if not signed or hashlib.sha256(seal.entries).digest() != seal.root:
        raise _Bad(coming, f"the seal of batch {seal.batch} was changed, or KEY_PEPPER was")


def _check_event(event: Row[Any], keys: Sequence[bytes], beginning: bytes | None = None) -> None:
    if not any(_fits("event", event, COLUMNS, event.mac, key) for key in keys):
        raise _Bad(event.id, "it was changed, or made under a KEY_PEPPER that is not set")
    if beginning is not None and event.mac[:8] != beginning:
        raise _Bad(event.id, "it is not the event that was sealed under this id")


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
    newest = _seals(connection, organization_id, "ORDER BY batch DESC LIMIT 1").first()
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
        _check_seal(newest, newest.first_event_id, keys)
        entries = list(_ENTRY.iter_unpack(newest.entries[-_GLANCE * _ENTRY.size :]))
        wanted = ", ".join(str(event_id) for event_id, _ in entries)  # numbers of our own
        found = {event.id: event for event in events(connection, f"id IN ({wanted})")}
        for event_id, beginning in entries:
            if event_id not in found:
                raise _Bad(event_id, "it is missing")
            _check_event(found[event_id], keys, beginning)
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


def _seals(connection: Connection, organization_id: int, order: str) -> CursorResult[Any]:
    columns, at = ", ".join(_SIGNED[:-1]), _as_text(connection, "sealed_at")
    return connection.execute(
        text(
            f"SELECT {columns}, {at}, signature, entries "  # noqa: S608
            f"FROM audit_seal WHERE organization_id = :of {order}"
        ),
        {"of": organization_id},
        execution_options={"yield_per": 10},
    )


def _as_text(connection: Connection, column: str) -> str:
    if connection.dialect.name == "sqlite":
        return column
    return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') AS {column}"


def _moment(seal: Row[Any]) -> datetime:
    return datetime.fromisoformat(seal.sealed_at).replace(tzinfo=UTC)

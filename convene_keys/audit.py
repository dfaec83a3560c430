"""The audit log: record an event beside the change it tells of, list events, export them."""

import csv
import io
import ipaddress
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    Integer,
    ScalarSelect,
    Select,
    column,
    func,
    insert,
    or_,
    select,
    true,
    tuple_,
    values,
)
from sqlalchemy.orm import Session

from convene_keys import clock, seals
from convene_keys.errors import Malformed
from convene_keys.events import Action, ActorKind, Outcome
from convene_keys.extensions import Base, Statement
from convene_keys.models import AuditEvent, AuditSeal, BigId, Member, UTCDateTime
from convene_keys.prepared import Prepared
from convene_keys.tokens import redact

COLUMNS = ("id", *seals.COLUMNS)
COUNT_CAP = 1_000
_EXPORT_BATCH = 1_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class Origin:
    """From where a request came."""

    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None

    @property
    def network(self) -> str:
        """An IPv4 address, or the /64 of an IPv6 one: who has one address there has them all."""
        return network(self.ip) if self.ip is not None else ""


@lru_cache(1_024)
def network(ip: str) -> str:
    """See `Origin.network`."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:  # how a socket that serves both kinds names an IPv4 address
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


@dataclass(frozen=True)
class Actor:
    """Who acts, for which organization, and from where. Every change takes one."""

    kind: ActorKind
    organization_id: int
    origin: Origin = field(default_factory=Origin)
    key_id: int | None = None
    key_name: str | None = None
    member_id: int | None = None
    member_name: str | None = None
    session_id: int | None = None  # the browser that a member acts from

    @classmethod
    def of_key(cls, key: Any, origin: Origin) -> "Actor":
        return cls(ActorKind.KEY, key.organization_id, origin, key_id=key.id, key_name=key.name)

    @classmethod
    def of_member(cls, member: Member, origin: Origin, session_id: int | None = None) -> "Actor":
        return cls(
            ActorKind.MEMBER,
            member.organization_id,
            origin,
            member_id=member.id,
            member_name=member.name,
            session_id=session_id,
        )

    @classmethod
    def system(cls, organization_id: int, origin: Origin | None = None) -> "Actor":
        return cls(ActorKind.SYSTEM, organization_id, origin or Origin())

    @property
    def name(self) -> str:
        return self.key_name or self.member_name or "the system"


@dataclass(frozen=True)
class Target:
    """The thing that something was done to, with its name as it is now."""

    type: str
    id: int | str | None
    name: str


_INSERT = insert(Base.metadata.tables[AuditEvent.__tablename__])
_WRITE = Prepared(_INSERT.inline(), (*seals.COLUMNS, "mac"))


def record(
    session: Session,
    actor: Actor,
    action: Action,
    target: Target | None = None,
    outcome: Outcome = Outcome.OK,
    detail: Mapping[str, Any] | None = None,
) -> int:
    """Write one event in the caller's transaction, and give its id: no event, no change."""
    session.flush()
    key = seals.keys_of(session.get_bind())[0]
    _, values = event(key, actor, action, target, outcome, detail)
    made = session.connection().execute(_INSERT, values).inserted_primary_key
    return int(made[0]) if made else 0


def event(
    key: bytes,
    actor: Actor,
    action: Action,
    target: Target | None,
    outcome: Outcome,
    detail: Mapping[str, Any] | None,
) -> Statement:
    """An event that happens now, as the statement that writes it.

    `key` is the audit log's newest. `detail` holds JSON values. Whatever looks like a key is cut to its hint before it is written.
    """
    origin = actor.origin
    text = redact(json.dumps(dict(detail or {})))
    values: dict[str, Any] = {
        "at": clock.now(),
        "organization_id": actor.organization_id,
        "actor": actor.kind,
        "key_id": actor.key_id,
        "key_name": redact(actor.key_name) if actor.key_name else None,
        "member_id": actor.member_id,
        "member_name": redact(actor.member_name) if actor.member_name else None,
        "action": action,
        "target_type": target.type if target else None,
        "target_id": str(target.id) if target and target.id is not None else None,
        "target_name": redact(target.name)[:200] if target else None,
        "outcome": outcome,
        "ip": origin.ip,
        "user_agent": redact(origin.user_agent)[:256] if origin.user_agent else None,
        "request_id": origin.request_id,
        "detail": json.loads(text),
    }
    values["mac"] = seals.mac(values | {"detail": text}, key)
    return _WRITE, values


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which events: each part narrows. `since` is included, `until` is not."""

    key: int | None = None
    action: str = ""
    member: int | None = None
    outcome: str = ""
    since: datetime | None = None
    until: datetime | None = None
    q: str = ""


def matching(organization_id: int, wanted: Filter) -> Select[AuditEvent]:
    """The organization's events that fit `wanted`, in no order yet."""
    query = select(AuditEvent).where(AuditEvent.organization_id == organization_id)
    for narrowed, value in (
        (AuditEvent.key_id, wanted.key),
        (AuditEvent.action, wanted.action or None),
        (AuditEvent.member_id, wanted.member),
        (AuditEvent.outcome, wanted.outcome or None),
    ):
        if value is not None:
            query = query.where(narrowed == value)
    if wanted.since is not None:
        query = query.where(AuditEvent.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(AuditEvent.at < wanted.until)
    q = wanted.q.replace("\0", "")  # PostgreSQL takes no null bytes
    if q:
        query = query.where(
            or_(
                AuditEvent.key_name.icontains(q, autoescape=True),
                AuditEvent.member_name.icontains(q, autoescape=True),
                AuditEvent.target_name.icontains(q, autoescape=True),
                AuditEvent.action.icontains(q, autoescape=True),
                AuditEvent.ip == q,
                AuditEvent.request_id == q,
            )
        )
    return query


def page(
    session: Session, organization_id: int, wanted: Filter, *, before: int | None, limit: int
) -> tuple[Sequence[AuditEvent], int | None]:
    """Events, newest first, and the cursor of the next page (the id of this page's last event).

    Each page is one range of an index, so the thousandth costs what the first does. Raises
    `Malformed` when `before` is no event of this organization.
    """
    query = matching(organization_id, wanted)
    if before is not None:
        last = get(session, organization_id, before)
        query = query.where(tuple_(AuditEvent.at, AuditEvent.id) < (last.at, last.id))
    events = session.scalars(_newest_first(query).limit(limit + 1)).all()
    return events[:limit], events[limit - 1].id if len(events) > limit else None


def first(session: Session, organization_id: int, wanted: Filter) -> AuditEvent | None:
    """The oldest event that fits."""
    query = matching(organization_id, wanted).order_by(AuditEvent.at, AuditEvent.id)
    return session.scalar(query.limit(1))


def latest(
    session: Session, organization_id: int, wanted: Filter, actions: Collection[str], most: int
) -> Sequence[AuditEvent]:
    """The newest events that fit and are one of these actions."""
    query = matching(organization_id, wanted).where(AuditEvent.action.in_(actions))
    return session.scalars(_newest_first(query).limit(most)).all()


@dataclass(frozen=True)
class Group:
    """Events that are alike: how many, and when the first and the last of them were."""

    action: str
    outcome: str
    ip: str | None
    user_agent: str | None
    count: int
    first: datetime
    last: datetime

    @property
    def label(self) -> str:
        return Action(self.action).label


def groups(
    session: Session, organization_id: int, wanted: Filter, most: int
) -> tuple[list[Group], bool]:
    """The newest `most` events that fit, by action, outcome, address and client; and are there more?

    The largest group comes first.
    """
    newest = _newest_first(matching(organization_id, wanted)).limit(most + 1).subquery()
    by = [newest.c[name] for name in ("action", "outcome", "ip", "user_agent")]
    count = func.count()
    query = select(*by, count, func.min(newest.c.at), func.max(newest.c.at)).group_by(*by)
    found = [Group(*tuple(row)) for row in session.execute(query.order_by(count.desc(), *by))]
    return found, sum(group.count for group in found) > most


def _newest_first(query: Select[AuditEvent]) -> Select[AuditEvent]:
    """In an index's order, which PostgreSQL then uses even where it takes reading all for quicker."""
    return query.order_by(AuditEvent.at.desc(), AuditEvent.id.desc())


def get(session: Session, organization_id: int, cursor: int) -> AuditEvent:
    """The event that a cursor names. Raises `Malformed` when it is none of this organization."""
    event = session.scalar(
        select(AuditEvent).where(
            AuditEvent.organization_id == organization_id, AuditEvent.id == cursor
        )
    )
    if event is None:
        raise Malformed("This cursor is not known.", code="invalid_cursor")
    return event


def count(session: Session, organization_id: int, wanted: Filter) -> tuple[int, bool]:
    """How many events fit, and whether there are more than that: counting stops at the cap."""
    some = _newest_first(matching(organization_id, wanted)).with_only_columns(AuditEvent.id)
    found = session.scalar(select(func.count()).select_from(some.limit(COUNT_CAP + 1).subquery()))
    return min(found or 0, COUNT_CAP), (found or 0) > COUNT_CAP


def count_spans(
    session: Session,
    organization_id: int,
    wanted: Filter,
    spans: Sequence[tuple[datetime, datetime]],
    cap: int,
) -> list[int]:
    """How many events fit in each span of time. Counting one stops at `cap`, so no log is too large.

    A span's beginning is included, its end is not.
    """
    span = _spans(spans)
    counted = _count_up_to(matching(organization_id, wanted), cap, span)
    found = {number: count for number, count in session.execute(select(span.c.number, counted))}
    return [found[number] for number in range(len(spans))]


def count_key_spans(
    session: Session,
    organization_id: int,
    key_ids: Sequence[int],
    spans: Sequence[tuple[datetime, datetime]],
    cap: int,
) -> dict[int, list[int]]:
    """The same for each of some keys, all by one query: its id -> what it did in each span."""
    if not key_ids:
        return {}
    span = _spans(spans)
    key = values(column("id", BigId), name="key").data([(key_id,) for key_id in key_ids]).cte("key")
    of_key = matching(organization_id, Filter()).where(AuditEvent.key_id == key.c.id)
    query = select(key.c.id, span.c.number, _count_up_to(of_key, cap, span, key))
    query = query.join_from(key, span, true())
    counts = {key_id: [0] * len(spans) for key_id in key_ids}
    for key_id, number, found in session.execute(query):
        counts[key_id][number] = found
    return counts


def _spans(spans: Sequence[tuple[datetime, datetime]]) -> CTE:
    columns = (
        column("number", Integer),
        column("since", UTCDateTime),
        column("until", UTCDateTime),
    )
    rows = [(number, *span) for number, span in enumerate(spans)]
    return values(*columns, name="span").data(rows).cte("span")


def _count_up_to(query: Select[AuditEvent], cap: int, span: CTE, *more: CTE) -> ScalarSelect[int]:
    """How many of the query's events are in the span that is the row around it."""
    within = query.where(AuditEvent.at >= span.c.since, AuditEvent.at < span.c.until)
    some = _newest_first(within).with_only_columns(AuditEvent.id).limit(cap)
    found = some.correlate(span, *more).subquery("found")
    return select(func.count()).select_from(found).scalar_subquery()


def export(session: Session, organization_id: int, wanted: Filter) -> Iterator[AuditEvent]:
    """Every event that fits and was there when it began, oldest first, a batch at a time.

    Each batch is a read of its own, so that a long download holds no snapshot open.
    """
    query = (
        matching(organization_id, wanted)
        .where(AuditEvent.at <= clock.now())
        .order_by(AuditEvent.at, AuditEvent.id)
        .limit(_EXPORT_BATCH)
    )
    batch = session.scalars(query).all()
    while batch:
        yield from batch
        last = (batch[-1].at, batch[-1].id)
        session.rollback()
        session.expunge_all()
        batch = session.scalars(query.where(tuple_(AuditEvent.at, AuditEvent.id) > last)).all()


def as_dict(event: AuditEvent) -> dict[str, Any]:
    """The event's columns under their contract names; `at` as RFC 3339 in UTC."""
    row = {column: getattr(event, column) for column in COLUMNS}
    row["at"] = rfc3339(event.at)
    return row


def rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def head_line(head: AuditSeal, **more: object) -> str:
    """An organization's head as `audit verify --head` reads it, in a file of such lines."""
    line = {
        "organization": head.organization_id,
        "batch": head.batch,
        "last_event_id": head.last_event_id,
        "count": head.count,
        "sealed_at": rfc3339(head.sealed_at),
        "signature": head.signature.hex(),
    }
    return json.dumps(line | more)


def jsonl_lines(events: Iterator[AuditEvent]) -> Iterator[str]:
    for event in events:
        yield json.dumps(as_dict(event), ensure_ascii=False) + "\n"


def csv_lines(events: Iterator[AuditEvent]) -> Iterator[str]:
    """CSV by RFC 4180, safe to open in a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for event in events:
        row = as_dict(event)
        row["detail"] = json.dumps(row["detail"], ensure_ascii=False)
        writer.writerow([_inert(value) for value in row.values()])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _inert(value: object) -> object:
    """Text that a spreadsheet would run as a formula, with an apostrophe before it (OWASP)."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value

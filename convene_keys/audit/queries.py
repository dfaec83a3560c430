"""Reading the audit log: filters, pages, groups and counts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    Integer,
    ScalarSelect,
    Select,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from convene_keys.audit.actions import Action
from convene_keys.db.types import BigId, UTCDateTime
from convene_keys.errors import Malformed
from convene_keys.models import AuditEvent, Outcome

COUNT_CAP = 1_000


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
    if wanted.outcome and wanted.outcome != Outcome.OK:
        # Not as a parameter: an index without these rows is only for who plainly seeks others.
        query = query.where(AuditEvent.outcome != literal_column("'ok'"))
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
    key = _table("key", {"id": BigId}, [(key_id,) for key_id in key_ids])
    of_key = matching(organization_id, Filter()).where(AuditEvent.key_id == key.c.id)
    query = select(key.c.id, span.c.number, _count_up_to(of_key, cap, span, key))
    query = query.join_from(key, span, true())
    counts = {key_id: [0] * len(spans) for key_id in key_ids}
    for key_id, number, found in session.execute(query):
        counts[key_id][number] = found
    return counts


def _spans(spans: Sequence[tuple[datetime, datetime]]) -> CTE:
    columns = {"number": Integer, "since": UTCDateTime, "until": UTCDateTime}
    return _table("span", columns, [(number, *span) for number, span in enumerate(spans)])


def _table(
    name: str,
    columns: Mapping[str, TypeEngine[Any] | type[TypeEngine[Any]]],
    rows: Sequence[Sequence[object]],
) -> CTE:
    """Rows as a table within a statement, which is compiled once for each number of rows.

    SQLAlchemy's own `values` is compiled each time, which takes longer than all that it serves.
    """
    row = "SELECT " + ", ".join(f":{name}_{column}_{{0}} AS {column}" for column in columns)
    given = [
        bindparam(f"{name}_{column}_{number}", value, columns[column])
        for number, values in enumerate(rows)
        for column, value in zip(columns, values, strict=True)
    ]
    lines = " UNION ALL ".join(map(row.format, range(len(rows))))
    return text(lines).bindparams(*given).columns(**columns).cte(name)


def _count_up_to(query: Select[AuditEvent], cap: int, span: CTE, *more: CTE) -> ScalarSelect[int]:
    """How many of the query's events are in the span that is the row around it."""
    within = query.where(AuditEvent.at >= span.c.since, AuditEvent.at < span.c.until)
    some = _newest_first(within).with_only_columns(AuditEvent.id).limit(cap)
    found = some.correlate(span, *more).subquery("found")
    return select(func.count()).select_from(found).scalar_subquery()

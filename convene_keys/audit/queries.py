"""Reading the audit log: filters, pages, groups and counts."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    Integer,
    ScalarSelect,
    Select,
    Tuple,
    bindparam,
    func,
    select,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from convene_keys.audit import search
from convene_keys.audit.actions import Action
from convene_keys.audit.search import Condition, Part, any_of
from convene_keys.db.types import BigId, UTCDateTime
from convene_keys.errors import Malformed
from convene_keys.models import AuditEvent

COUNT_CAP = 1_000
# Where several parts of a filter have to be met: how many events are looked through at first, since
# most often these have enough, how many at a time after that, and for how many seconds.
STRETCH_FIRST, STRETCH = 500, 2_000
LOOK_MAX = 0.05
BY_TIME: Sequence[Condition] = (true(),)  # the way to all events


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


@dataclass(frozen=True)
class Page:
    """Events, newest first, and the cursor of those before them: the id of an event.

    `looked_to` when nobody knows whether there are any: looking on takes too long for one page.
    """

    events: Sequence[AuditEvent]
    before: int | None = None
    looked_to: datetime | None = None


class Place(NamedTuple):
    """Where an event is in the log's order."""

    at: datetime
    id: int


class Stretch(NamedTuple):
    """A query for what fits among the log's newest events, down to a place; None is the end."""

    query: Select[AuditEvent]
    down_to: Place | None = None


@dataclass(frozen=True)
class Count:
    """How many events fit: more than the number when `capped`, at least it when `unfinished`."""

    number: int
    capped: bool = False
    unfinished: bool = False


def parts(session: Session, organization_id: int, wanted: Filter) -> list[Part]:
    """What narrows the log besides time."""
    found = []
    if wanted.key is not None:
        found.append(any_of(AuditEvent.key_id == wanted.key))
    if wanted.action:
        found.append(any_of(AuditEvent.action == wanted.action))
    if wanted.member is not None:
        found.append(any_of(AuditEvent.member_id == wanted.member))
    if wanted.outcome:
        found.append(search.outcome(wanted.outcome))
    if wanted.q:
        found.append(search.typed(session, organization_id, wanted.q))
    return found


def _within(
    organization_id: int, wanted: Filter, before: Place | None = None
) -> Select[AuditEvent]:
    """The organization's events of that time, in no order yet."""
    query = select(AuditEvent).where(AuditEvent.organization_id == organization_id)
    if wanted.since is not None:
        query = query.where(AuditEvent.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(AuditEvent.at < wanted.until)
    if before is not None:
        query = query.where(_place() < before)
    return query


def matching(session: Session, organization_id: int, wanted: Filter) -> Select[AuditEvent]:
    """The organization's events that fit `wanted`, in no order yet."""
    fitting = [part.fits for part in parts(session, organization_id, wanted)]
    return _within(organization_id, wanted).where(*fitting)


def page(
    session: Session, organization_id: int, wanted: Filter, *, before: int | None, limit: int
) -> Page:
    """Events, newest first. Each is one range of an index: the thousandth costs what the first does.

    Raises `Malformed` when `before` is no event of this organization.
    """
    place = None
    if before is not None:
        last = get(session, organization_id, before)
        place = Place(last.at, last.id)
    events: list[AuditEvent] = []
    for stretch in _looking_back(session, organization_id, wanted, place):
        events += session.scalars(_newest_first(stretch.query).limit(limit + 1 - len(events)))
        if len(events) > limit:
            return Page(events[:limit], events[limit - 1].id)
    if stretch.down_to is None:
        return Page(events)
    return Page(events, stretch.down_to.id, stretch.down_to.at)


def _looking_back(
    session: Session, organization_id: int, wanted: Filter, before: Place | None = None
) -> Iterator[Stretch]:
    """What fits, in one stretch of the log or several.

    An index finds one part of the filter. Of several, the one with the fewest events leads, and no
    further than can be looked through in `LOOK_MAX`.
    """
    asked = parts(session, organization_id, wanted)
    leads = [part.ways for part in asked if part.ways is not None] or [BY_TIME]
    fits = [part.fits for part in asked]
    plain = not asked or (len(asked) == 1 and asked[0].exact and len(leads[0]) == 1)
    if plain or not all(leads):  # the latter when what was typed means nothing here
        yield Stretch(_within(organization_id, wanted, before).where(*fits))
        return
    end, stretch = time.monotonic() + LOOK_MAX, STRETCH_FIRST
    while True:
        query = _within(organization_id, wanted, before)
        down_to, ways = min(
            ((_reach(session, query, ways, stretch), ways) for ways in leads),
            key=lambda found: (found[0] is not None, found[0]),
        )
        if down_to is not None:
            query = query.where(_place() >= down_to)
        if ways is not BY_TIME:
            ids = [query.where(way).with_only_columns(AuditEvent.id) for way in ways]
            # What narrows it is inside, so that no index seems better than that of the ids.
            query = select(AuditEvent).where(AuditEvent.id.in_(union_all(*ids)))
        yield Stretch(query.where(*fits), down_to)
        if down_to is None or time.monotonic() > end:
            return
        before, stretch = down_to, STRETCH


def _reach(
    session: Session, query: Select[AuditEvent], ways: Sequence[Condition], stretch: int
) -> Place | None:
    """The place down to which there are `stretch` events at the most; None when there are no more."""
    last = max(stretch // len(ways), 1) - 1
    found = [
        session.execute(
            _newest_first(query.where(way))
            .with_only_columns(AuditEvent.at, AuditEvent.id)
            .offset(last)
            .limit(1)
        ).first()
        for way in ways
    ]
    return max((Place(*row) for row in found if row), default=None)


def _place() -> Tuple:
    return tuple_(AuditEvent.at, AuditEvent.id)


def first(session: Session, organization_id: int, wanted: Filter) -> AuditEvent | None:
    """The oldest event that fits."""
    query = matching(session, organization_id, wanted).order_by(AuditEvent.at, AuditEvent.id)
    return session.scalar(query.limit(1))


def latest(
    session: Session, organization_id: int, wanted: Filter, actions: Collection[str], most: int
) -> Sequence[AuditEvent]:
    """The newest events that fit and are one of these actions."""
    query = matching(session, organization_id, wanted).where(AuditEvent.action.in_(actions))
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
    newest = _newest_first(matching(session, organization_id, wanted)).limit(most + 1).subquery()
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


def count(session: Session, organization_id: int, wanted: Filter) -> Count:
    """How many events fit, counted up to `COUNT_CAP`."""
    found = 0
    for stretch in _looking_back(session, organization_id, wanted):
        some = _newest_first(stretch.query).with_only_columns(AuditEvent.id)
        some = some.limit(COUNT_CAP + 1 - found)
        found += session.scalar(select(func.count()).select_from(some.subquery())) or 0
        if found > COUNT_CAP:
            return Count(COUNT_CAP, capped=True)
    return Count(found, unfinished=stretch.down_to is not None)


def count_spans(
    session: Session,
    organization_id: int,
    wanted: Filter,
    spans: Sequence[tuple[datetime, datetime]],
    cap: int,
) -> list[int]:
    """How many events fit in each span of time. Counting one stops at `cap`, so no log is too large.

    A span's beginning is included, its end is not. Where several parts of a filter have to be met,
    which no index counts, all are 0 when looking them through takes too long.
    """
    fits = [part.fits for part in parts(session, organization_id, wanted)]
    if len(fits) > 1:
        counts = [0] * len(spans)
        reach = replace(wanted, since=min(spans)[0], until=max(spans)[1])
        for stretch in _looking_back(session, organization_id, reach):
            for at in session.scalars(stretch.query.with_only_columns(AuditEvent.at)):
                for number, (since, until) in enumerate(spans):
                    counts[number] += since <= at < until
        return [0 if stretch.down_to else min(number, cap) for number in counts]
    span = _spans(spans)
    counted = _count_up_to(_within(organization_id, wanted).where(*fits), cap, span)
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
    of_key = _within(organization_id, Filter()).where(AuditEvent.key_id == key.c.id)
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

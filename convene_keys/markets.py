"""Market data: what can be listed, looked at and decided, always inside one organization.

What reads takes a connection, what changes the session of the caller's transaction; recording the
event is up to the caller, `operations.py`, through which keys and members go alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import date as calendar_date
from functools import cache, cached_property
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Table,
    bindparam,
    func,
    select,
    tuple_,
)
from sqlalchemy.orm import Session

from convene_keys import clock
from convene_keys.errors import Conflict, Malformed, NotFound
from convene_keys.extensions import Base
from convene_keys.models import (
    ApplicationStatus,
    Booking,
    BookingStatus,
    Market,
    MarketDate,
    MarketDateStatus,
    Numbered,
    Organization,
    Vendor,
    VendorApplication,
)
from convene_keys.names import fold
from convene_keys.prepared import Direct, Prepared

Kind = TypeVar("Kind", Booking, VendorApplication)
REMIND_EVERY = timedelta(hours=24)
_DECIDED: dict[type[Any], tuple[str, ...]] = {
    Booking: ("status", "reason", "paid", "decided_at"),
    VendorApplication: ("status", "note", "decided_at", "reminded_at"),
}


@dataclass(frozen=True)
class Place:
    """The organization that a call acts in."""

    id: int
    name: str
    slug: str
    timezone: str


@dataclass(frozen=True)
class Page:
    """Rows of plain columns; those of joined tables are named `market_name`, `vendor_name`."""

    rows: Sequence[Any]
    next_cursor: str | None


@dataclass(frozen=True)
class Dashboard:
    pending_applications: int
    pending_bookings: int
    pending_orders: int
    upcoming_market_dates: int
    next_market_date: calendar_date | None
    total_vendors: int


def today(organization: Organization | Place) -> calendar_date:
    """The day it is where the organization is."""
    return clock.now().astimezone(ZoneInfo(organization.timezone)).date()


def dashboard(connection: Direct, organization: Organization | Place) -> Dashboard:
    counts = connection.first(_DASHBOARD, organization=organization.id, today=today(organization))
    return Dashboard(*counts)  # type: ignore[misc]


def page(
    connection: Direct,
    model: type[Numbered],
    organization_id: int,
    *,
    cursor: str | None = None,
    limit: int = 25,
    **wanted: Any,
) -> Page:
    """One page of the organization's rows, found by their place in the order: any depth costs the same.

    `wanted` narrows by the filters of the model's listing; one that is None does not. The cursor is
    the number of the page's last row. Raises `Malformed` when it is none of this organization's.
    """
    listing, values = _LISTINGS[model], _values(organization_id, wanted)
    if cursor is not None:
        number = cursor_number(cursor)
        here = connection.first(listing.place, organization=organization_id, number=number)
        if here is None:
            raise Malformed("This cursor is not known.", code="invalid_cursor")
        values |= {f"after_{n}": value for n, value in enumerate(here)}
    rows = connection.all(_page_of(listing, frozenset(values)), limit=limit + 1, **values)
    return Page(rows[:limit], str(rows[limit - 1].id) if len(rows) > limit else None)


def counts(
    connection: Direct, model: type[Numbered], organization_id: int, **wanted: Any
) -> dict[str, int]:
    """How many rows there are in each state that has any; `wanted` as for a page."""
    values = _values(organization_id, wanted)
    rows = connection.all(_counts_of(_LISTINGS[model], frozenset(values)), **values)
    return {row.status: row.rows for row in rows}


def look(connection: Direct, model: type[Numbered], organization_id: int, number: int) -> Any:
    """One row of the organization, with the columns that a list has.

    Raises `NotFound` for any other, another organization's too.
    """
    listing = _LISTINGS[model]
    row = connection.first(listing.one, organization=organization_id, number=number)
    if row is None:
        raise NotFound(f"There is no {listing.noun} {number}.")
    return row


def get(session: Session, model: type[Kind], organization_id: int, number: int) -> Kind:
    """The organization's own, to change it; nobody else does meanwhile. Raises as `look` does."""
    row = session.scalar(
        select(model)
        .where(model.organization_id == organization_id, model.id == number)
        .with_for_update()
    )
    if row is None:
        raise NotFound(f"There is no {_LISTINGS[model].noun} {number}.")
    return row


def decide_booking(booking: Booking, status: BookingStatus, reason: str = "") -> bool:
    """Approve, decline or cancel; whether anything changed. Doing it again changes nothing.

    Raises `Conflict` where a booking in its state can't become `status`.
    """
    if booking.status == status:
        return False
    allowed = {
        BookingStatus.APPROVED: {BookingStatus.PENDING, BookingStatus.DECLINED},
        BookingStatus.DECLINED: {BookingStatus.PENDING},
        BookingStatus.CANCELLED: {BookingStatus.PENDING, BookingStatus.APPROVED},
        BookingStatus.PENDING: set[BookingStatus](),
    }[status]
    if booking.status not in allowed:
        raise Conflict(f"Booking {booking.id} is {booking.status}, so it can’t be {status}.")
    booking.status, booking.reason, booking.decided_at = status, reason, clock.now()
    return True


def mark_paid(booking: Booking) -> bool:
    """Mark an approved booking as paid; whether that is new. Raises `Conflict` for any other."""
    if booking.paid:
        return False
    if booking.status != BookingStatus.APPROVED:
        raise Conflict(
            f"Booking {booking.id} is {booking.status}. Only an approved one can be paid."
        )
    booking.paid = True
    return True


def update_application(
    application: VendorApplication, status: ApplicationStatus, note: str | None
) -> bool:
    """Approve, decline or waitlist, with a note for the team; whether anything changed."""
    changed = application.status != status or note not in (None, application.note)
    if application.status != status:
        application.status, application.decided_at = status, clock.now()
    if note is not None:
        application.note = note
    return changed


def remind_application(application: VendorApplication) -> None:
    """Note that the vendor was reminded. Raises `Conflict` when declined or reminded today."""
    if application.status == ApplicationStatus.DECLINED:
        raise Conflict(f"Application {application.id} was declined.")
    now = clock.now()
    if application.reminded_at is not None and now - application.reminded_at < REMIND_EVERY:
        raise Conflict(
            f"Application {application.id} was reminded in the last 24 hours.",
            code="reminded_recently",
        )
    application.reminded_at = now


def state(row: Booking | VendorApplication) -> dict[str, Any]:
    """What a decision may change of a row, as JSON."""
    return {name: _as_json(getattr(row, name)) for name in _DECIDED[type(row)]}


def restore(row: Booking | VendorApplication, state: Mapping[str, Any]) -> None:
    """Put back some of what `state` gave before."""
    for name, value in state.items():
        moment = name.endswith("_at") and value is not None
        setattr(row, name, datetime.fromisoformat(value) if moment else value)


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def cursor_number(cursor: str | None) -> int | None:
    """The number in a cursor. Raises `Malformed` when there is none."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise Malformed("This cursor is not known.", code="invalid_cursor")
    return int(cursor)


def midnight(day: calendar_date, timezone: str) -> datetime:
    """The moment at which `day` begins in `timezone`, in UTC."""
    local = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone))
    try:
        return local.astimezone(UTC)
    except OverflowError:  # the first or the last day that there is
        return local.replace(tzinfo=UTC)


_markets, _dates, _vendors, _applications, _bookings = (
    Base.metadata.tables[model.__tablename__]
    for model in (Market, MarketDate, Vendor, VendorApplication, Booking)
)
_MARKET = _markets.c.name.label("market_name")
_VENDOR = (_vendors.c.name.label("vendor_name"), _vendors.c.category.label("vendor_category"))
_ORGANIZATION = bindparam("organization", type_=BigInteger)


@dataclass(frozen=True, eq=False)
class _Listing:
    """How rows of a table are listed: with which columns, in which order, narrowed by what."""

    noun: str
    table: Table
    query: Select[*tuple[Any, ...]]
    order: tuple[ColumnElement[Any], ...]
    filters: Mapping[str, ColumnElement[bool]] = field(default_factory=dict)
    newest_first: bool = False

    @cached_property
    def one(self) -> Prepared:
        return self._numbered(self.query)

    @cached_property
    def place(self) -> Prepared:
        return self._numbered(select(*self.order))

    def _numbered(self, query: Select[*tuple[Any, ...]]) -> Prepared:
        number = bindparam("number", type_=BigInteger)  # a cursor may be any number
        table = self.table
        return Prepared(query.where(table.c.organization_id == _ORGANIZATION, table.c.id == number))


@cache
def _page_of(listing: _Listing, given: frozenset[str]) -> Prepared:
    """The statement of a page that is narrowed by what is `given`; there are few of these."""
    query, order = _narrowed(listing, listing.query, given), listing.order
    if "after_0" in given:
        here = tuple_(*(bindparam(f"after_{n}", type_=c.type) for n, c in enumerate(order)))
        place = tuple_(*order)
        query = query.where(place < here if listing.newest_first else place > here)
    in_order = (c.desc() for c in order) if listing.newest_first else order
    return Prepared(query.order_by(*in_order).limit(bindparam("limit", type_=Integer)))


@cache
def _counts_of(listing: _Listing, given: frozenset[str]) -> Prepared:
    status = listing.table.c.status
    query = listing.query.with_only_columns(status, func.count().label("rows"))
    return Prepared(_narrowed(listing, query, given).group_by(status))


def _narrowed(
    listing: _Listing, query: Select[*tuple[Any, ...]], given: frozenset[str]
) -> Select[*tuple[Any, ...]]:
    wanted = [condition for name, condition in listing.filters.items() if name in given]
    return query.where(listing.table.c.organization_id == _ORGANIZATION, *wanted)


def _values(organization_id: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in wanted.items() if value is not None}
    if "q" in values:
        q = re.sub(r"([/%_])", r"/\1", fold(values["q"]))
        values["q"] = f"%{q}%"
    return {"organization": organization_id, **values}


def _equal(**columns: ColumnElement[Any]) -> dict[str, ColumnElement[bool]]:
    return {name: column == bindparam(name) for name, column in columns.items()}


_NAMED = {"q": _vendors.c.name_folded.like(bindparam("q"), escape="/")}
_LISTINGS: dict[type[Numbered], _Listing] = {
    Market: _Listing("market", _markets, select(_markets), (_markets.c.id,)),
    MarketDate: _Listing(
        "market date",
        _dates,
        select(_dates, _MARKET).join_from(_dates, _markets),
        (_dates.c.date, _dates.c.id),
        {
            **_equal(market_id=_dates.c.market_id, status=_dates.c.status),
            "since": _dates.c.date >= bindparam("since"),
            "until": _dates.c.date <= bindparam("until"),
        },
    ),
    Vendor: _Listing("vendor", _vendors, select(_vendors), (_vendors.c.id,), _NAMED),
    VendorApplication: _Listing(
        "application",
        _applications,
        select(_applications, _MARKET, *_VENDOR)
        .join_from(_applications, _markets)
        .join_from(_applications, _vendors),
        (_applications.c.id,),
        {**_equal(status=_applications.c.status, market_id=_applications.c.market_id), **_NAMED},
        newest_first=True,
    ),
    Booking: _Listing(
        "booking",
        _bookings,
        select(_bookings, _dates.c.date, _dates.c.market_id, _MARKET, *_VENDOR)
        .join_from(_bookings, _dates)
        .join_from(_dates, _markets)
        .join_from(_bookings, _vendors),
        (_bookings.c.id,),
        _equal(
            status=_bookings.c.status,
            market_date_id=_bookings.c.market_date_id,
            vendor_id=_bookings.c.vendor_id,
            date=_dates.c.date,
        ),
        newest_first=True,
    ),
}


def _dashboard() -> Prepared:
    def count(*conditions: ColumnElement[bool]) -> ColumnElement[Any]:
        return select(func.count()).where(*conditions).scalar_subquery()

    applications = _applications.c.organization_id == _ORGANIZATION
    bookings = _bookings.c.organization_id == _ORGANIZATION
    upcoming = (
        _dates.c.organization_id == _ORGANIZATION,
        _dates.c.status == MarketDateStatus.PUBLISHED,
        _dates.c.date >= bindparam("today"),
    )
    approved = _bookings.c.status == BookingStatus.APPROVED
    numbers: dict[str, ColumnElement[Any]] = {
        "pending_applications": count(
            applications, _applications.c.status == ApplicationStatus.PENDING
        ),
        "pending_bookings": count(bookings, _bookings.c.status == BookingStatus.PENDING),
        "pending_orders": count(bookings, approved, _bookings.c.paid.is_(False)),
        "upcoming_market_dates": count(*upcoming),
        "next_market_date": select(func.min(_dates.c.date)).where(*upcoming).scalar_subquery(),
        "total_vendors": count(_vendors.c.organization_id == _ORGANIZATION),
    }
    return Prepared(select(*(number.label(name) for name, number in numbers.items())))


_DASHBOARD = _dashboard()

"""Market data: what can be listed, looked at and decided, always inside one organization.

Reads and changes alike take the session of the caller's transaction; recording the event is up to
the caller, `operations.py`, through which keys and members go alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import date as calendar_date
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import BigInteger, ColumnElement, Row, Select, Table, func, literal, select, tuple_
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

Kind = TypeVar("Kind", Booking, VendorApplication)
REMIND_EVERY = timedelta(hours=24)


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


def dashboard(session: Session, organization: Organization | Place) -> Dashboard:
    def count(*conditions: ColumnElement[bool]) -> int:
        return session.scalar(select(func.count()).where(*conditions)) or 0

    upcoming = (
        MarketDate.organization_id == organization.id,
        MarketDate.status == MarketDateStatus.PUBLISHED,
        MarketDate.date >= today(organization),
    )
    applications = VendorApplication.organization_id == organization.id
    bookings = Booking.organization_id == organization.id
    return Dashboard(
        pending_applications=count(
            applications, VendorApplication.status == ApplicationStatus.PENDING
        ),
        pending_bookings=count(bookings, Booking.status == BookingStatus.PENDING),
        pending_orders=count(
            bookings, Booking.status == BookingStatus.APPROVED, Booking.paid.is_(False)
        ),
        upcoming_market_dates=count(*upcoming),
        next_market_date=session.scalar(select(func.min(MarketDate.date)).where(*upcoming)),
        total_vendors=count(Vendor.organization_id == organization.id),
    )


def list_markets(
    session: Session, organization_id: int, *, cursor: str | None = None, limit: int = 25
) -> Page:
    return _page(session, _MARKETS, organization_id, [], cursor, limit)


def list_market_dates(
    session: Session,
    organization_id: int,
    *,
    market_id: int | None = None,
    status: MarketDateStatus | None = None,
    since: calendar_date | None = None,
    until: calendar_date | None = None,
    cursor: str | None = None,
    limit: int = 25,
) -> Page:
    """Dates in the order of the calendar; `since` and `until` are both included."""
    wanted = _equal((_dates.c.market_id, market_id), (_dates.c.status, status))
    if since is not None:
        wanted.append(_dates.c.date >= since)
    if until is not None:
        wanted.append(_dates.c.date <= until)
    return _page(session, _MARKET_DATES, organization_id, wanted, cursor, limit)


def list_vendors(
    session: Session,
    organization_id: int,
    *,
    q: str | None = None,
    cursor: str | None = None,
    limit: int = 25,
) -> Page:
    return _page(session, _VENDORS, organization_id, _named(q), cursor, limit)


def list_applications(
    session: Session,
    organization_id: int,
    *,
    status: ApplicationStatus | None = None,
    market_id: int | None = None,
    q: str | None = None,
    cursor: str | None = None,
    limit: int = 25,
) -> Page:
    """Applications, newest first; `q` is part of the vendor's name."""
    wanted = _equal((_applications.c.status, status), (_applications.c.market_id, market_id))
    return _page(session, _APPLICATIONS, organization_id, wanted + _named(q), cursor, limit)


def list_bookings(
    session: Session,
    organization_id: int,
    *,
    status: BookingStatus | None = None,
    market_date_id: int | None = None,
    vendor_id: int | None = None,
    date: calendar_date | None = None,
    cursor: str | None = None,
    limit: int = 25,
) -> Page:
    """Bookings, newest first; `date` is the day of the market."""
    wanted = _equal(
        (_bookings.c.status, status),
        (_bookings.c.market_date_id, market_date_id),
        (_bookings.c.vendor_id, vendor_id),
        (_dates.c.date, date),
    )
    return _page(session, _BOOKINGS, organization_id, wanted, cursor, limit)


def count_applications(
    session: Session, organization_id: int, *, market_id: int | None = None, q: str | None = None
) -> dict[str, int]:
    """How many applications there are in each state that has any; `q` as when listing."""
    wanted = _equal((_applications.c.market_id, market_id)) + _named(q)
    return _counts(session, _APPLICATIONS, organization_id, wanted)


def count_bookings(
    session: Session,
    organization_id: int,
    *,
    market_date_id: int | None = None,
    date: calendar_date | None = None,
) -> dict[str, int]:
    """How many bookings there are in each state that has any; `date` as when listing."""
    wanted = _equal((_bookings.c.market_date_id, market_date_id), (_dates.c.date, date))
    return _counts(session, _BOOKINGS, organization_id, wanted)


def look(session: Session, model: type[Numbered], organization_id: int, number: int) -> Row[Any]:
    """One row of the organization, with the columns that a list has.

    Raises `NotFound` for any other, another organization's too.
    """
    session.flush()
    listing = _LISTINGS[model]
    table = listing.table
    query = listing.query.where(table.c.organization_id == organization_id, table.c.id == number)
    row = session.connection().execute(query).first()
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


@dataclass(frozen=True)
class _Listing:
    """How rows of a table are listed: with which columns, and in which order."""

    noun: str
    table: Table
    query: Select[*tuple[Any, ...]]
    order: tuple[ColumnElement[Any], ...]
    newest_first: bool = False


_markets, _dates, _vendors, _applications, _bookings = (
    Base.metadata.tables[model.__tablename__]
    for model in (Market, MarketDate, Vendor, VendorApplication, Booking)
)
_MARKET = _markets.c.name.label("market_name")
_VENDOR = (_vendors.c.name.label("vendor_name"), _vendors.c.category.label("vendor_category"))

_MARKETS = _Listing("market", _markets, select(_markets), (_markets.c.id,))
_MARKET_DATES = _Listing(
    "market date",
    _dates,
    select(_dates, _MARKET).join_from(_dates, _markets),
    (_dates.c.date, _dates.c.id),
)
_VENDORS = _Listing("vendor", _vendors, select(_vendors), (_vendors.c.id,))
_APPLICATIONS = _Listing(
    "application",
    _applications,
    select(_applications, _MARKET, *_VENDOR)
    .join_from(_applications, _markets)
    .join_from(_applications, _vendors),
    (_applications.c.id,),
    newest_first=True,
)
_BOOKINGS = _Listing(
    "booking",
    _bookings,
    select(_bookings, _dates.c.date, _dates.c.market_id, _MARKET, *_VENDOR)
    .join_from(_bookings, _dates)
    .join_from(_dates, _markets)
    .join_from(_bookings, _vendors),
    (_bookings.c.id,),
    newest_first=True,
)
_LISTINGS: dict[type[Numbered], _Listing] = {
    Market: _MARKETS,
    MarketDate: _MARKET_DATES,
    Vendor: _VENDORS,
    VendorApplication: _APPLICATIONS,
    Booking: _BOOKINGS,
}


def _equal(*wanted: tuple[ColumnElement[Any], object]) -> list[ColumnElement[bool]]:
    return [column == value for column, value in wanted if value is not None]


def _named(q: str | None) -> list[ColumnElement[bool]]:
    return [_vendors.c.name_folded.contains(fold(q), autoescape=True)] if q else []


def _counts(
    session: Session, listing: _Listing, organization_id: int, wanted: list[ColumnElement[bool]]
) -> dict[str, int]:
    table = listing.table
    query = listing.query.with_only_columns(table.c.status, func.count())
    query = query.where(table.c.organization_id == organization_id, *wanted)
    rows = session.connection().execute(query.group_by(table.c.status))
    return {status: count for status, count in rows}


def _page(
    session: Session,
    listing: _Listing,
    organization_id: int,
    wanted: list[ColumnElement[bool]],
    cursor: str | None,
    limit: int,
) -> Page:
    """One page by its place in the order, not by counting, so that any depth costs the same.

    The cursor is the number of the page's last row. Raises `Malformed` when it is none of this
    organization's.
    """
    table, order, connection = listing.table, listing.order, session.connection()
    query = listing.query.where(table.c.organization_id == organization_id, *wanted)
    if cursor is not None:
        here = connection.execute(
            select(*order).where(
                table.c.organization_id == organization_id,
                table.c.id == literal(cursor_number(cursor), BigInteger),  # it may be any number
            )
        ).first()
        if here is None:
            raise Malformed("This cursor is not known.", code="invalid_cursor")
        place = tuple_(*order)
        query = query.where(place < tuple(here) if listing.newest_first else place > tuple(here))
    query = query.order_by(*(c.desc() for c in order) if listing.newest_first else order)
    rows = connection.execute(query.limit(limit + 1)).all()
    return Page(rows[:limit], str(rows[limit - 1].id) if len(rows) > limit else None)

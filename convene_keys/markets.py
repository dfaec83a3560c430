"""Market data: what can be listed, looked at and decided, always inside one organization.

Reads and changes alike take the session of the caller's transaction; recording the event is up to
the caller, `operations.py`, through which keys and members go alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import date as calendar_date
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import BigInteger, ColumnElement, Select, func, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session, contains_eager, joinedload

from convene_keys import clock
from convene_keys.errors import Conflict, Malformed, NotFound
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

Row = TypeVar("Row", bound=Numbered)
Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])
REMIND_EVERY = timedelta(hours=24)


@dataclass(frozen=True)
class Page(Generic[Row]):
    rows: Sequence[Row]
    next_cursor: str | None


@dataclass(frozen=True)
class Dashboard:
    pending_applications: int
    pending_bookings: int
    pending_orders: int
    upcoming_market_dates: int
    next_market_date: calendar_date | None
    total_vendors: int


def today(organization: Organization) -> calendar_date:
    """The day it is where the organization is."""
    return clock.now().astimezone(ZoneInfo(organization.timezone)).date()


def dashboard(session: Session, organization: Organization) -> Dashboard:
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
) -> Page[Market]:
    return _page(session, Market, organization_id, select(Market), cursor, limit)


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
) -> Page[MarketDate]:
    """Dates in the order of the calendar; `since` and `until` are both included."""
    query = select(MarketDate).options(joinedload(MarketDate.market))
    query = _equal(query, (MarketDate.market_id, market_id), (MarketDate.status, status))
    if since is not None:
        query = query.where(MarketDate.date >= since)
    if until is not None:
        query = query.where(MarketDate.date <= until)
    return _page(session, MarketDate, organization_id, query, cursor, limit, by=MarketDate.date)


def list_vendors(
    session: Session,
    organization_id: int,
    *,
    q: str | None = None,
    cursor: str | None = None,
    limit: int = 25,
) -> Page[Vendor]:
    query = select(Vendor)
    if q:
        query = query.where(Vendor.name_folded.contains(fold(q), autoescape=True))
    return _page(session, Vendor, organization_id, query, cursor, limit)


def list_applications(
    session: Session,
    organization_id: int,
    *,
    status: ApplicationStatus | None = None,
    market_id: int | None = None,
    q: str | None = None,
    cursor: str | None = None,
    limit: int = 25,
) -> Page[VendorApplication]:
    """Applications, newest first; `q` is part of the vendor's name."""
    query = (
        select(VendorApplication)
        .join(VendorApplication.vendor)
        .options(contains_eager(VendorApplication.vendor), joinedload(VendorApplication.market))
    )
    query = _equal(
        query, (VendorApplication.status, status), (VendorApplication.market_id, market_id)
    )
    if q:
        query = query.where(Vendor.name_folded.contains(fold(q), autoescape=True))
    return _page(
        session, VendorApplication, organization_id, query, cursor, limit, newest_first=True
    )


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
) -> Page[Booking]:
    """Bookings, newest first; `date` is the day of the market."""
    query = (
        select(Booking)
        .join(Booking.market_date)
        .options(
            contains_eager(Booking.market_date).joinedload(MarketDate.market),
            joinedload(Booking.vendor),
        )
    )
    query = _equal(
        query,
        (Booking.status, status),
        (Booking.market_date_id, market_date_id),
        (Booking.vendor_id, vendor_id),
        (MarketDate.date, date),
    )
    return _page(session, Booking, organization_id, query, cursor, limit, newest_first=True)


def count_applications(
    session: Session, organization_id: int, *, market_id: int | None = None, q: str | None = None
) -> dict[str, int]:
    """How many applications there are in each state that has any; `q` as when listing."""
    query = select(VendorApplication.status, func.count()).join(VendorApplication.vendor)
    query = _equal(query, (VendorApplication.market_id, market_id))
    if q:
        query = query.where(Vendor.name_folded.contains(fold(q), autoescape=True))
    return _counts(session, query, VendorApplication, organization_id)


def count_bookings(
    session: Session,
    organization_id: int,
    *,
    market_date_id: int | None = None,
    date: calendar_date | None = None,
) -> dict[str, int]:
    """How many bookings there are in each state that has any; `date` as when listing."""
    query = select(Booking.status, func.count()).join(Booking.market_date)
    query = _equal(query, (Booking.market_date_id, market_date_id), (MarketDate.date, date))
    return _counts(session, query, Booking, organization_id)


def get(session: Session, model: type[Row], organization_id: int, number: int, name: str) -> Row:
    """One row of the organization. Raises `NotFound` for any other, another organization's too."""
    row = session.scalar(
        select(model)
        .where(model.organization_id == organization_id, model.id == number)
        .with_for_update()
    )
    if row is None:
        raise NotFound(f"There is no {name} {number}.")
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


def _equal(query: Query, *wanted: tuple[object, object]) -> Query:
    for column, value in wanted:
        if value is not None:
            query = query.where(column == value)  # type: ignore[arg-type]
    return query


def _counts(
    session: Session,
    query: Select[str, int],
    model: type[Booking] | type[VendorApplication],
    organization_id: int,
) -> dict[str, int]:
    query = query.where(model.organization_id == organization_id).group_by(model.status)
    return {status: count for status, count in session.execute(query)}


def _page(
    session: Session,
    model: type[Row],
    organization_id: int,
    query: Select[Row],
    cursor: str | None,
    limit: int,
    *,
    by: InstrumentedAttribute[calendar_date] | None = None,
    newest_first: bool = False,
) -> Page[Row]:
    """One page by its place in the order, not by counting, so that any depth costs the same.

    The cursor is the number of the page's last row. Raises `Malformed` when it is none of this
    organization's.
    """
    order: tuple[InstrumentedAttribute[Any], ...] = (model.id,) if by is None else (by, model.id)
    query = query.where(model.organization_id == organization_id)
    if cursor is not None:
        here = session.execute(
            select(*order).where(
                model.organization_id == organization_id,
                model.id == literal(cursor_number(cursor), BigInteger),  # it may be any number
            )
        ).first()
        if here is None:
            raise Malformed("This cursor is not known.", code="invalid_cursor")
        place = tuple_(*order)
        query = query.where(place < tuple(here) if newest_first else place > tuple(here))
    query = query.order_by(*(column.desc() if newest_first else column for column in order))
    rows = session.scalars(query.limit(limit + 1)).all()
    return Page(rows[:limit], str(rows[limit - 1].id) if len(rows) > limit else None)

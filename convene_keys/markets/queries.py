"""Market data: what can be listed and looked at, always inside one organization."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property
from typing import Any, NamedTuple

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

from convene_keys import clock
from convene_keys.db.session import Base
from convene_keys.db.statements import CompiledStatement, RawConnection
from convene_keys.errors import Malformed, NotFound
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
from convene_keys.text import fold


@dataclass(frozen=True)
class OrganizationInfo:
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


class Dashboard(NamedTuple):
    pending_applications: int
    pending_bookings: int
    pending_orders: int
    upcoming_market_dates: int
    next_market_date: date | None
    total_vendors: int


def dashboard(
    connection: RawConnection, organization: Organization | OrganizationInfo
) -> Dashboard:
    today = clock.today(organization.timezone)
    counts: Dashboard
    (counts,) = connection.all(_DASHBOARD, organization=organization.id, today=today)
    return counts


def page(
    connection: RawConnection,
    model: type[Numbered],
    organization_id: int,
    *,
    cursor: str | None = None,
    limit: int = 25,
    **wanted: object,
) -> Page:
    """One page of the organization's rows, found by their place in the order: any depth costs the same.

    `wanted` narrows by the filters of the model's listing; one that is None does not. The cursor is
    the number of the page's last row. Raises `Malformed` when it is none of this organization's.
    """
    listing, values = LISTINGS[model], _values(organization_id, wanted)
    if cursor is not None:
        number = cursor_number(cursor)
        here = connection.first(listing.place, organization=organization_id, number=number)
        if here is None:
            raise Malformed("This cursor is not known.", code="invalid_cursor")
        values |= {f"after_{n}": value for n, value in enumerate(here)}
    rows = connection.all(_page_of(listing, frozenset(values)), limit=limit + 1, **values)
    return Page(rows[:limit], str(rows[limit - 1].id) if len(rows) > limit else None)


def counts(
    connection: RawConnection, model: type[Numbered], organization_id: int, **wanted: object
) -> dict[str, int]:
    """How many rows there are in each state that has any; `wanted` as for a page."""
    values = _values(organization_id, wanted)
    rows = connection.all(_counts_of(LISTINGS[model], frozenset(values)), **values)
    return {row.status: row.rows for row in rows}


def get_row(
    connection: RawConnection, model: type[Numbered], organization_id: int, number: int
) -> object:
    """One row of the organization, with the columns that a list has.

    Raises `NotFound` for any other, another organization's too.
    """
    listing = LISTINGS[model]
    row = connection.first(listing.one, organization=organization_id, number=number)
    if row is None:
        raise NotFound(f"There is no {listing.noun} {number}.")
    return row


def cursor_number(cursor: str | None) -> int | None:
    """The number in a cursor. Raises `Malformed` when there is none."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise Malformed("This cursor is not known.", code="invalid_cursor")
    return int(cursor)


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
    query: Select[*tuple[object, ...]]
    order: tuple[ColumnElement[object], ...]
    filters: Mapping[str, ColumnElement[bool]] = field(default_factory=dict)
    newest_first: bool = False

    @cached_property
    def one(self) -> CompiledStatement:
        return self._numbered(self.query)

    @cached_property
    def place(self) -> CompiledStatement:
        return self._numbered(select(*self.order))

    def _numbered(self, query: Select[*tuple[object, ...]]) -> CompiledStatement:
        number = bindparam("number", type_=BigInteger)  # a cursor may be any number
        table = self.table
        return CompiledStatement(
            query.where(table.c.organization_id == _ORGANIZATION, table.c.id == number)
        )


@cache
def _page_of(listing: _Listing, given: frozenset[str]) -> CompiledStatement:
    """The statement of a page that is narrowed by what is `given`; there are few of these."""
    query, order = _narrowed(listing, listing.query, given), listing.order
    if "after_0" in given:
        here = tuple_(*(bindparam(f"after_{n}", type_=c.type) for n, c in enumerate(order)))
        place = tuple_(*order)
        query = query.where(place < here if listing.newest_first else place > here)
    in_order = (c.desc() for c in order) if listing.newest_first else order
    return CompiledStatement(query.order_by(*in_order).limit(bindparam("limit", type_=Integer)))


@cache
def _counts_of(listing: _Listing, given: frozenset[str]) -> CompiledStatement:
    status = listing.table.c.status
    query = listing.query.with_only_columns(status, func.count().label("rows"))
    return CompiledStatement(_narrowed(listing, query, given).group_by(status))


def _narrowed(
    listing: _Listing, query: Select[*tuple[object, ...]], given: frozenset[str]
) -> Select[*tuple[object, ...]]:
    wanted = [condition for name, condition in listing.filters.items() if name in given]
    return query.where(listing.table.c.organization_id == _ORGANIZATION, *wanted)


def _values(organization_id: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in wanted.items() if value is not None}
    if "q" in values:
        q = re.sub(r"([/%_])", r"/\1", fold(values["q"]))
        values["q"] = f"%{q}%"
    return {"organization": organization_id, **values}


def _equal(**columns: ColumnElement[object]) -> dict[str, ColumnElement[bool]]:
    return {name: column == bindparam(name) for name, column in columns.items()}


_NAMED = {"q": _vendors.c.name_folded.like(bindparam("q"), escape="/")}
LISTINGS: dict[type[Numbered], _Listing] = {
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


def _dashboard() -> CompiledStatement:
    def count(*conditions: ColumnElement[bool]) -> ColumnElement[object]:
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
    counts = select(*(numbers[name].label(name) for name in Dashboard._fields))
    return CompiledStatement(counts, row=Dashboard)


_DASHBOARD = _dashboard()

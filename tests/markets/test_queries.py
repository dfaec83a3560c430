"""Market data: numbers of the dashboard, and lists that page."""

from datetime import date, timedelta
from typing import Any

import pytest
from flask import Flask

from convene_keys import clock
from convene_keys.db.session import db, raw_connection
from convene_keys.errors import Malformed, NotFound
from convene_keys.markets import decisions
from convene_keys.markets import queries as market_queries
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
from tests import factories
from tests.conftest import Clock

TODAY = date(2026, 11, 24)


@pytest.fixture
def organization(app: Flask, fake_clock: Clock) -> Organization:
    return factories.organization()


def _save(*rows: Any) -> None:
    db.session.add_all(rows)
    db.session.commit()


def _vendor(of: Organization, number: int, name: str) -> Vendor:
    return Vendor(
        organization_id=of.id,
        id=number,
        name=name,
        name_folded=fold(name),
        category="Produce",
        contact_name="Noor",
        email="noor@example.org",
    )


def _date(
    of: Organization, number: int, day: date, status: str = "published", market: int = 1
) -> Any:
    return MarketDate(
        organization_id=of.id,
        id=number,
        market_id=market,
        date=day,
        opens="08:00",
        closes="13:00",
        stalls=20,
        status=status,
    )


@pytest.fixture
def season(organization: Organization) -> Organization:
    """Two markets, four vendors, seven dates, six applications, twelve bookings."""
    key = {"organization_id": organization.id}
    _save(*(Market(**key, id=n, name=f"Market {n}", location="Quay") for n in (1, 2)))
    names = ("Green Acre Farm", "50% Bakery", "Über Käse", "green_thumb")
    _save(*(_vendor(organization, number, name) for number, name in enumerate(names, 1)))
    _save(
        _date(organization, 1, TODAY - timedelta(days=1)),
        _date(organization, 2, TODAY),
        _date(organization, 3, TODAY + timedelta(days=7)),
        _date(organization, 4, TODAY + timedelta(days=7), market=2),
        _date(organization, 5, TODAY + timedelta(days=2), "draft"),
        _date(organization, 6, TODAY + timedelta(days=3), "cancelled"),
        _date(organization, 7, TODAY - timedelta(days=30)),
    )
    states = ["pending", "approved", "declined", "waitlisted", "pending", "pending"]
    _save(
        *(
            VendorApplication(**key, id=n, market_id=1 + n % 2, vendor_id=1 + n % 4, status=status)
            for n, status in enumerate(states, 1)
        )
    )
    bookings = ["pending"] * 5 + ["approved"] * 4 + ["declined", "cancelled", "cancelled"]
    _save(
        *(
            Booking(
                **key,
                id=n,
                market_date_id=1 + n % 3,
                vendor_id=1 + n % 2,
                status=status,
                paid=n in (6, 12),
                amount=4500,
            )
            for n, status in enumerate(bookings, 1)
        )
    )
    factories.market_data(factories.organization("Elsewhere"))
    return organization


def test_dashboard_counts(season: Organization) -> None:
    counts = market_queries.dashboard(raw_connection(db.session()), season)
    assert counts._asdict() == {
        "pending_applications": 3,
        "pending_bookings": 5,
        "pending_orders": 3,
        "upcoming_market_dates": 3,
        "next_market_date": TODAY,
        "total_vendors": 4,
    }


def test_dashboard_of_an_empty_organization(organization: Organization) -> None:
    counts = market_queries.dashboard(raw_connection(db.session()), organization)
    assert counts == (0, 0, 0, 0, None, 0)


@pytest.mark.parametrize(
    ("timezone", "day", "upcoming"),
    [("Pacific/Kiritimati", 25, 2), ("Pacific/Pago_Pago", 24, 3), ("UTC", 24, 3)],
)
def test_today_is_the_organizations(
    season: Organization, timezone: str, day: int, upcoming: int
) -> None:
    season.timezone = timezone
    db.session.commit()
    assert clock.today(timezone) == date(2026, 11, day)
    counts = market_queries.dashboard(raw_connection(db.session()), season)
    assert counts.upcoming_market_dates == upcoming
    assert counts.next_market_date == (TODAY if day == 24 else TODAY + timedelta(days=7))


# Lists ---------------------------------------------------------------------------------------

LISTS: list[tuple[type[Numbered], dict[str, Any], list[int]]] = [
    (Market, {}, [1, 2]),
    (MarketDate, {}, [7, 1, 2, 5, 6, 3, 4]),
    (MarketDate, {"market_id": 2}, [4]),
    (MarketDate, {"status": MarketDateStatus.DRAFT}, [5]),
    (MarketDate, {"since": TODAY}, [2, 5, 6, 3, 4]),
    (MarketDate, {"until": TODAY}, [7, 1, 2]),
    (MarketDate, {"since": TODAY, "until": TODAY}, [2]),
    (MarketDate, {"since": date.max, "until": date.min}, []),
    (Vendor, {}, [1, 2, 3, 4]),
    (Vendor, {"q": "GREEN"}, [1, 4]),
    (Vendor, {"q": "%"}, [2]),
    (Vendor, {"q": "_"}, [4]),
    (Vendor, {"q": "U\u0308BER"}, [3]),
    (VendorApplication, {}, [6, 5, 4, 3, 2, 1]),
    (VendorApplication, {"status": ApplicationStatus.PENDING}, [6, 5, 1]),
    (VendorApplication, {"market_id": 1}, [6, 4, 2]),
    (VendorApplication, {"q": "green"}, [4, 3]),
    (Booking, {}, [*range(12, 0, -1)]),
    (Booking, {"status": BookingStatus.CANCELLED}, [12, 11]),
    (Booking, {"market_date_id": 2}, [10, 7, 4, 1]),
    (Booking, {"vendor_id": 1}, [12, 10, 8, 6, 4, 2]),
    (Booking, {"date": TODAY}, [10, 7, 4, 1]),
    (Booking, {"date": TODAY, "vendor_id": 2}, [7, 1]),
    (Booking, {"vendor_id": 99}, []),
]


def test_lists_take_their_filters_and_page_completely(season: Organization) -> None:
    for model, wanted, expected in LISTS:
        for limit in (1, 2, 5, 100):
            found: list[int] = []
            cursor: str | None = None
            while True:
                page = market_queries.page(
                    raw_connection(db.session()),
                    model,
                    season.id,
                    cursor=cursor,
                    limit=limit,
                    **wanted,
                )
                assert len(page.rows) <= limit
                found += [row.id for row in page.rows]
                assert len(found) <= len(expected), "a page came twice"
                assert {row.organization_id for row in page.rows} <= {season.id}
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert found == expected, (model, wanted, limit)


def test_counts_by_state_take_the_filters(season: Organization) -> None:
    connection, number = raw_connection(db.session()), season.id
    assert market_queries.counts(connection, Booking, number) == {
        "pending": 5,
        "approved": 4,
        "declined": 1,
        "cancelled": 2,
    }
    assert market_queries.counts(connection, Booking, number, date=TODAY, market_date_id=2) == {
        "pending": 2,
        "approved": 1,
        "declined": 1,
    }
    assert market_queries.counts(connection, VendorApplication, number) == {
        "pending": 3,
        "approved": 1,
        "declined": 1,
        "waitlisted": 1,
    }
    assert market_queries.counts(connection, VendorApplication, number, q="GREEN", market_id=1) == {
        "waitlisted": 1
    }
    assert market_queries.counts(connection, VendorApplication, factories.organization().id) == {}


def test_unknown_or_foreign_cursors_are_refused(season: Organization) -> None:
    stranger = factories.organization()
    for model, _, _ in LISTS:
        for cursor in ("", "0", "999", "-1", "1.0", "x", "\0", "１", " 1", "9" * 18, "9" * 5_000):
            with pytest.raises(Malformed) as info:
                market_queries.page(raw_connection(db.session()), model, season.id, cursor=cursor)
            assert info.value.code == "invalid_cursor"
        with pytest.raises(Malformed):
            market_queries.page(raw_connection(db.session()), model, stranger.id, cursor="1")


def test_lists_do_not_ask_for_each_row(season: Organization) -> None:
    page = market_queries.page(raw_connection(db.session()), Booking, season.id)
    applications = market_queries.page(raw_connection(db.session()), VendorApplication, season.id)
    dates = market_queries.page(raw_connection(db.session()), MarketDate, season.id)
    db.session.close()  # what is read from now on would fail
    assert {row.vendor_name for row in page.rows} == {"Green Acre Farm", "50% Bakery"}
    assert {row.market_name for row in page.rows} == {"Market 1"}
    assert {row.market_name for row in applications.rows} == {"Market 1", "Market 2"}
    assert len({row.vendor_name for row in applications.rows}) == 4
    assert {row.market_name for row in dates.rows} == {"Market 1", "Market 2"}


def test_get_finds_nothing_in_another_organization(season: Organization) -> None:
    assert decisions.get_for_update(db.session(), Booking, season.id, 12).id == 12
    other = factories.organization()
    for organization, number in ((other, 12), (season, 13), (season, 0)):
        with pytest.raises(NotFound, match=f"There is no booking {number}"):
            decisions.get_for_update(db.session(), Booking, organization.id, number)

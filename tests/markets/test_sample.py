"""The sample season: the same every time, in every state, and true to its own calendar."""

from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from sqlalchemy import func, select

from convene_keys import clock
from convene_keys.audit.log import Actor
from convene_keys.db.session import db, raw_connection
from convene_keys.errors import Conflict, NotFound
from convene_keys.markets import queries as market_queries
from convene_keys.markets import sample
from convene_keys.models import (
    ApplicationStatus,
    AuditEvent,
    Booking,
    BookingStatus,
    Market,
    MarketDate,
    MarketDateStatus,
    Organization,
    Vendor,
    VendorApplication,
)
from tests import factories as create
from tests.conftest import Clock

MODELS = (Market, Vendor, MarketDate, VendorApplication, Booking)
TODAY = date(2026, 11, 24)


def make(organization: Organization, today: date | None = TODAY) -> dict[str, int]:
    return sample.make(Actor.system(organization.id), today)


def rows(model: Any, organization: Organization) -> list[dict[str, Any]]:
    """The organization's rows without its id, in their order."""
    found = db.session.scalars(
        select(model).where(model.organization_id == organization.id).order_by(model.id)
    )
    columns = [c.key for c in model.__mapper__.column_attrs if c.key != "organization_id"]
    return [{column: getattr(row, column) for column in columns} for row in found]


def test_make_is_the_same_every_time_for_the_same_day(app: Flask, fake_clock: Clock) -> None:
    one, other = create.organization("One"), create.organization("Other")
    make(one)
    fake_clock.advance(days=3)
    make(other)
    for model in MODELS:
        assert rows(model, one) == rows(model, other)


def test_make_begins_from_the_day_it_is_where_the_organization_is(
    app: Flask, fake_clock: Clock
) -> None:
    fake_clock.advance(days=1)  # a Wednesday, one of the days on which a market is held
    here, ahead = create.organization("Here"), create.organization("Ahead")
    ahead.timezone = "Pacific/Auckland"  # where it is 1 in the morning of Thursday
    db.session.commit()
    make(here, None)
    make(ahead, None)
    wednesdays = [
        [row["date"] for row in rows(MarketDate, of) if row["market_id"] == 2]
        for of in (here, ahead)
    ]
    assert [days[0] for days in wednesdays] == [date(2026, 10, 14), date(2026, 10, 21)]
    assert all(row["created_at"] < clock.now() for row in rows(Booking, ahead))


def test_make_counts_what_it_made(app: Flask) -> None:
    organization = create.organization()
    counts = make(organization)
    assert counts == {
        "markets": len(rows(Market, organization)),
        "vendors": len(rows(Vendor, organization)),
        "market_dates": len(rows(MarketDate, organization)),
        "applications": len(rows(VendorApplication, organization)),
        "bookings": len(rows(Booking, organization)),
    }
    assert counts["markets"] == 3
    assert counts["vendors"] == 60
    assert 38 <= counts["market_dates"] <= 44
    assert counts["applications"] >= 200
    assert counts["bookings"] >= 300


def test_make_is_recorded_with_its_counts(app: Flask) -> None:
    organization = create.organization()
    counts = make(organization)
    event = db.session.scalars(select(AuditEvent)).one()
    assert (event.action, event.outcome, event.actor) == ("sample_data.made", "ok", "system")
    assert event.organization_id == organization.id
    assert event.detail == counts


@pytest.mark.on_sqlite
@pytest.mark.parametrize("day", [TODAY + timedelta(days=n) for n in range(7)])
def test_make_numbers_from_1_in_the_order_of_time(app: Flask, day: date) -> None:
    organization = create.organization()
    make(organization, day)
    for model, when in (
        (Vendor, "created_at"),
        (MarketDate, "date"),
        (VendorApplication, "submitted_at"),
        (Booking, "created_at"),
    ):
        found = rows(model, organization)
        assert [row["id"] for row in found] == list(range(1, len(found) + 1))
        assert [row[when] for row in found] == sorted(row[when] for row in found)


def test_make_has_every_state(app: Flask) -> None:
    organization = create.organization()
    make(organization)
    dates = Counter(row["status"] for row in rows(MarketDate, organization))
    assert set(dates) == set(MarketDateStatus)
    assert 1 <= dates["cancelled"] <= 2
    applications = Counter(row["status"] for row in rows(VendorApplication, organization))
    assert set(applications) == set(ApplicationStatus)
    bookings = Counter((row["status"], row["paid"]) for row in rows(Booking, organization))
    assert set(bookings) == {
        ("pending", False),
        ("approved", False),
        ("approved", True),
        ("declined", False),
        ("cancelled", False),
        ("cancelled", True),
    }
    assert min([*applications.values(), *bookings.values()]) >= 5
    assert any(row["reminded_at"] for row in rows(VendorApplication, organization))


@pytest.mark.on_sqlite
@pytest.mark.parametrize("day", [TODAY + timedelta(days=n) for n in range(7)])
def test_booking_123_waits_for_the_next_market_date(
    app: Flask, fake_clock: Clock, day: date
) -> None:
    fake_clock.moment = datetime.combine(day, time(12), UTC)
    organization = create.organization()
    make(organization)  # of another day, so that this one's rows are no coincidence
    other = create.organization()
    make(other, day)
    coming = market_queries.dashboard(raw_connection(db.session()), other).next_market_date
    booking = db.session.get_one(Booking, (other.id, 123))
    assert booking.status == BookingStatus.PENDING
    market_date = db.session.get_one(MarketDate, (other.id, booking.market_date_id))
    assert market_date.date == coming
    waiting = market_queries.page(
        raw_connection(db.session()), Booking, other.id, status=BookingStatus.PENDING, date=coming
    )
    assert len(waiting.rows) >= 4


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def test_make_is_true_to_its_calendar(app: Flask, zone: str) -> None:
    organization = create.organization()
    organization.timezone = zone
    db.session.commit()
    make(organization)
    begun = datetime(2026, 11, 24, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    dates = {row["id"]: row for row in rows(MarketDate, organization)}
    approved: dict[tuple[int, int], datetime] = {}
    for row in rows(VendorApplication, organization):
        vendor = db.session.get_one(Vendor, (organization.id, row["vendor_id"]))
        assert vendor.created_at < row["submitted_at"] < begun
        assert (row["decided_at"] is None) == (row["status"] == ApplicationStatus.PENDING)
        for later in (row["decided_at"], row["reminded_at"]):
            assert later is None or row["submitted_at"] < later < begun
        if row["status"] == ApplicationStatus.APPROVED:
            approved.setdefault((row["vendor_id"], row["market_id"]), row["decided_at"])
    taken = Counter[tuple[int, Any]]()
    for row in rows(Booking, organization):
        day = dates[row["market_date_id"]]
        morning = datetime.combine(day["date"], time(), ZoneInfo(zone))
        assert day["status"] != MarketDateStatus.DRAFT
        assert approved[row["vendor_id"], day["market_id"]] < row["created_at"] < begun
        assert row["created_at"] < morning
        assert (row["decided_at"] is None) == (row["status"] == BookingStatus.PENDING)
        assert row["decided_at"] is None or row["created_at"] < row["decided_at"] < min(
            begun, morning
        )
        assert row["status"] != BookingStatus.PENDING or morning > begun
        if day["status"] == MarketDateStatus.CANCELLED:
            assert (row["status"], "called off" in row["reason"]) == ("cancelled", True)
        taken.update(
            [(row["market_date_id"], row["stall"]), (row["market_date_id"], row["vendor_id"])]
        )
    assert set(taken.values()) == {1}  # no stall and no vendor twice on one date


def test_make_speaks_in_many_words_and_of_nobody(app: Flask) -> None:
    organization = create.organization()
    make(organization)
    vendors = rows(Vendor, organization)
    for column, least in (("name", 60), ("contact_name", 60), ("email", 60), ("category", 15)):
        assert len({row[column] for row in vendors}) >= least
    assert all(row["email"].endswith("@example.org") for row in vendors)
    assert all(row["phone"].startswith("555-01") for row in vendors)
    messages = {row["message"] for row in rows(VendorApplication, organization)}
    assert len(messages) >= 100
    assert not any("{" in message for message in messages)


def test_make_again_is_a_conflict_that_changes_nothing(app: Flask) -> None:
    organization = create.organization()
    make(organization)
    before = {model: len(rows(model, organization)) for model in MODELS}
    with pytest.raises(Conflict):
        make(organization)
    assert {model: len(rows(model, organization)) for model in MODELS} == before
    assert db.session.scalar(select(func.count(AuditEvent.id))) == 1


def test_make_leaves_other_organizations_alone(app: Flask) -> None:
    other, organization = create.organization("Other"), create.organization("Mine")
    create.market_data(other)
    before = {model: rows(model, other) for model in MODELS}
    make(organization)
    assert {model: rows(model, other) for model in MODELS} == before


def test_make_without_the_organization_is_not_found(app: Flask) -> None:
    with pytest.raises(NotFound):
        sample.make(Actor.system(99))

"""A season that looks real, for looking around: seeded, so the same every time for the same day."""

import json
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import insert, select

from convene_keys import clock
from convene_keys import text as text_
from convene_keys.accounts.authorization import acting
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, record
from convene_keys.db.session import serialize
from convene_keys.errors import Conflict, NotFound
from convene_keys.models import (
    ApplicationStatus,
    Booking,
    BookingStatus,
    Market,
    MarketDate,
    MarketDateStatus,
    Organization,
    Role,
    Vendor,
    VendorApplication,
)

Values = dict[str, Any]

_WORDS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

# For each market: day of the week, weeks from now, opening hours, stalls, price of one in cents.
_CALENDAR = (
    (5, range(-8, 10), "08:00", "13:00", 24, 4500),
    (2, range(-6, 8), "15:00", "20:00", 16, 3800),
    (6, range(-8, 9, 2), "10:00", "16:00", 20, 5500),
)
_CALLED_OFF = {(2, -3), (3, 2)}  # market, week
_DRAFT_FROM = timedelta(days=49)
_ESTABLISHED = 50  # so many vendors sell already; the others have just applied
_HOT_FOOD_EXTRA = 1500
_PENDING_NEXT = 4  # so many bookings of the next market date wait for an answer
_WAITING_BOOKING = 123  # the number by which examples call a booking that waits for an answer


def make(actor: Actor, today: date | None = None) -> dict[str, int]:
    """Fill the actor's organization with a season around `today`; how many rows of each kind.

    `today` is by default the day it is where the organization is. All that is in the past happened
    before it began. Raises `NotFound` without the organization, `Conflict` when it has markets.
    """
    with acting(actor, Role.ADMIN) as session:
        organization = session.get(Organization, actor.organization_id)
        if organization is None:
            raise NotFound("There is no such organization.")
        serialize(session, f"sample data {organization.id}")
        has_markets = select(Market.id).where(Market.organization_id == organization.id).limit(1)
        if session.scalar(has_markets) is not None:
            raise Conflict("This organization has markets already. Sample data needs an empty one.")
        season = _Season(today or clock.today(organization.timezone), organization.timezone)
        counts = {}
        for model, rows in (
            (Market, season.markets),
            (Vendor, season.vendors),
            (MarketDate, season.dates),
            (VendorApplication, season.applications),
            (Booking, season.bookings),
        ):
            session.execute(
                insert(model), [{"organization_id": organization.id, **row} for row in rows]
            )
            counts[f"{model.__tablename__.removeprefix('vendor_')}s"] = len(rows)
        record(session, actor, Action.SAMPLE_DATA_MADE, detail=counts)
    return counts


class _Season:
    """The rows of one season, each kind numbered in the order in which it came about."""

    def __init__(self, today: date, timezone: str) -> None:
        self._random = Random("a season of markets")  # noqa: S311  nothing here is secret
        self._today, self._timezone = today, timezone
        self._morning = clock.midnight(today, timezone)
        self.markets = [
            {"id": number, "name": name, "location": location, "description": description}
            for number, (name, location, description) in enumerate(_WORDS["markets"], 1)
        ]
        self.dates = self._make_dates()
        self._sellers: dict[int, list[int]] = {market["id"]: [] for market in self.markets}
        self.vendors: list[Values] = []
        self.applications = self._make_applications()
        self.bookings = self._make_bookings()

    def _make_dates(self) -> list[Values]:
        rows = []
        for market, (weekday, weeks, opens, closes, stalls, _) in enumerate(_CALENDAR, 1):
            first = self._today + timedelta(days=(weekday - self._today.weekday()) % 7)
            for week in weeks:
                day, status = first + timedelta(weeks=week), MarketDateStatus.PUBLISHED
                if (market, week) in _CALLED_OFF:
                    status = MarketDateStatus.CANCELLED
                elif day - self._today >= _DRAFT_FROM:
                    status = MarketDateStatus.DRAFT
                rows.append(
                    {
                        "market_id": market,
                        "date": day,
                        "opens": opens,
                        "closes": closes,
                        "stalls": stalls,
                        "status": status,
                    }
                )
        return _numbered(rows, "date", "market_id")

    def _make_applications(self) -> list[Values]:
        """The vendors, and what each of them applied for. Fills `vendors` and `_sellers`."""
        rows = []
        for number, (name, category, contact, sells) in enumerate(_WORDS["vendors"], 1):
            established = number <= _ESTABLISHED
            days_ago = (
                480 - 6 * number if established else 2 + 4 * (len(_WORDS["vendors"]) - number)
            )
            first = self._moment(self._today - timedelta(days=days_ago))
            self.vendors.append(
                {
                    "id": number,
                    "name": name,
                    "name_folded": text_.fold(name),
                    "category": category,
                    "contact_name": contact,
                    "email": f"{text_.slug(name)}@example.org",
                    "phone": f"555-{100 + number:04}",
                    "created_at": first - timedelta(minutes=self._random.randint(3, 40)),
                }
            )
            count = self._random.choices((1, 2, 3), (25, 45, 30))[0]
            for market in self._random.sample(self.markets, count):
                for submitted, texts, weights in self._history(first, market["id"], number):
                    words = self._random.choice(_WORDS[texts])
                    message = words.format(market=market["name"], sells=sells)
                    rows.append(
                        {
                            "market_id": market["id"],
                            "vendor_id": number,
                            "message": message[0].upper() + message[1:],
                            **self._decided_application(submitted, weights),
                        }
                    )
        return _numbered(rows, "submitted_at", "vendor_id", "market_id")

    def _history(
        self, first: datetime, market: int, vendor: int
    ) -> Iterator[tuple[datetime, str, tuple[int, int, int, int]]]:
        """When a vendor applied to a market, in which words, and how likely each state is."""
        if vendor > _ESTABLISHED:  # the states in their order: pending, approved, declined, waiting
            yield first, "messages", (60, 0, 20, 20)
            return
        submitted = first + timedelta(days=self._random.randint(0, 9))
        if self._random.random() < 0.25:
            yield submitted, "messages", (0, 0, 1, 0)
            submitted += timedelta(days=self._random.randint(20, 40))
        yield submitted, "messages", (0, 1, 0, 0)
        self._sellers[market].append(vendor)
        if self._random.random() < 0.85:
            renewed = self._today - timedelta(days=self._random.randint(1, 70))
            yield self._moment(renewed), "renewals", (30, 48, 9, 13)

    def _decided_application(
        self, submitted: datetime, weights: tuple[int, int, int, int]
    ) -> Values:
        """Its state and what belongs to that."""
        status = self._random.choices(list(ApplicationStatus), weights)[0]
        noted = self._random.random() < (0.15 if status == ApplicationStatus.PENDING else 0.6)
        reminded = status == ApplicationStatus.PENDING and self._random.random() < 0.3
        decided = status != ApplicationStatus.PENDING
        return {
            "status": status,
            "note": self._random.choice(_WORDS["notes"][status]) if noted else "",
            "submitted_at": submitted,
            "decided_at": self._later(submitted, self._morning, days=12) if decided else None,
            "reminded_at": self._later(submitted, self._morning, days=30) if reminded else None,
        }

    def _make_bookings(self) -> list[Values]:
        rows = []
        open_dates = [row for row in self.dates if row["status"] != MarketDateStatus.DRAFT]
        coming = next(
            row
            for row in open_dates
            if row["date"] >= self._today and row["status"] == MarketDateStatus.PUBLISHED
        )
        for day in open_dates:
            weeks_ahead = max(0, (day["date"] - self._today).days // 7)
            share = self._random.uniform(0.6, 0.9) * (1 - weeks_ahead / 11)
            wanted = min(day["stalls"], len(self._sellers[day["market_id"]]))
            sellers = self._random.sample(
                self._sellers[day["market_id"]], max(_PENDING_NEXT, round(wanted * share))
            )
            stalls = self._random.sample(range(day["stalls"]), len(sellers))
            for place, (vendor, stall) in enumerate(zip(sellers, stalls, strict=True)):
                waits = day is coming and place < _PENDING_NEXT
                rows.append(
                    {
                        "market_date_id": day["id"],
                        "vendor_id": vendor,
                        "stall": f"{'ABC'[stall // 8]}{stall % 8 + 1}",
                        "amount": self._amount(day["market_id"], vendor),
                        "currency": "EUR",
                        **self._decided_booking(day, waits),
                    }
                )
        rows = _numbered(rows, "created_at", "market_date_id", "vendor_id")
        return _with_waiting(rows, coming["id"])

    def _decided_booking(self, day: Values, waits: bool) -> Values:
        """When it was made, its state and what belongs to that."""
        earliest = max(4, (day["date"] - self._today).days + 1)
        lead = timedelta(days=self._random.randint(earliest, earliest + 38))
        created, over = self._moment(day["date"] - lead), day["date"] < self._today
        weights = (0, 86, 6, 8) if over else (32, 52, 8, 8)
        status = self._random.choices(list(BookingStatus), weights)[0]
        reason = self._random.choice(_WORDS.get(status, [""]))
        if waits:
            status, reason = BookingStatus.PENDING, ""
        elif day["status"] == MarketDateStatus.CANCELLED:
            status, reason = BookingStatus.CANCELLED, _WORDS["called_off"][0 if over else 1]
        chance = {
            BookingStatus.APPROVED: 0.93 if over else 0.55,
            BookingStatus.CANCELLED: 0.3,
        }.get(status, 0)
        decided = None
        if status != BookingStatus.PENDING:
            decided = self._later(
                created, min(self._morning, clock.midnight(day["date"], self._timezone)), days=6
            )
        return {
            "status": status,
            "paid": self._random.random() < chance,
            "reason": reason,
            "created_at": created,
            "decided_at": decided,
        }

    def _amount(self, market: int, vendor: int) -> int:
        hot = self.vendors[vendor - 1]["category"] == "Hot food"
        length_extra = self._random.choices((0, 1000, 2000), (70, 20, 10))[0]
        price: int = _CALENDAR[market - 1][5]
        return price + length_extra + (_HOT_FOOD_EXTRA if hot else 0)

    def _moment(self, day: date) -> datetime:
        """Some time of `day` at which people are awake."""
        awake = timedelta(seconds=self._random.randint(7 * 3600, 22 * 3600))
        return clock.midnight(day, self._timezone) + awake

    def _later(self, moment: datetime, end: datetime, *, days: int) -> datetime:
        """Some time after `moment`, before `end`, at most `days` later."""
        span = min(end - moment, timedelta(days=days)).total_seconds()
        return moment + timedelta(seconds=int(span * self._random.uniform(0.05, 0.95)))


def _numbered(rows: list[Values], *order: str) -> list[Values]:
    """The rows in this order, numbered from 1."""
    rows = sorted(rows, key=lambda row: tuple(row[column] for column in order))
    return [{**row, "id": number} for number, row in enumerate(rows, 1)]


def _with_waiting(rows: list[Values], market_date: int) -> list[Values]:
    """The bookings, with one that waits for an answer for `market_date` at the known number.

    It is one that was made early, at a time that fits its place.
    """
    waiting = next(
        row
        for row in rows
        if row["market_date_id"] == market_date and row["status"] == BookingStatus.PENDING
    )
    rows.remove(waiting)
    before, after = (rows[_WAITING_BOOKING + place]["created_at"] for place in (-2, -1))
    between = (before + (after - before) / 2).replace(microsecond=0)
    rows.insert(_WAITING_BOOKING - 1, {**waiting, "created_at": between})
    return [{**row, "id": number} for number, row in enumerate(rows, 1)]

"""The shapes of what operations take and give, as pydantic models with a word on each field."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from datetime import date as Day
from functools import cache, partial
from operator import attrgetter
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from convene_keys.audit.actions import Action
from convene_keys.models import ApplicationStatus, BookingStatus, MarketDateStatus, Scope, Tool
from convene_keys.text import clean_line, clean_text, redact

Json = dict[str, Any]  # an object of JSON
Item = TypeVar("Item", bound=BaseModel)

NUMBER_MAX = 2**31 - 1
Number = Annotated[int, Field(ge=1, le=NUMBER_MAX)]


def _cleaned(most: int, clean: Callable[[str], str]) -> BeforeValidator:
    """Before the type's own checks, whose messages are not in plain words.

    What was sent is held to the length too, as described, white space and all.
    """

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        if len(value.replace("\r\n", "\n")) > most:  # as forms send the end of a line
            raise ValueError(f"Please use at most {most:,} characters.")
        return clean(value)

    return BeforeValidator(read)


Search = Annotated[str, Field(min_length=1, max_length=100), _cleaned(100, clean_line)]
Line = Annotated[
    str,
    Field(max_length=300),
    _cleaned(300, lambda v: redact(clean_text(v, most=300, lines=False))),
]
Note = Annotated[str, Field(max_length=2_000), _cleaned(2_000, lambda v: redact(clean_text(v)))]
Cursor = Annotated[str | None, Field(max_length=64, description="`next_cursor` of the page before")]


def _utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("There is no such moment in UTC.") from None


def _given(read: Callable[[str], Day], shape: str, value: object) -> Day:
    """A day or moment as it is written: pydantic would take a count of seconds as well."""
    if isinstance(value, str) and re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        try:
            return read(value)
        except ValueError:
            raise ValueError("There is no such day or time.") from None
    raise ValueError(f"Write it like {shape}.")


GivenMoment = Annotated[
    datetime,
    AfterValidator(_utc),
    BeforeValidator(partial(_given, datetime.fromisoformat, "2026-11-24T09:30:00Z")),
]
GivenDay = Annotated[Day, BeforeValidator(partial(_given, Day.fromisoformat, "2026-11-24"))]


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Nothing(Input):
    """No input."""


class One(Input):
    id: Number = Field(description="Its number in the organization, counted from 1")


class WithReason(One):
    reason: Line = Field("", description="Why, for the team; the vendor does not see it")


class ApplicationUpdate(One):
    status: Literal["approved", "declined", "waitlisted"] = Field(description="The decision")
    note: Note | None = Field(None, description="A note for the team; left out: it stays")


class Listing(Input):
    limit: int = Field(25, ge=1, le=100, description="How many at the most")
    cursor: Cursor = None


class ListMarkets(Listing):
    pass


class ListMarketDates(Listing):
    market_id: Number | None = Field(None, description="Only dates of this market")
    status: MarketDateStatus | None = Field(None, description="Only dates in this state")
    since: GivenDay | None = Field(None, description="From this day on, YYYY-MM-DD")
    until: GivenDay | None = Field(None, description="Up to and with this day, YYYY-MM-DD")


class ListVendors(Listing):
    q: Search | None = Field(None, description="Part of the vendor's name")


class ListApplications(Listing):
    status: ApplicationStatus | None = Field(None, description="Only applications in this state")
    market_id: Number | None = Field(None, description="Only applications to this market")
    q: Search | None = Field(None, description="Part of the vendor's name")


class ListBookings(Listing):
    status: BookingStatus | None = Field(None, description="Only bookings in this state")
    market_date_id: Number | None = Field(None, description="Only bookings of this market date")
    vendor_id: Number | None = Field(None, description="Only bookings of this vendor")
    date: GivenDay | None = Field(None, description="Only bookings for this day, YYYY-MM-DD")


class ListEvents(Input):
    key: Number | None = Field(None, description="The id of the key itself; no other is shown")
    action: Action | None = Field(None, description="Only this action, like `booking.approved`")
    since: GivenMoment | None = Field(None, description="From this moment on, RFC 3339")
    before: Cursor = None
    limit: int = Field(25, ge=1, le=100, description="How many at the most")


class Output(BaseModel):
    model_config = ConfigDict(from_attributes=True)


@cache
def _fields(output: type[Output]) -> tuple[tuple[str, ...], Callable[[object], Sequence[object]]]:
    names = tuple(output.model_fields)
    return names, attrgetter(*names)


def as_json(output: type[Output], row: object) -> Json:
    """What `output` shows of a row, which is not checked again: the database has it in these types.

    The models describe the answers; a test holds the two to each other.
    """
    names, values = _fields(output)
    return dict(zip(names, values(row), strict=True))


class ListOf(Output, Generic[Item]):
    data: list[Item]
    next_cursor: str | None = Field(description="For the next page; null on the last one")


class OrganizationOut(Output):
    id: int
    name: str
    slug: str


class KeyOut(Output):
    id: int
    name: str
    hint: str
    tool: Tool
    scope: Scope
    created_at: datetime
    expires_at: datetime | None


class WhoAmI(Output):
    organization: OrganizationOut
    key: KeyOut


class DashboardOut(Output):
    organization: OrganizationOut
    pending_applications: int
    pending_bookings: int
    pending_orders: int = Field(description="Approved bookings that are not paid yet")
    upcoming_market_dates: int = Field(description="Published dates from today on")
    next_market_date: Day | None
    total_vendors: int


class MarketOut(Output):
    id: int
    name: str
    location: str
    description: str


class MarketDateOut(Output):
    id: int
    market_id: int
    market_name: str
    date: Day
    opens: str = Field(description="Local time, HH:MM")
    closes: str = Field(description="Local time, HH:MM")
    stalls: int
    status: MarketDateStatus


class VendorOut(Output):
    id: int
    name: str
    category: str
    contact_name: str
    email: str
    phone: str
    created_at: datetime


class ApplicationOut(Output):
    id: int
    status: ApplicationStatus
    market_id: int
    market_name: str
    vendor_id: int
    vendor_name: str
    message: str
    note: str
    submitted_at: datetime
    decided_at: datetime | None
    reminded_at: datetime | None


class BookingOut(Output):
    id: int
    status: BookingStatus
    paid: bool
    market_date_id: int
    date: Day
    market_id: int
    market_name: str
    vendor_id: int
    vendor_name: str
    stall: str
    amount: int = Field(description="In minor units of the currency: 4500 is 45.00")
    currency: str = Field(description="ISO 4217")
    reason: str
    created_at: datetime
    decided_at: datetime | None


class EventOut(Output):
    id: int
    at: datetime
    organization_id: int
    actor: str
    key_id: int | None
    key_name: str | None
    member_id: int | None
    member_name: str | None
    action: str
    target_type: str | None
    target_id: str | None
    target_name: str | None
    outcome: str
    ip: str | None
    user_agent: str | None
    request_id: str | None
    detail: Json


# Named, so that the documents made from them have plain names.
class MarketList(ListOf[MarketOut]): ...


class MarketDateList(ListOf[MarketDateOut]): ...


class VendorList(ListOf[VendorOut]): ...


class ApplicationList(ListOf[ApplicationOut]): ...


class BookingList(ListOf[BookingOut]): ...


class EventList(ListOf[EventOut]): ...

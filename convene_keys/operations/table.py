"""What a key may do: one table. To add an operation, add a row to `OPERATIONS`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Target
from convene_keys.db.connections import OwnConnection
from convene_keys.db.session import raw_connection
from convene_keys.db.statements import RawConnection
from convene_keys.errors import FieldError, Invalid, Malformed, NotFound
from convene_keys.keys.authentication import FoundKey
from convene_keys.markets import decisions
from convene_keys.markets import queries as market_queries
from convene_keys.models import (
    ApplicationStatus,
    Booking,
    BookingStatus,
    Market,
    MarketDate,
    Numbered,
    Scope,
    Vendor,
    VendorApplication,
)
from convene_keys.operations import schemas
from convene_keys.operations.schemas import Json, as_json

ROOT = "/api/v1/admin"
# Where a key ends itself. It is no operation, and so no tool: the text of a vendor's application
# could talk an assistant into it.
SELF_REVOKE = "/me/revoke"
VERIFY = "/auth/verify"  # where a proxy asks about a key

ERRORS_MAX = 50


@dataclass
class Call:
    """One call under way: its transaction or connection, who makes it, and what the log tells.

    Within a transaction when it may change something; one that only reads has just a connection.
    """

    within: Session | OwnConnection
    actor: Actor
    organization: market_queries.OrganizationInfo
    found: FoundKey | None = None
    target: Target | None = None
    detail: Json = field(default_factory=dict)

    @property
    def key(self) -> FoundKey:
        assert self.found is not None, "a member who calls has none"  # noqa: S101
        return self.found

    @property
    def connection(self) -> RawConnection:
        return connection_of(self.within)

    @property
    def session(self) -> Session:
        assert isinstance(self.within, Session), "only a call that changes something has one"  # noqa: S101
        return self.within


@dataclass(frozen=True)
class Operation:
    """One thing a key may do. `path` is below `ROOT`; `{id}` in it is the field `id`."""

    name: str
    method: Literal["GET", "POST", "PATCH"]
    path: str
    action: Action
    title: str
    description: str
    input: type[BaseModel]
    output: type[schemas.Output]
    handler: Callable[[Call, Any], Json]  # what `output` describes
    noun: str = ""
    # What the Model Context Protocol wants to know of a change.
    destructive: bool = False  # it can't be undone, or replaces what was there
    idempotent: bool = True  # doing it again changes nothing more

    @property
    def scope(self) -> Scope:
        return Scope.READ if self.method == "GET" else Scope.READ_WRITE

    @property
    def changes(self) -> bool:
        return self.scope is Scope.READ_WRITE

    def target(self, number: int) -> Target:
        return Target(self.noun.replace(" ", "_"), number, f"{self.noun} {number}")

    def from_strings(self, values: Mapping[str, str]) -> BaseModel:
        """The input from a path and a query string. Raises `Invalid`."""
        return _checked(lambda: self.input.model_validate_strings(dict(values)))

    def from_json(self, values: Json) -> BaseModel:
        """The input from JSON, without bending any type. Raises `Invalid` or `Malformed`."""
        try:
            text = json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise Malformed("The input is nested too deeply or holds half a character.") from None
        return _checked(lambda: self.input.model_validate_json(text, strict=True))


def connection_of(within: Session | OwnConnection) -> RawConnection:
    return within if isinstance(within, RawConnection) else raw_connection(within)


def _checked(validate: Callable[[], BaseModel]) -> BaseModel:
    try:
        return validate()
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        raise Invalid(
            [
                FieldError(
                    ".".join(map(str, e["loc"]))[:100], e["msg"].removeprefix("Value error, ")
                )
                for e in wrong[:ERRORS_MAX]
            ]
        ) from None


# What each row of the table below does -----------------------------------------------------------


def _whoami(call: Call, _: schemas.Nothing) -> Json:
    return {"organization": _organization(call), "key": as_json(schemas.KeyOut, call.key)}


def _dashboard(call: Call, _: schemas.Nothing) -> Json:
    counts = market_queries.dashboard(call.connection, call.organization)
    return {"organization": _organization(call), **counts._asdict()}


def _organization(call: Call) -> Json:
    return as_json(schemas.OrganizationOut, call.organization)


def _page(call: Call, output: type[schemas.Output], rows: Sequence[object], cursor: object) -> Json:
    call.detail["count"] = len(rows)
    return {"data": [as_json(output, row) for row in rows], "next_cursor": cursor}


def _listing(
    model: type[Numbered], output: type[schemas.Output]
) -> Callable[[Call, BaseModel], Json]:
    def handler(call: Call, wanted: BaseModel) -> Json:
        page = market_queries.page(call.connection, model, call.organization.id, **dict(wanted))
        return _page(call, output, page.rows, page.next_cursor)

    return handler


def _showing(
    model: type[Numbered], output: type[schemas.Output]
) -> Callable[[Call, schemas.One], Json]:
    def handler(call: Call, wanted: schemas.One) -> Json:
        row = market_queries.get_row(call.connection, model, call.organization.id, wanted.id)
        return as_json(output, row)

    return handler


_show_booking = _showing(Booking, schemas.BookingOut)
_show_application = _showing(VendorApplication, schemas.ApplicationOut)


def _deciding(status: BookingStatus) -> Callable[[Call, schemas.One], Json]:
    def handler(call: Call, wanted: schemas.One) -> Json:
        reason = getattr(wanted, "reason", "")
        with _changing(call, Booking, wanted.id) as booking:
            call.detail["before"] = booking.status
            call.detail["changed"] = decisions.decide_booking(booking, status, reason)
        if reason:
            call.detail["reason"] = reason
        return _show_booking(call, wanted)

    return handler


def _mark_paid(call: Call, wanted: schemas.One) -> Json:
    with _changing(call, Booking, wanted.id) as booking:
        call.detail["changed"] = decisions.mark_paid(booking)
    return _show_booking(call, wanted)


def _update_application(call: Call, wanted: schemas.ApplicationUpdate) -> Json:
    status = ApplicationStatus(wanted.status)
    with _changing(call, VendorApplication, wanted.id) as application:
        call.detail |= {"before": application.status, "after": status}
        call.detail["changed"] = decisions.update_application(application, status, wanted.note)
    return _show_application(call, wanted)


def _remind_application(call: Call, wanted: schemas.One) -> Json:
    with _changing(call, VendorApplication, wanted.id) as application:
        decisions.remind_application(application)
    return _show_application(call, wanted)


def _list_events(call: Call, wanted: schemas.ListEvents) -> Json:
    if wanted.key not in (None, call.key.id):
        raise NotFound("A key sees its own events only.")
    chosen = audit_queries.Filter(key=call.key.id, action=wanted.action or "", since=wanted.since)
    before = market_queries.cursor_number(wanted.before)
    with Session(call.connection.engine) as session:  # events are read as models
        found = audit_queries.page(
            session, call.organization.id, chosen, before=before, limit=wanted.limit
        )
        cursor = str(found.before) if found.before else None
        return _page(call, schemas.EventOut, found.events, cursor)


@contextmanager
def _changing(call: Call, model: type[decisions.Kind], number: int) -> Iterator[decisions.Kind]:
    """The row to change; the event keeps what it replaced, for `undo`."""
    row = decisions.get_for_update(call.session, model, call.organization.id, number)
    before = decisions.state(row)
    yield row
    after = decisions.state(row)
    if replaced := {name: was for name, was in before.items() if was != after[name]}:
        call.detail["replaced"] = replaced


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "whoami", "GET", "/me", Action.KEY_CHECKED,
        "Who am I",
        "Which organization and key this is, and what it may do.",
        schemas.Nothing, schemas.WhoAmI, _whoami,
    ),
    Operation(
        "dashboard", "GET", "/dashboard", Action.DASHBOARD_VIEWED,
        "Dashboard",
        "What is pending, how many market dates lie ahead, and when the next one is.",
        schemas.Nothing, schemas.DashboardOut, _dashboard,
    ),
    Operation(
        "list_markets", "GET", "/markets", Action.MARKET_LISTED,
        "List markets",
        "The organization's markets.",
        schemas.ListMarkets, schemas.MarketList, _listing(Market, schemas.MarketOut),
    ),
    Operation(
        "get_market", "GET", "/markets/{id}", Action.MARKET_VIEWED,
        "Get a market",
        "One market.",
        schemas.One, schemas.MarketOut, _showing(Market, schemas.MarketOut), "market",
    ),
    Operation(
        "list_market_dates", "GET", "/market_dates", Action.MARKET_DATE_LISTED,
        "List market dates",
        "Market dates in the order of the calendar, of one market, state or span of days.",
        schemas.ListMarketDates, schemas.MarketDateList,
        _listing(MarketDate, schemas.MarketDateOut),
    ),
    Operation(
        "get_market_date", "GET", "/market_dates/{id}", Action.MARKET_DATE_VIEWED,
        "Get a market date",
        "One market date.",
        schemas.One, schemas.MarketDateOut, _showing(MarketDate, schemas.MarketDateOut), "market date",
    ),
    Operation(
        "list_vendors", "GET", "/vendors", Action.VENDOR_LISTED,
        "List vendors",
        "Vendors, or those with a word in their name.",
        schemas.ListVendors, schemas.VendorList, _listing(Vendor, schemas.VendorOut),
    ),
    Operation(
        "get_vendor", "GET", "/vendors/{id}", Action.VENDOR_VIEWED,
        "Get a vendor",
        "One vendor, with how to reach them.",
        schemas.One, schemas.VendorOut, _showing(Vendor, schemas.VendorOut), "vendor",
    ),
    Operation(
        "list_vendor_applications", "GET", "/vendor_applications", Action.APPLICATION_LISTED,
        "List vendor applications",
        "Applications of vendors to markets, newest first, by state, market or vendor's name.",
        schemas.ListApplications, schemas.ApplicationList,
        _listing(VendorApplication, schemas.ApplicationOut),
    ),
    Operation(
        "get_vendor_application", "GET", "/vendor_applications/{id}", Action.APPLICATION_VIEWED,
        "Get a vendor application",
        "One application, with the vendor's message and the team's note.",
        schemas.One, schemas.ApplicationOut,
        _show_application, "application",
    ),
    Operation(
        "update_vendor_application", "PATCH", "/vendor_applications/{id}",
        Action.APPLICATION_UPDATED,
        "Decide a vendor application",
        "Approve, decline or waitlist an application, with a note for the team if you like.",
        schemas.ApplicationUpdate, schemas.ApplicationOut, _update_application, "application",
        destructive=True,
    ),
    Operation(
        "remind_vendor_application", "POST", "/vendor_applications/{id}/remind",
        Action.APPLICATION_REMINDED,
        "Note a reminder",
        "Note that the vendor was reminded: once in 24 hours, and not once it is declined.",
        schemas.One, schemas.ApplicationOut, _remind_application, "application", idempotent=False,
    ),
    Operation(
        "list_bookings", "GET", "/bookings", Action.BOOKING_LISTED,
        "List bookings",
        "Bookings of stalls, newest first, by state, market date, vendor or day.",
        schemas.ListBookings, schemas.BookingList, _listing(Booking, schemas.BookingOut),
    ),
    Operation(
        "get_booking", "GET", "/bookings/{id}", Action.BOOKING_VIEWED,
        "Get a booking",
        "One booking of a stall.",
        schemas.One, schemas.BookingOut, _show_booking, "booking",
    ),
    Operation(
        "approve_booking", "POST", "/bookings/{id}/approve", Action.BOOKING_APPROVED,
        "Approve a booking",
        "Approve a pending or declined booking. Approving it again changes nothing.",
        schemas.One, schemas.BookingOut, _deciding(BookingStatus.APPROVED), "booking",
    ),
    Operation(
        "decline_booking", "POST", "/bookings/{id}/decline", Action.BOOKING_DECLINED,
        "Decline a booking",
        "Decline a pending booking, with a reason if you like.",
        schemas.WithReason, schemas.BookingOut, _deciding(BookingStatus.DECLINED), "booking",
    ),
    Operation(
        "cancel_booking", "POST", "/bookings/{id}/cancel", Action.BOOKING_CANCELLED,
        "Cancel a booking",
        "Cancel a pending or approved booking, with a reason if you like. It can't be undone.",
        schemas.WithReason, schemas.BookingOut, _deciding(BookingStatus.CANCELLED), "booking",
        destructive=True,
    ),
    Operation(
        "mark_booking_paid", "POST", "/bookings/{id}/mark_paid", Action.BOOKING_PAID,
        "Mark a booking as paid",
        "Mark an approved booking as paid. Doing it again changes nothing.",
        schemas.One, schemas.BookingOut, _mark_paid, "booking",
    ),
    Operation(
        "list_my_events", "GET", "/audit_events", Action.AUDIT_LISTED,
        "List my events",
        "What this key did, newest first, as the audit log has it.",
        schemas.ListEvents, schemas.EventList, _list_events,
    ),
)  # fmt: skip

BY_NAME = {operation.name: operation for operation in OPERATIONS}

"""Bookings and applications: what a key may do with them, a person does here."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

from flask import Blueprint, Response, flash, request, url_for
from flask_login import current_user
from wtforms import RadioField, TextAreaField

from convene_keys import clock
from convene_keys.db.session import db, raw_connection
from convene_keys.errors import Conflict, Malformed, NotFound
from convene_keys.http.access import Access, access, member_actor
from convene_keys.markets import queries as market_queries
from convene_keys.models import (
    ApplicationStatus,
    Booking,
    BookingStatus,
    Market,
    MarketDate,
    MarketDateStatus,
    VendorApplication,
)
from convene_keys.operations import runner, table
from convene_keys.operations.schemas import NUMBER_MAX
from convene_keys.web.filters import Filters, parse_day, parse_number
from convene_keys.web.forms import Form, ReasonForm
from convene_keys.web.respond import done, is_htmx, page, stale

blueprint = Blueprint("data", __name__, url_prefix="/admin")

ALL = "all"
DATES_SHOWN, DATES_FROM = 100, timedelta(days=60)


@dataclass(frozen=True)
class DataFilters(Filters):
    """One of the two pages: what its address asks for, and how it speaks of its rows."""

    status: str = "pending"

    model: ClassVar[type[Booking] | type[VendorApplication]]
    columns: ClassVar[tuple[str, ...]]

    @classmethod
    def asked(cls) -> Self:
        """By the request's address. Raises `Malformed` for what the list can't do."""
        filters = cls.parse(request.args)
        filters.narrowing()
        return filters

    def narrowing(self) -> dict[str, Any]:
        """All but the state, as `markets` takes it. Raises `Malformed`."""
        raise NotImplementedError

    @property
    def endpoint(self) -> str:
        return f"data.{self.noun}s"


@dataclass(frozen=True)
class BookingFilters(DataFilters):
    market_date_id: str = ""
    date: str = ""

    noun, model = "booking", Booking
    choices: ClassVar = {"status": (*BookingStatus, ALL)}
    columns = ("Vendor", "Status", "Market date", "Stall")

    def narrowing(self) -> dict[str, object]:
        return {"market_date_id": _number(self.market_date_id), "date": parse_day(self.date)}


@dataclass(frozen=True)
class ApplicationFilters(DataFilters):
    market_id: str = ""
    q: str = ""

    noun, model = "application", VendorApplication
    choices: ClassVar = {"status": (*ApplicationStatus, ALL)}
    columns = ("Vendor", "Status", "Market", "Message")

    def narrowing(self) -> dict[str, object]:
        return {"market_id": _number(self.market_id), "q": self.q or None}


class DecideForm(Form):
    status = RadioField(
        "Decision",
        choices={
            ApplicationStatus.APPROVED.value: "Approve",
            ApplicationStatus.WAITLISTED.value: "Waitlist",
            ApplicationStatus.DECLINED.value: "Decline",
        },
        validate_choice=False,  # the operation itself says which there are
    )
    note = TextAreaField("Note")


@blueprint.get("/bookings")
@access(Access.VIEWER)
def bookings() -> Response:
    return _list(BookingFilters.asked())


@blueprint.post("/bookings/<int:number>/approve")
@access(Access.MANAGER)
def approve_booking(number: int) -> Response:
    return _change(BookingFilters.asked(), number, "approve_booking", {}, "is approved")


@blueprint.post("/bookings/<int:number>/mark_paid")
@access(Access.MANAGER)
def mark_booking_paid(number: int) -> Response:
    return _change(BookingFilters.asked(), number, "mark_booking_paid", {}, "is marked as paid")


@blueprint.get("/bookings/<int:number>/decline")
@access(Access.MANAGER)
def confirm_decline_booking(number: int) -> Response:
    return _ask(BookingFilters.asked(), number, "decline", ReasonForm())


@blueprint.post("/bookings/<int:number>/decline")
@access(Access.MANAGER)
def decline_booking(number: int) -> Response:
    return _change_with_reason(number, "decline", "is declined")


@blueprint.get("/bookings/<int:number>/cancel")
@access(Access.MANAGER)
def confirm_cancel_booking(number: int) -> Response:
    return _ask(BookingFilters.asked(), number, "cancel", ReasonForm())


@blueprint.post("/bookings/<int:number>/cancel")
@access(Access.MANAGER)
def cancel_booking(number: int) -> Response:
    return _change_with_reason(number, "cancel", "is cancelled")


@blueprint.get("/applications")
@access(Access.VIEWER)
def applications() -> Response:
    return _list(ApplicationFilters.asked())


@blueprint.get("/applications/<int:number>/decide")
@access(Access.MANAGER)
def confirm_decide_application(number: int) -> Response:
    filters = ApplicationFilters.asked()
    row, wanted = _get(filters, number), request.args.get("to", "")
    status = wanted if wanted in set(ApplicationStatus) else row.status
    return _ask(filters, number, "decide", DecideForm(status=status, note=row.note))


@blueprint.post("/applications/<int:number>/decide")
@access(Access.MANAGER)
def decide_application(number: int) -> Response:
    """A form without a note leaves the note as it is."""
    form, filters = DecideForm(), ApplicationFilters.asked()
    status = form.status.data or ""
    values = {"status": status} | ({"note": form.note.data} if "note" in request.form else {})
    with form:
        return _change(filters, number, "update_vendor_application", values, f"is {status}")
    return _ask(filters, number, "decide", form, 422)


@blueprint.post("/applications/<int:number>/remind")
@access(Access.MANAGER)
def remind_application(number: int) -> Response:
    said = "is noted as reminded"
    return _change(ApplicationFilters.asked(), number, "remind_vendor_application", {}, said)


def _list(filters: DataFilters, status: int = 200) -> Response:
    cursor = request.args.get("cursor") or None if request.method == "GET" else None
    found = market_queries.page(
        raw_connection(db.session()),
        filters.model,
        current_user.organization.id,
        status=None if filters.status == ALL else filters.status,
        cursor=cursor,
        **filters.narrowing(),
    )
    return page(
        f"data/{filters.noun}s.html",
        "data/_rows.html" if cursor else "data/_list.html",
        status=status,
        **vars(found),
        choices=[] if is_htmx() else _choices(filters),
        **_around(filters),
    )


def _around(filters: DataFilters) -> dict[str, object]:
    """What both the list and a single row of it need: the filters, and how many there are."""
    counts = market_queries.counts(
        raw_connection(db.session()),
        filters.model,
        current_user.organization.id,
        **filters.narrowing(),
    )
    counts[ALL] = sum(counts.values())
    return {"filters": filters, "counts": counts}


def _choices(filters: DataFilters) -> list[tuple[int, str]]:
    """What the list can be narrowed to: market dates, or markets."""
    connection, organization = raw_connection(db.session()), current_user.organization
    if isinstance(filters, ApplicationFilters):
        listed = market_queries.page(connection, Market, organization.id, limit=DATES_SHOWN)
        return [(market.id, market.name) for market in listed.rows]
    since = clock.today(organization.timezone) - DATES_FROM
    dates = market_queries.page(
        connection, MarketDate, organization.id, since=since, limit=DATES_SHOWN
    )
    return [
        (row.id, f"{row.date:%a} {row.date.day} {row.date:%b %Y}, {row.market_name}")
        for row in dates.rows
        if row.status != MarketDateStatus.DRAFT
    ]


def _change_with_reason(number: int, verb: str, said: str) -> Response:
    form, filters = ReasonForm(), BookingFilters.asked()
    with form:
        values = {"reason": form.reason.data or ""}
        return _change(filters, number, f"{verb}_booking", values, said)
    return _ask(filters, number, verb, form, 422)


def _change(
    filters: DataFilters, number: int, operation: str, values: Mapping[str, object], said: str
) -> Response:
    """Do what a key would do by `operation`; the row as it is then, or a redirect to the list.

    Raises `NotFound`, and `Invalid` for bad values, before anything is changed or recorded.
    """
    _get(filters, number)
    wanted = table.BY_NAME[operation]
    arguments = wanted.from_json({"id": number, **values})
    try:
        runner.run_for_member(wanted, member_actor(), lambda: arguments)
    except Conflict as conflict:
        if is_htmx():
            row = _get(filters, number)
            return stale(conflict, "data/_changed.html", row=row, **_around(filters))
        flash(conflict.detail, "error")
        return _list(filters, conflict.status)
    row = _get(filters, number)
    return done(
        f"{filters.noun.capitalize()} {number} of {row.vendor_name} {said}.",
        url_for(filters.endpoint, **filters.query()),
        "data/_changed.html",
        row=row,
        just_changed=True,
        **_around(filters),
    )


def _ask(filters: DataFilters, number: int, verb: str, form: Form, status: int = 200) -> Response:
    return page(
        "data/confirm.html",
        "data/_confirm.html",
        status=status,
        filters=filters,
        row=_get(filters, number),
        verb=verb,
        form=form,
    )


def _get(filters: DataFilters, number: int) -> Any:
    """The organization's row. Raises `NotFound`."""
    if number > NUMBER_MAX:
        raise NotFound(f"There is no {filters.noun} {number}.")
    return market_queries.get_row(
        raw_connection(db.session()), filters.model, current_user.organization.id, number
    )


def _number(text: str) -> int | None:
    unlisted = Malformed("Please choose a market or date from the list.")
    return parse_number(text, NUMBER_MAX, unlisted)

"""Bookings and applications: what a key may do with them, a person does here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta
from enum import StrEnum
from typing import Any

from flask import Blueprint, Response, flash, request, url_for
from flask_login import current_user
from wtforms import RadioField, StringField, TextAreaField

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
from convene_keys.web.forms import Form
from convene_keys.web.respond import done, is_htmx, page, stale

blueprint = Blueprint("data", __name__, url_prefix="/admin")

ALL = "all"
TEXT_MAX = 100
NUMBER_MAX = 2**31 - 1
DATES_SHOWN, DATES_FROM = 100, timedelta(days=60)


@dataclass(frozen=True)
class _Filters:
    """What a list's address asks for, as it was typed."""

    status: str = "pending"

    def query(self, **changes: Any) -> dict[str, Any]:
        """The parameters of an address with the same filters, and `changes`."""
        return {name: value for name, value in (asdict(self) | changes).items() if value}


@dataclass(frozen=True)
class BookingFilters(_Filters):
    market_date_id: str = ""
    date: str = ""

    def narrowing(self) -> dict[str, Any]:
        """All but the state, as `markets` takes it. Raises `Malformed`."""
        return {"market_date_id": _number(self.market_date_id), "date": _day(self.date)}


@dataclass(frozen=True)
class ApplicationFilters(_Filters):
    market_id: str = ""
    q: str = ""

    def narrowing(self) -> dict[str, Any]:
        """All but the state, as `markets` takes it. Raises `Malformed`."""
        return {"market_id": _number(self.market_id), "q": self.q or None}


Filters = BookingFilters | ApplicationFilters


@dataclass(frozen=True)
class Area:
    """One of the two pages: which rows it lists and how it speaks of them."""

    noun: str
    model: type[Booking] | type[VendorApplication]
    statuses: type[StrEnum]
    filters: type[BookingFilters] | type[ApplicationFilters]
    columns: tuple[str, ...]

    @property
    def endpoint(self) -> str:
        return f"data.{self.noun}s"


BOOKINGS = Area(
    "booking",
    Booking,
    BookingStatus,
    BookingFilters,
    ("Vendor", "Status", "Market date", "Stall"),
)
APPLICATIONS = Area(
    "application",
    VendorApplication,
    ApplicationStatus,
    ApplicationFilters,
    ("Vendor", "Status", "Market", "Message"),
)


class ReasonForm(Form):
    reason = StringField("Reason")


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


@dataclass(frozen=True)
class Question:
    """What is asked before a change."""

    title: str
    text: str
    button: str
    busy: str
    danger: bool = True


@blueprint.get("/bookings")
@access(Access.VIEWER)
def bookings() -> Response:
    return _list(BOOKINGS, _filters(BOOKINGS))


@blueprint.post("/bookings/<int:number>/approve")
@access(Access.MANAGER)
def approve_booking(number: int) -> Response:
    return _change(BOOKINGS, number, "approve_booking", {}, "is approved")


@blueprint.post("/bookings/<int:number>/mark_paid")
@access(Access.MANAGER)
def mark_booking_paid(number: int) -> Response:
    return _change(BOOKINGS, number, "mark_booking_paid", {}, "is marked as paid")


@blueprint.get("/bookings/<int:number>/decline")
@access(Access.MANAGER)
def confirm_decline_booking(number: int) -> Response:
    return _ask(BOOKINGS, number, _declining(number), ReasonForm())


@blueprint.post("/bookings/<int:number>/decline")
@access(Access.MANAGER)
def decline_booking(number: int) -> Response:
    form = ReasonForm()
    values = {"reason": form.reason.data or ""}
    with form:
        return _change(BOOKINGS, number, "decline_booking", values, "is declined")
    return _ask(BOOKINGS, number, _declining(number), form, 422)


@blueprint.get("/bookings/<int:number>/cancel")
@access(Access.MANAGER)
def confirm_cancel_booking(number: int) -> Response:
    return _ask(BOOKINGS, number, _cancelling(number), ReasonForm())


@blueprint.post("/bookings/<int:number>/cancel")
@access(Access.MANAGER)
def cancel_booking(number: int) -> Response:
    form = ReasonForm()
    values = {"reason": form.reason.data or ""}
    with form:
        return _change(BOOKINGS, number, "cancel_booking", values, "is cancelled")
    return _ask(BOOKINGS, number, _cancelling(number), form, 422)


@blueprint.get("/applications")
@access(Access.VIEWER)
def applications() -> Response:
    return _list(APPLICATIONS, _filters(APPLICATIONS))


@blueprint.get("/applications/<int:number>/decide")
@access(Access.MANAGER)
def confirm_decide_application(number: int) -> Response:
    row = _get(APPLICATIONS, number)
    wanted = request.args.get("to", "")
    status = wanted if wanted in set(ApplicationStatus) else row.status
    return _ask(APPLICATIONS, number, _deciding(number), DecideForm(status=status, note=row.note))


@blueprint.post("/applications/<int:number>/decide")
@access(Access.MANAGER)
def decide_application(number: int) -> Response:
    """A form without a note leaves the note as it is."""
    form = DecideForm()
    status = form.status.data or ""
    values = {"status": status} | ({"note": form.note.data} if "note" in request.form else {})
    with form:
        return _change(APPLICATIONS, number, "update_vendor_application", values, f"is {status}")
    return _ask(APPLICATIONS, number, _deciding(number), form, 422)


@blueprint.post("/applications/<int:number>/remind")
@access(Access.MANAGER)
def remind_application(number: int) -> Response:
    said = "is noted as reminded"
    return _change(APPLICATIONS, number, "remind_vendor_application", {}, said)


def _list(area: Area, filters: Filters, status: int = 200) -> Response:
    cursor = request.args.get("cursor") or None if request.method == "GET" else None
    found = market_queries.page(
        raw_connection(db.session()),
        area.model,
        current_user.organization.id,
        status=None if filters.status == ALL else area.statuses(filters.status),
        cursor=cursor,
        **filters.narrowing(),
    )
    fragment = "data/_rows.html" if cursor else "data/_list.html"
    return page(
        f"data/{area.noun}s.html",
        fragment,
        status=status,
        rows=found.rows,
        next_cursor=found.next_cursor,
        choices=[] if is_htmx() else _choices(area),
        **_around(area, filters),
    )


def _around(area: Area, filters: Filters) -> dict[str, Any]:
    """What both the list and a single row of it need: the filters, and how many there are."""
    counts = market_queries.counts(
        raw_connection(db.session()),
        area.model,
        current_user.organization.id,
        **filters.narrowing(),
    )
    counts[ALL] = sum(counts.values())
    return {"area": area, "filters": filters, "counts": counts, "tabs": [*area.statuses, ALL]}


def _choices(area: Area) -> list[tuple[int, str]]:
    """What the list can be narrowed to: market dates, or markets."""
    connection, organization = raw_connection(db.session()), current_user.organization
    if area is APPLICATIONS:
        listed = market_queries.page(connection, Market, organization.id, limit=DATES_SHOWN)
        return [(market.id, market.name) for market in listed.rows]
    since = market_queries.today(organization) - DATES_FROM
    dates = market_queries.page(
        connection, MarketDate, organization.id, since=since, limit=DATES_SHOWN
    )
    return [
        (row.id, f"{row.date:%a} {row.date.day} {row.date:%b %Y}, {row.market_name}")
        for row in dates.rows
        if row.status != MarketDateStatus.DRAFT
    ]


def _change(
    area: Area, number: int, operation: str, values: Mapping[str, Any], said: str
) -> Response:
    """Do what a key would do by `operation`; the row as it is then, or a redirect to the list.

    Raises `NotFound`, and `Invalid` for bad values, before anything is changed or recorded.
    """
    filters = _filters(area)
    _get(area, number)
    wanted = table.BY_NAME[operation]
    arguments = wanted.from_json({"id": number, **values})
    try:
        runner.run_for_member(wanted, member_actor(), lambda: arguments)
    except Conflict as conflict:
        if is_htmx():
            row = _get(area, number)
            return stale(conflict, "data/_changed.html", row=row, **_around(area, filters))
        flash(conflict.detail, "error")
        return _list(area, filters, conflict.status)
    row = _get(area, number)
    return done(
        f"{area.noun.capitalize()} {number} of {row.vendor_name} {said}.",
        url_for(area.endpoint, **filters.query()),
        "data/_changed.html",
        row=row,
        just_changed=True,
        **_around(area, filters),
    )


def _ask(area: Area, number: int, question: Question, form: Form, status: int = 200) -> Response:
    return page(
        "data/confirm.html",
        "data/_confirm.html",
        status=status,
        area=area,
        filters=_filters(area),
        row=_get(area, number),
        question=question,
        form=form,
    )


def _declining(number: int) -> Question:
    text = "Its stall is free for others again. You can still approve it later."
    return Question(f"Decline booking {number}?", text, "Decline booking", "Declining…")


def _cancelling(number: int) -> Question:
    text = "Its stall is free for others again. This can’t be undone."
    return Question(f"Cancel booking {number}?", text, "Cancel booking", "Cancelling…")


def _deciding(number: int) -> Question:
    text = "You can change the decision later. The note is for your team alone."
    return Question(f"Decide application {number}", text, "Save decision", "Saving…", danger=False)


def _get(area: Area, number: int) -> Any:
    """The organization's row. Raises `NotFound`."""
    if number > NUMBER_MAX:
        raise NotFound(f"There is no {area.noun} {number}.")
    return market_queries.get_row(
        raw_connection(db.session()), area.model, current_user.organization.id, number
    )


def _filters(area: Area) -> Filters:
    """The address's filters. Raises `Malformed` for what the list can't do."""
    given = {f.name: request.args.get(f.name, "").strip() for f in fields(area.filters)}
    if any(len(value) > TEXT_MAX or "\0" in value for value in given.values()):
        raise Malformed("Please use at most 100 ordinary characters in a filter.")
    filters = area.filters(**{name: value for name, value in given.items() if value})
    if filters.status not in {*area.statuses, ALL}:
        raise Malformed(f"There is no status “{filters.status[:20]}” to list {area.noun}s by.")
    filters.narrowing()
    return filters


def _number(value: str) -> int | None:
    if value and not (value.isascii() and value.isdecimal() and int(value) <= NUMBER_MAX):
        raise Malformed("Please choose a market or date from the list.")
    return int(value) if value else None


def _day(value: str) -> date | None:
    try:
        return date.fromisoformat(value) if value else None
    except ValueError:
        message = f"“{value[:40]}” is not a date. Please use one like 2026-11-24."
        raise Malformed(message, code="invalid_date") from None

"""What a key may do: one table, and the one runner through which every call goes.

REST, the browser's data pages and whatever else speaks for a key take the operations from here, so
nothing a key does can miss its walls or the audit log. To add one, add a row to `OPERATIONS`.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, unquote_plus

from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from convene_keys import audit, clock, keys, limits, markets, seals, tokens
from convene_keys import schemas as s
from convene_keys.accounts import acting
from convene_keys.audit import Actor, Origin, Target
from convene_keys.errors import (
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooMany,
    Unauthenticated,
)
from convene_keys.events import Action, Outcome
from convene_keys.extensions import (
    Statement,
    db,
    direct,
    reading,
    transaction,
    write,
    write_together,
)
from convene_keys.models import (
    MAKERS_OF_KEYS,
    ApplicationStatus,
    Booking,
    BookingStatus,
    Market,
    MarketDate,
    Organization,
    OrganizationStatus,
    Role,
    Scope,
    Vendor,
    VendorApplication,
)
from convene_keys.prepared import Direct

log = logging.getLogger(__name__)
T = TypeVar("T")

ROOT = "/api/v1/admin"
# Where a key ends itself. It is no operation, and so no tool: the text of a vendor's application
# could talk an assistant into it.
BURN = "/me/revoke"
VERIFY = "/auth/verify"  # where a proxy asks about a key
PATH_MAX = 256  # characters of what is no operation that are looked at: those have fewer
ERRORS_MAX = 50
# Whatever a key asks for below these is refused and recorded.
OFF_LIMITS = ("account", "password", "billing", "stripe", "members", "api_keys")
# With what a key that may only read passes a proxy: RFC 9110 §9.2.1, but for TRACE.
READING = ("GET", "HEAD", "OPTIONS")


@dataclass
class Call:
    """One call under way: in what, by whom, and what the log is told of it.

    Within a transaction when it may change something; one that only reads has just a connection.
    """

    within: Session | Direct
    actor: Actor
    organization: markets.Place
    key: Any = None
    target: Target | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def connection(self) -> Direct:
        return _connection(self.within)

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
    output: type[BaseModel]
    handler: Callable[[Call, Any], BaseModel]
    noun: str = ""
    # What the Model Context Protocol wants to know of a change.
    destructive: bool = False  # it can't be undone, or replaces what was there
    idempotent: bool = True  # doing it again changes nothing more

    @property
    def scope(self) -> Scope:
        return Scope.READ if self.method == "GET" else Scope.READ_WRITE

    def target(self, number: int) -> Target:
        return Target(self.noun.replace(" ", "_"), number, f"{self.noun} {number}")

    def from_strings(self, values: Mapping[str, str]) -> BaseModel:
        """The input from a path and a query string. Raises `Invalid`."""
        return _checked(lambda: self.input.model_validate_strings(dict(values)))

    def from_json(self, values: Mapping[str, Any]) -> BaseModel:
        """The input from JSON, without bending any type. Raises `Invalid` or `Malformed`."""
        try:
            text = json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise Malformed("The input is nested too deeply or holds half a character.") from None
        return _checked(lambda: self.input.model_validate_json(text, strict=True))


def run(
    operation: Operation,
    token: str,
    read: Callable[[], BaseModel],
    origin: Origin,
    peppers: Sequence[str],
    number: int | None = None,
) -> BaseModel:
    """Carry out a key's call, record it, and only then answer.

    `read` gives the input and may raise a `Problem`; it is called once the key is known, so that
    bad input is recorded under its name as well. `number` says what the call is about, for the
    log, should it be refused unread. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> BaseModel:
        if number is not None and 1 <= number <= s.NUMBER_MAX:
            call.target = operation.target(number)
        return _carry_out(operation, call, read)

    changes = operation.scope is Scope.READ_WRITE
    return _as_key(operation.action, token, origin, peppers, act, changes=changes)


def run_for_member(operation: Operation, actor: Actor, read: Callable[[], BaseModel]) -> BaseModel:
    """Carry out and record an operation for a signed-in member. Raises `Forbidden` for a viewer."""
    with acting(actor, Role.MANAGER) as session:
        of = session.get_one(Organization, actor.organization_id)
        call = Call(session, actor, markets.Place(of.id, of.name, of.slug, of.timezone))
        answer, event = _attempt(operation.action, call, lambda c: _carry_out(operation, c, read))
        write(session, [event])
    return _answered(answer)


def refuse(method: str, path: str, token: str, origin: Origin, peppers: Sequence[str]) -> Problem:
    """The problem to answer with when a key asks for what is no operation; recorded.

    `path` as in `Operation.path`, or that of a page, such as `/admin/api_keys`.
    """
    path = path[:PATH_MAX]
    allowed = sorted({o.method for o in OPERATIONS if _fits(o.path, path)})
    if path == BURN:
        allowed = ["POST"]
    # The first segment of a page's path is no endpoint's.
    off_limits = path.strip("/").split("/")[0] in (*OFF_LIMITS, "admin", "login", "setup")

    def act(call: Call) -> BaseModel:
        call.target = _request(method, path)
        if off_limits:
            raise Forbidden("No API key may do this. A signed-in admin can.", code="off_limits")
        _check_standing(call)
        if allowed:
            raise MethodNotAllowed(f"{method} is not allowed here.", allowed=allowed)
        raise NotFound("There is nothing at this address.")

    try:
        _as_key(Action.OFF_LIMITS if off_limits else Action.UNKNOWN, token, origin, peppers, act)
    except Problem as problem:
        return problem
    raise AssertionError("a refusal always raises")  # pragma: no cover


def connect(token: str, origin: Origin, peppers: Sequence[str], client: str) -> Scope:
    """Greet an assistant that has just been given its key; recorded. What the key may do.

    `client` is what the assistant says it is. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> Scope:
        call.detail["client"] = client
        return _standing_scope(call)

    return _as_key(Action.KEY_CONNECTED, token, origin, peppers, act)


def verify(
    read: Callable[[], tuple[str, str]], token: str, origin: Origin, peppers: Sequence[str]
) -> Any:
    """Let a key through a proxy, or not; recorded. The key, as `keys.find` gives it.

    `read` gives the method and the URI that the proxy was asked for and may raise a `Problem`; it
    is called once the key is known. Of the URI only the path is recorded: what stands behind a ?
    may be a secret. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> Any:
        call.target = Target("request", None, "an unclear request")
        method, uri = read()
        call.target = _request(method, unquote(uri.partition("?")[0]))
        if tokens.PATTERN.search(unquote_plus(uri)):
            raise Forbidden(
                "An API key belongs in the Authorization header only. This one has been seen where "
                "it may be kept: please revoke it and make a new one.",
                code="key_outside_header",
            )
        _check_standing(call)
        if method not in READING:
            _check_may_change(call)
        return call.key

    return _as_key(Action.PROXY_REQUEST, token, origin, peppers, act)


def admit(token: str, origin: Origin, peppers: Sequence[str]) -> Scope:
    """What a working key may do, for an answer that holds nothing of the organization's.

    Only a refusal is recorded. Raises the `Problem` to answer with.
    """
    return _as_key(None, token, origin, peppers, _standing_scope)


def burn(token: str, origin: Origin, peppers: Sequence[str]) -> None:
    """End the key that is shown, for good; recorded as its own doing.

    Whoever holds it may, always: whatever its scope, also when its maker left, the organization is
    a draft, or it called too often. Raises the `Problem` to answer with.
    """

    def act(call: Call) -> None:
        key = keys.get(call.session, call.organization.id, call.key.id, lock=True)
        keys.end(call.session, call.actor, key, "Burned by whoever held it.")

    _as_key(None, token, origin, peppers, act, changes=True, limited=False)


def _standing_scope(call: Call) -> Scope:
    _check_standing(call)
    return Scope(call.key.scope)


def _as_key(
    action: Action | None,
    token: str,
    origin: Origin,
    peppers: Sequence[str],
    act: Callable[[Call], T],
    *,
    changes: bool = False,
    limited: bool = True,
) -> T:
    """Whose key is it, does it work, act, record, and only then answer.

    Without an `action` nothing is recorded here, but a refusal.

    What `changes` something is one transaction with its event. What only reads holds no writer up:
    it reads one moment of the database, and its event may share a commit with others'.
    """
    limiter = limits.current()
    limiter.admit(origin.network, token)
    if not tokens.is_well_formed(token):
        limiter.fail(origin.network)
        if token:
            raise Unauthenticated("This is not an API key.", code="key_unknown")
        raise Unauthenticated("Send an API key as Authorization: Bearer KEY.", code="key_missing")
    try:
        with transaction() if changes else reading() as within:
            key = keys.find(_connection(within), token, peppers)
            refusal = keys.refusal(key)
            if refusal is None and limited:
                refusal = _past_limit(limiter.hit(key.id, token))
            if refusal is None:
                call = Call(within, Actor.of_key(key, origin), _place(key), key)
                statements = keys.notes_of_use(key, token, origin, peppers)
                if action is None:
                    answer: T | Problem = act(call)
                else:
                    answer, event = _attempt(action, call, act)
                    statements.append(event)
                if changes and not isinstance(answer, Problem):
                    statements += keys.notes_of_change(key)
                if isinstance(within, Session):
                    write(within, statements)
                elif statements:
                    write_together(within, statements)
        if refusal is not None:
            _note_refusal(key, token, origin, refusal)
            raise refusal
    except Unauthenticated:
        limiter.fail(origin.network)
        raise
    except Problem:
        raise
    except Exception:
        if action is not None:
            _record_crash(action, token, origin, peppers)
        raise
    return _answered(answer)


def _past_limit(standing: limits.Standing) -> TooMany | None:
    if not standing.exceeded:
        return None
    return TooMany(
        f"This key may call {standing.rate.calls:,} times in {standing.rate.seconds:,} seconds.",
        retry_after=standing.left,
        code="rate_limited",
    )


def _note_refusal(key: Any, token: str, origin: Origin, refusal: Problem) -> None:
    limiter = limits.current()
    if not isinstance(refusal, TooMany):
        at = clock.now()

        def note(session: Session, count: int) -> None:
            of, code = key.organization_id, refusal.code
            keys.note_refusal(session, of, key.id, origin, code, count=count, at=at)

        if count := limiter.note_try(key.id, token, note):
            with transaction() as session:
                note(session, count)
        return
    count = limiter.refuse(key.id)
    with reading() as connection:  # so that a key that runs wild holds no writer up
        told = keys.limit_told(connection, key)
    if not told:
        with transaction() as session:
            count = keys.note_limited(session, key, origin, count)
        limiter.tell(key.id, count)


def _connection(within: Session | Direct) -> Direct:
    return within if isinstance(within, Direct) else direct(within)


def _request(method: str, path: str) -> Target:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path)
    return Target("request", None, f"{method} {shown}")


def _place(key: Any) -> markets.Place:
    return markets.Place(
        key.organization_id, key.organization_name, key.organization_slug, key.organization_timezone
    )


def _attempt(action: Action, call: Call, act: Callable[[Call], T]) -> tuple[T | Problem, Statement]:
    """Act; the answer or the problem, and the event that tells how it ended."""
    answer: T | Problem
    try:
        answer, outcome = act(call), Outcome.OK
    except Problem as problem:
        answer = problem
        outcome = Outcome.DENIED if problem.status == 403 else Outcome.FAILED
        call.detail["code"] = problem.code
    key = seals.keys_of(db.engine)[0]
    return answer, audit.event(key, call.actor, action, call.target, outcome, call.detail)


def _answered(answer: T | Problem) -> T:
    if isinstance(answer, Problem):
        raise answer
    return answer


def _check_standing(call: Call) -> None:
    """The walls that stand before every operation of a key."""
    key = call.key
    if key is None:
        return
    gone = key.creator_role not in MAKERS_OF_KEYS or key.creator_disabled_at is not None
    if key.created_by_id is not None and gone:
        raise Forbidden(
            "Who made this key has left or may not make keys any more. Ask for a new key.",
            code="creator_inactive",
        )
    if key.organization_status != OrganizationStatus.LIVE:
        raise Forbidden(
            "The organization is a draft. An admin can set it live in its settings.",
            code="organization_draft",
        )


def _check_may_change(call: Call) -> None:
    if call.key is not None and call.key.scope != Scope.READ_WRITE:
        raise Forbidden("This key may only read.", code="scope_required")


def _carry_out(operation: Operation, call: Call, read: Callable[[], BaseModel]) -> BaseModel:
    _check_standing(call)
    changes = operation.scope is Scope.READ_WRITE
    if changes:
        _check_may_change(call)
    arguments = read()
    number = getattr(arguments, "id", None)
    if number is not None:
        call.target = operation.target(number)
    else:
        call.detail |= arguments.model_dump(mode="json", exclude_defaults=True)
    # What a refused change did before it was refused is undone, and the refusal still recorded.
    with call.session.begin_nested() if changes else nullcontext():
        return operation.handler(call, arguments)


def _record_crash(action: Action, token: str, origin: Origin, peppers: Sequence[str]) -> None:
    """Tell the log of a call that failed by a fault of ours, in a transaction of its own."""
    try:
        with transaction() as session:
            key = keys.find(direct(session), token, peppers)
            actor, detail = Actor.of_key(key, origin), {"code": "internal"}
            write(session, keys.notes_of_use(key, token, origin, peppers))
            audit.record(session, actor, action, outcome=Outcome.FAILED, detail=detail)
    except Exception:
        log.exception("a failed call could not be recorded")


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


def _fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        a == b or (a == "{id}" and b.isdecimal()) for a, b in zip(wanted, given, strict=True)
    )


# What each row of the table below does -----------------------------------------------------------


def _whoami(call: Call, _: s.Nothing) -> BaseModel:
    return s.WhoAmI.model_validate({"organization": call.organization, "key": call.key})


def _dashboard(call: Call, _: s.Nothing) -> BaseModel:
    counts = markets.dashboard(call.connection, call.organization)
    return s.DashboardOut(
        organization=s.OrganizationOut.model_validate(call.organization), **vars(counts)
    )


def _listing(model: type[Any], output: type[BaseModel]) -> Callable[[Call, BaseModel], BaseModel]:
    def handler(call: Call, wanted: BaseModel) -> BaseModel:
        page = markets.page(call.connection, model, call.organization.id, **dict(wanted))
        call.detail["count"] = len(page.rows)
        return output.model_validate(
            {"data": page.rows, "next_cursor": page.next_cursor}, from_attributes=True
        )

    return handler


def _showing(model: type[Any], output: type[BaseModel]) -> Callable[[Call, s.One], BaseModel]:
    def handler(call: Call, wanted: s.One) -> BaseModel:
        row = markets.look(call.connection, model, call.organization.id, wanted.id)
        return output.model_validate(row)

    return handler


_show_booking = _showing(Booking, s.BookingOut)
_show_application = _showing(VendorApplication, s.ApplicationOut)


def _deciding(status: BookingStatus) -> Callable[[Call, s.One], BaseModel]:
    def handler(call: Call, wanted: s.One) -> BaseModel:
        reason = getattr(wanted, "reason", "")
        with _changing(call, Booking, wanted.id) as booking:
            call.detail["before"] = booking.status
            call.detail["changed"] = markets.decide_booking(booking, status, reason)
        if reason:
            call.detail["reason"] = reason
        return _show_booking(call, wanted)

    return handler


def _mark_paid(call: Call, wanted: s.One) -> BaseModel:
    with _changing(call, Booking, wanted.id) as booking:
        call.detail["changed"] = markets.mark_paid(booking)
    return _show_booking(call, wanted)


def _update_application(call: Call, wanted: s.ApplicationUpdate) -> BaseModel:
    status = ApplicationStatus(wanted.status)
    with _changing(call, VendorApplication, wanted.id) as application:
        call.detail |= {"before": application.status, "after": status}
        call.detail["changed"] = markets.update_application(application, status, wanted.note)
    return _show_application(call, wanted)


def _remind_application(call: Call, wanted: s.One) -> BaseModel:
    with _changing(call, VendorApplication, wanted.id) as application:
        markets.remind_application(application)
    return _show_application(call, wanted)


def _list_events(call: Call, wanted: s.ListEvents) -> BaseModel:
    assert call.key is not None  # noqa: S101  members read the log on its own page
    if wanted.key not in (None, call.key.id):
        raise NotFound("A key sees its own events only.")
    chosen = audit.Filter(key=call.key.id, action=wanted.action or "", since=wanted.since)
    before = markets.cursor_number(wanted.before)
    events, cursor = audit.page(  # on a connection of its own: events are read as models
        db.session(), call.organization.id, chosen, before=before, limit=wanted.limit
    )
    call.detail["count"] = len(events)
    return s.EventList.model_validate(
        {"data": events, "next_cursor": str(cursor) if cursor else None}
    )


@contextmanager
def _changing(call: Call, model: type[markets.Kind], number: int) -> Iterator[markets.Kind]:
    """The row to change; the event keeps what it replaced, for `undo`."""
    row = markets.get(call.session, model, call.organization.id, number)
    before = markets.state(row)
    yield row
    after = markets.state(row)
    if replaced := {name: was for name, was in before.items() if was != after[name]}:
        call.detail["replaced"] = replaced


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "whoami", "GET", "/me", Action.KEY_CHECKED,
        "Who am I",
        "Which organization and key this is, and what it may do.",
        s.Nothing, s.WhoAmI, _whoami,
    ),
    Operation(
        "dashboard", "GET", "/dashboard", Action.DASHBOARD_VIEWED,
        "Dashboard",
        "What is pending, how many market dates lie ahead, and when the next one is.",
        s.Nothing, s.DashboardOut, _dashboard,
    ),
    Operation(
        "list_markets", "GET", "/markets", Action.MARKET_LISTED,
        "List markets",
        "The organization's markets.",
        s.ListMarkets, s.MarketList, _listing(Market, s.MarketList),
    ),
    Operation(
        "get_market", "GET", "/markets/{id}", Action.MARKET_VIEWED,
        "Get a market",
        "One market.",
        s.One, s.MarketOut, _showing(Market, s.MarketOut), "market",
    ),
    Operation(
        "list_market_dates", "GET", "/market_dates", Action.MARKET_DATE_LISTED,
        "List market dates",
        "Market dates in the order of the calendar, of one market, state or span of days.",
        s.ListMarketDates, s.MarketDateList,
        _listing(MarketDate, s.MarketDateList),
    ),
    Operation(
        "get_market_date", "GET", "/market_dates/{id}", Action.MARKET_DATE_VIEWED,
        "Get a market date",
        "One market date.",
        s.One, s.MarketDateOut, _showing(MarketDate, s.MarketDateOut), "market date",
    ),
    Operation(
        "list_vendors", "GET", "/vendors", Action.VENDOR_LISTED,
        "List vendors",
        "Vendors, or those with a word in their name.",
        s.ListVendors, s.VendorList, _listing(Vendor, s.VendorList),
    ),
    Operation(
        "get_vendor", "GET", "/vendors/{id}", Action.VENDOR_VIEWED,
        "Get a vendor",
        "One vendor, with how to reach them.",
        s.One, s.VendorOut, _showing(Vendor, s.VendorOut), "vendor",
    ),
    Operation(
        "list_vendor_applications", "GET", "/vendor_applications", Action.APPLICATION_LISTED,
        "List vendor applications",
        "Applications of vendors to markets, newest first, by state, market or vendor's name.",
        s.ListApplications, s.ApplicationList,
        _listing(VendorApplication, s.ApplicationList),
    ),
    Operation(
        "get_vendor_application", "GET", "/vendor_applications/{id}", Action.APPLICATION_VIEWED,
        "Get a vendor application",
        "One application, with the vendor's message and the team's note.",
        s.One, s.ApplicationOut,
        _show_application, "application",
    ),
    Operation(
        "update_vendor_application", "PATCH", "/vendor_applications/{id}",
        Action.APPLICATION_UPDATED,
        "Decide a vendor application",
        "Approve, decline or waitlist an application, with a note for the team if you like.",
        s.ApplicationUpdate, s.ApplicationOut, _update_application, "application",
        destructive=True,
    ),
    Operation(
        "remind_vendor_application", "POST", "/vendor_applications/{id}/remind",
        Action.APPLICATION_REMINDED,
        "Note a reminder",
        "Note that the vendor was reminded: once in 24 hours, and not once it is declined.",
        s.One, s.ApplicationOut, _remind_application, "application", idempotent=False,
    ),
    Operation(
        "list_bookings", "GET", "/bookings", Action.BOOKING_LISTED,
        "List bookings",
        "Bookings of stalls, newest first, by state, market date, vendor or day.",
        s.ListBookings, s.BookingList, _listing(Booking, s.BookingList),
    ),
    Operation(
        "get_booking", "GET", "/bookings/{id}", Action.BOOKING_VIEWED,
        "Get a booking",
        "One booking of a stall.",
        s.One, s.BookingOut, _show_booking, "booking",
    ),
    Operation(
        "approve_booking", "POST", "/bookings/{id}/approve", Action.BOOKING_APPROVED,
        "Approve a booking",
        "Approve a pending or declined booking. Approving it again changes nothing.",
        s.One, s.BookingOut, _deciding(BookingStatus.APPROVED), "booking",
    ),
    Operation(
        "decline_booking", "POST", "/bookings/{id}/decline", Action.BOOKING_DECLINED,
        "Decline a booking",
        "Decline a pending booking, with a reason if you like.",
        s.WithReason, s.BookingOut, _deciding(BookingStatus.DECLINED), "booking",
    ),
    Operation(
        "cancel_booking", "POST", "/bookings/{id}/cancel", Action.BOOKING_CANCELLED,
        "Cancel a booking",
        "Cancel a pending or approved booking, with a reason if you like. It can't be undone.",
        s.WithReason, s.BookingOut, _deciding(BookingStatus.CANCELLED), "booking",
        destructive=True,
    ),
    Operation(
        "mark_booking_paid", "POST", "/bookings/{id}/mark_paid", Action.BOOKING_PAID,
        "Mark a booking as paid",
        "Mark an approved booking as paid. Doing it again changes nothing.",
        s.One, s.BookingOut, _mark_paid, "booking",
    ),
    Operation(
        "list_my_events", "GET", "/audit_events", Action.AUDIT_LISTED,
        "List my events",
        "What this key did, newest first, as the audit log has it.",
        s.ListEvents, s.EventList, _list_events,
    ),
)  # fmt: skip

BY_NAME = {operation.name: operation for operation in OPERATIONS}

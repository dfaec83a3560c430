"""The audit log's page and its exports."""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import Any

from flask import Blueprint, Response, request, stream_with_context
from flask_login import current_user

from convene_keys import clock
from convene_keys.accounts import members
from convene_keys.accounts.authorization import acting
from convene_keys.audit import export, seals, verification
from convene_keys.audit import log as audit_log
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.audit.queries import Filter
from convene_keys.db.session import alone, db
from convene_keys.errors import Malformed, TooMany, Unavailable
from convene_keys.http.access import Access, access, member_actor
from convene_keys.keys import queries as key_queries
from convene_keys.markets.queries import cursor_number
from convene_keys.models import ID_MAX, AuditEvent, Outcome, Role
from convene_keys.web import charts
from convene_keys.web.filters import Filters, parse_moment, parse_number
from convene_keys.web.formats import day
from convene_keys.web.respond import is_htmx, page

blueprint = Blueprint("audit", __name__, url_prefix="/admin")

PAGE_SIZE = 30
LOOKS_ON = "X-Looks-On"  # where the page asks for what is older by itself
BOM = "\ufeff"  # without it, spreadsheets take UTF-8 for something older
# A client that takes an export more slowly than this, in seconds and bytes a second, is cut off.
PATIENCE, SLOWEST = 30, 16 * 1024

log = logging.getLogger(__name__)
export_turn = threading.Lock()  # one export a worker: it takes a thread as long as its client likes


@dataclass(frozen=True)
class AuditFilters(Filters):
    noun = "event"

    key: str = ""
    action: str = ""
    member: str = ""
    outcome: str = ""
    since: str = ""
    until: str = ""
    q: str = ""

    def parsed(self) -> Filter:
        """Raises `Malformed` for what is no filter."""
        if self.action and self.action not in set(Action):
            raise Malformed("There is no such action in the audit log.")
        if self.outcome and self.outcome not in set(Outcome):
            raise Malformed("An outcome is ok, denied or failed.")
        return Filter(
            key=_number(self.key),
            action=self.action,
            member=_number(self.member),
            outcome=self.outcome,
            since=parse_moment(self.since),
            until=parse_moment(self.until, end=True),
            q=self.q,
        )


@blueprint.get("/audit_log")
@access(Access.VIEWER)
def index() -> Response:
    filters, wanted = _asked()
    organization_id, session = current_user.organization.id, db.session()
    before = cursor_number(request.args.get("before") or None)
    shown = audit_queries.page(session, organization_id, wanted, before=before, limit=PAGE_SIZE)
    context: dict[str, Any] = {
        "events": shown.events,
        "next_before": shown.before,
        "looked_to": shown.looked_to,
        "by_itself": LOOKS_ON in request.headers,
        "filters": filters,
    }
    if before is not None and is_htmx():
        last = audit_queries.get(session, organization_id, before)
        return page("audit/_events.html", continued_day=day(last.at), **context)
    count = audit_queries.Count(len(shown.events))
    if before is not None or shown.before is not None:  # otherwise this page is all there is
        count = audit_queries.count(session, organization_id, wanted)
    choices, more_keys = key_queries.choices(session, organization_id, wanted.key)
    return page(
        "audit/list.html",
        "audit/_log.html",
        count=count,
        chart=_chart(wanted),
        keys=choices,
        more_keys=more_keys,
        actions=[(action.value, action.label) for action in Action],
        members=members.members(session, organization_id),
        seal=None if is_htmx() else verification.glance(session, organization_id),
        **context,
    )


def _chart(wanted: Filter) -> list[charts.Bar]:
    """A bar for each day of the range; none while searching, which no index makes quick."""
    if wanted.q:
        return []
    zone = current_user.organization.timezone
    spans = charts.spans(
        clock.day_of(wanted.since, zone) if wanted.since else None,
        clock.day_of(wanted.until - datetime.resolution, zone) if wanted.until else None,
        clock.today(zone),
    )
    counts = audit_queries.count_spans(
        db.session(),
        current_user.organization.id,
        replace(wanted, since=None, until=None),
        charts.moments(spans, zone),
        charts.CAP,
    )
    return charts.bars(spans, counts, charts.CAP) if any(counts) else []


@blueprint.get("/audit_log.csv")
@access(Access.VIEWER)
def export_csv() -> Response:
    return _export("csv", "text/csv", lambda events: chain([BOM], export.csv_lines(events)))


@blueprint.get("/audit_log.jsonl")
@access(Access.VIEWER)
def export_jsonl() -> Response:
    return _export("jsonl", "application/jsonl", export.jsonl_lines)


def _export(
    ending: str, mimetype: str, lines: Callable[[Iterator[AuditEvent]], Iterator[str]]
) -> Response:
    """Stream the same filter's events; that the log was taken away is itself recorded."""
    (filters, wanted), organization_id = _asked(), current_user.organization.id
    with ExitStack() as turn:
        _take(turn)
        with acting(member_actor(), Role.VIEWER) as session:
            detail = {"format": ending, **filters.query()}
            audit_log.record(session, member_actor(), Action.AUDIT_EXPORTED, detail=detail)
        seals.seal()

        def body() -> Iterator[str]:
            # The view's own session is closed before the first line leaves; this is another one.
            yield from _in_time(lines(export.export(db.session(), organization_id, wanted)))

        name = f"audit-log-{clock.now():%Y-%m-%d}.{ending}"
        response = Response(stream_with_context(body()), mimetype=mimetype)
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.call_on_close(turn.pop_all().close)
    return response


def _take(turn: ExitStack) -> None:
    """Let only one export at a time through for a member and for a worker, until `turn` ends.

    Raises `TooMany` or `Unavailable`.
    """
    if not turn.enter_context(alone(f"export-{current_user.member.id}")):
        raise TooMany(
            "You are downloading the audit log already. Please wait until that has ended.",
            retry_after=PATIENCE,
        )
    if not export_turn.acquire(blocking=False):
        raise Unavailable(
            "Somebody else is downloading an audit log. Please try again in a moment."
        )
    turn.callback(export_turn.release)


def _in_time(lines: Iterator[str]) -> Iterator[str]:
    """The lines, as long as they are taken fast enough; else the connection counts as lost."""
    waited, taken = 0.0, 0
    for line in lines:
        began = time.monotonic()
        yield line
        waited, taken = waited + time.monotonic() - began, taken + len(line)
        if waited > PATIENCE + taken / SLOWEST:
            log.warning("an export was cut off: its client takes it too slowly")
            raise ConnectionResetError(errno.ECONNRESET, "too slow")


def _asked() -> tuple[AuditFilters, Filter]:
    """What the address asks for, as it was typed and as the log takes it.

    Raises `Malformed`, and `NotFound` when the key or member is not the organization's.
    """
    filters = AuditFilters.parse(request.args)
    wanted, session = filters.parsed(), db.session()
    if wanted.key is not None:
        key_queries.get(session, current_user.organization.id, wanted.key)
    if wanted.member is not None:
        members.get(session, current_user.organization.id, wanted.member)
    return filters, wanted


def _number(text: str) -> int | None:
    return parse_number(text, ID_MAX, Malformed("Please choose a key or member from the list."))

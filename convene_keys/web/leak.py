"""The walk-through after a leak: revoke, replace, see what the key did, report it."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flask import Blueprint, Response, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from wtforms import StringField

from convene_keys import clock
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.actions import Action
from convene_keys.db.session import db
from convene_keys.errors import Conflict
from convene_keys.http.access import Access, access, member_actor, settings
from convene_keys.keys import lifecycle
from convene_keys.leaks import reports
from convene_keys.models import ApiKey, Outcome
from convene_keys.operations import undo
from convene_keys.operations.table import OPERATIONS
from convene_keys.web import charts
from convene_keys.web.filters import parse_moment
from convene_keys.web.forms import Form
from convene_keys.web.keys import created, get, to_successor
from convene_keys.web.reauthentication import ReauthForm
from convene_keys.web.respond import done, is_htmx, page, stale

blueprint = Blueprint("leak", __name__, url_prefix="/admin/api_keys/<int:key_id>/leak")

LOOKED_THROUGH = 10_000  # events; of more, the newest
CHANGES_SHOWN = 100
READS = {o.action for o in OPERATIONS} - undo.CHANGES | {Action.KEY_CONNECTED}


class LeakForm(Form):
    where = StringField("Where was it seen?")


@blueprint.get("")
@access(Access.MANAGER)
def show(key_id: int) -> Response:
    return _show(get(key_id), LeakForm())


@blueprint.post("")
@access(Access.MANAGER)
def report(key_id: int) -> Response:
    key, form = get(key_id), LeakForm()
    with form:
        key = reports.report_own(member_actor(), key_id, form.where.data or "")
        said = f"{key.name} was revoked. It stopped working at once."
        return done(said, url_for("leak.show", key_id=key_id))
    return _show(key, form, status=422)


@blueprint.post("/replace")
@access(Access.MAKER)
def replace(key_id: int) -> Response:
    """A successor, whose secret only this answer shows."""
    key, form = get(key_id), ReauthForm()
    if key.successor:
        return to_successor(key.successor)
    with form:
        form.check()
        new, secret = lifecycle.replace(
            member_actor(),
            key_id,
            peppers=settings().key_peppers,
            created_by_id=current_user.member.id,
        )
        return created(get(new.id), secret)
    return _show(key, LeakForm(), form, status=422)


@blueprint.get("/replace")
@access(Access.MANAGER)
def replaced(key_id: int) -> ResponseReturnValue:
    """Where the address of a replacement leads that is opened again."""
    new = get(key_id).successor
    if new:
        return to_successor(new)
    return redirect(url_for("leak.show", key_id=key_id), 303)


@blueprint.post("/undo")
@access(Access.MANAGER)
def undo_all(key_id: int) -> Response:
    undone, left = undo.undo_all(member_actor(), get(key_id), parse_moment(_since()))
    said = f"{_counted(len(undone), 'change')} undone." if undone else "Nothing was undone."
    if left:
        said += f" {len(left):,} could not be: it says why beside each."
    return _after_undo(key_id, said, undone or left)


@blueprint.post("/undo/<int:event_id>")
@access(Access.MANAGER)
def undo_change(key_id: int, event_id: int) -> ResponseReturnValue:
    try:
        undo.undo(member_actor(), key_id, event_id)
    except Conflict as conflict:
        if is_htmx():
            facts = _facts(get(key_id))
            return stale(conflict, "keys/_changes.html", touched={event_id}, **facts)
        flash(conflict.detail, "error")
        return redirect(_review(key_id), 303)
    return _after_undo(key_id, "Undone: it is as it was before.", {event_id})


@blueprint.get("/report.txt")
@access(Access.MANAGER)
def text(key_id: int) -> Response:
    """All of it to keep or to send; without the secret, which nobody has."""
    key = get(key_id)
    told = render_template("keys/leak_report.txt", **_facts(key))
    response = Response(told, mimetype="text/plain")
    response.headers["Content-Disposition"] = f'attachment; filename="leaked-key-{key.id}.txt"'
    return response


def _show(
    key: ApiKey, form: LeakForm, replacing: ReauthForm | None = None, status: int = 200
) -> Response:
    return page(
        "keys/leak.html",
        status=status,
        form=form,
        replacing=replacing or ReauthForm(),
        **_facts(key),
    )


def _after_undo(key_id: int, said: str, touched: set[int]) -> Response:
    fragment = "keys/_changes.html" if is_htmx() else None
    facts = _facts(get(key_id)) if fragment else {}
    return done(said, _review(key_id), fragment, touched=touched, **facts)


def _review(key_id: int) -> str:
    return url_for("leak.show", key_id=key_id, since=_since(), _anchor="review")


def _since() -> str:
    """The day that the address names, else the first of the last thirty."""
    typed = request.args.get("since", "").strip()
    today = clock.today(current_user.organization.timezone)
    return typed or (today - timedelta(days=charts.DAYS)).isoformat()


def _facts(key: ApiKey) -> dict[str, Any]:
    """What the page and the report tell: the incident, and what the key did since a day."""
    session, since = db.session(), _since()
    wanted = audit_queries.Filter(key=key.id, since=parse_moment(since))
    groups, more = audit_queries.groups(session, key.organization_id, wanted, LOOKED_THROUGH)
    changes, more_changes = undo.changes(session, key, wanted.since, undo.AT_ONCE)
    return {
        "key": key,
        "incident": reports.incident(session, key),
        "since": since,
        "groups": groups,
        "looked_through": LOOKED_THROUGH if more else None,
        "summary": _summary(groups, len(changes), more_changes),
        "changes": changes[:CHANGES_SHOWN],
        "more_changes": more_changes or len(changes) > CHANGES_SHOWN,
        "why_not": undo.why_not,
    }


def _summary(groups: Sequence[audit_queries.Group], changes: int, more_changes: bool) -> str:
    """`1 change and 64 reads, always from the same address`."""
    calls = {"read": 0, "call through a proxy": 0, "try that came to nothing": 0}
    for group in groups:
        if group.outcome != Outcome.OK:
            calls["try that came to nothing"] += group.count
        elif group.action == Action.PROXY_REQUEST:
            calls["call through a proxy"] += group.count
        elif group.action in READS:
            calls["read"] += group.count
    parts = [f"{'more than ' * more_changes}{_counted(changes, 'change')}"]
    parts += [_counted(number, noun) for noun, number in calls.items() if number]
    addresses = len({group.ip for group in groups})
    where = "always from the same address" if addresses == 1 else f"from {addresses:,} addresses"
    text = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"{text[0].upper()}{text[1:]}, {where}."


def _counted(number: int, noun: str) -> str:
    first, *rest = noun.split(" ", 1)
    plural = f"{first.removesuffix('y')}ies" if first.endswith("y") else f"{first}s"
    return " ".join([f"{number:,}", first if number == 1 else plural, *rest])

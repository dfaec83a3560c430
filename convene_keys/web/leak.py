"""The walk-through after a leak: revoke, replace, see what the key did, report it."""

from datetime import timedelta
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from flask_login import current_user
from wtforms import StringField

from convene_keys import audit, clock, keys, leaks
from convene_keys.access import Access, access, member_actor, settings
from convene_keys.errors import Invalid
from convene_keys.events import Outcome
from convene_keys.extensions import db
from convene_keys.models import ApiKey, Scope
from convene_keys.operations import OPERATIONS
from convene_keys.web import charts
from convene_keys.web.audit import moment
from convene_keys.web.forms import Form
from convene_keys.web.fresh import FreshForm, confirm_password
from convene_keys.web.keys import created, get, to_successor
from convene_keys.web.respond import done, page

blueprint = Blueprint("leak", __name__, url_prefix="/admin/api_keys/<int:key_id>/leak")

LOOKED_THROUGH = 10_000  # events; of more, the newest
CHANGES_SHOWN = 100
CHANGES = frozenset(o.action.value for o in OPERATIONS if o.scope is Scope.READ_WRITE)


class LeakForm(Form):
    where = StringField("Where was it seen?")


class ReplaceForm(FreshForm):
    pass


@blueprint.get("")
@access(Access.MANAGER)
def show(key_id: int) -> Response:
    return _show(get(key_id), LeakForm())


@blueprint.post("")
@access(Access.MANAGER)
def report(key_id: int) -> Response:
    key, form = get(key_id), LeakForm()
    try:
        key = leaks.report_own(member_actor(), key_id, form.where.data or "")
    except Invalid as invalid:
        form.show(invalid)
        return _show(key, form, status=422)
    return done(
        f"{key.name} was revoked. It stopped working at once.", url_for("leak.show", key_id=key_id)
    )


@blueprint.post("/replace")
@access(Access.MAKER)
def replace(key_id: int) -> Response:
    """A successor, whose secret only this answer shows."""
    key, form = get(key_id), ReplaceForm()
    if key.successor:
        return to_successor(key.successor)
    if not (form.validate() and confirm_password(form)):
        return _show(key, LeakForm(), form, status=422)
    try:
        new, secret = keys.replace(
            member_actor(),
            key_id,
            peppers=settings().key_peppers,
            created_by_id=current_user.member.id,
        )
    except Invalid as invalid:
        form.show(invalid)
        return _show(key, LeakForm(), form, status=422)
    return created(get(new.id), secret)


@blueprint.get("/replace")
@access(Access.MANAGER)
def replaced(key_id: int) -> Response:
    """Where the address of a replacement leads that is opened again."""
    new = get(key_id).successor
    if new:
        return to_successor(new)
    return make_response(redirect(url_for("leak.show", key_id=key_id), 303))


@blueprint.get("/report.txt")
@access(Access.MANAGER)
def text(key_id: int) -> Response:
    """All of it to keep or to send; without the secret, which nobody has."""
    key = get(key_id)
    response = make_response(render_template("keys/leak_report.txt", **_facts(key)))
    response.mimetype = "text/plain"
    response.headers["Content-Disposition"] = f'attachment; filename="leaked-key-{key.id}.txt"'
    return response


def _show(
    key: ApiKey, form: LeakForm, replacing: ReplaceForm | None = None, status: int = 200
) -> Response:
    return page(
        "keys/leak.html",
        status=status,
        form=form,
        replacing=replacing or ReplaceForm(),
        **_facts(key),
    )


def _facts(key: ApiKey) -> dict[str, Any]:
    """What the page and the report tell: the incident, and what the key did since a day."""
    session, organization = db.session(), current_user.organization
    typed = request.args.get("since", "").strip()
    today = charts.day_of(clock.now(), organization.timezone)
    since = typed or (today - timedelta(days=charts.DAYS)).isoformat()
    wanted = audit.Filter(key=key.id, since=moment(since))
    groups, more = audit.groups(session, organization.id, wanted, LOOKED_THROUGH)
    done_by_it = audit.Filter(key=key.id, since=wanted.since, outcome=Outcome.OK)
    changes = audit.latest(session, organization.id, done_by_it, CHANGES, CHANGES_SHOWN + 1)
    return {
        "key": key,
        "incident": leaks.incident(session, key),
        "since": since,
        "groups": groups,
        "looked_through": LOOKED_THROUGH if more else None,
        "changes": changes[:CHANGES_SHOWN],
        "more_changes": len(changes) > CHANGES_SHOWN,
    }

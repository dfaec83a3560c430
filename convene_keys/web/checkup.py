"""The check-up's pages: its findings, and the remedies for all keys of a finding at once."""

from datetime import datetime, timedelta
from functools import partial

from flask import Blueprint, Response, current_app, g, request, url_for
from flask_login import current_user

from convene_keys import clock
from convene_keys.checkup import findings
from convene_keys.checkup.advice import ADVICE, Kind, Urgency
from convene_keys.db.session import db
from convene_keys.errors import NotFound
from convene_keys.http.access import Access, access, member_actor
from convene_keys.models import ID_MAX
from convene_keys.web.filters import parse_number
from convene_keys.web.forms import Form
from convene_keys.web.respond import done, page

blueprint = Blueprint("checkup", __name__, url_prefix="/admin/checkup")

SHOWN, CONFIRMED = 20, 1_000  # keys beneath a finding, and in one confirmation
MANY, COUNTED_EVERY = 100, timedelta(minutes=1)


@blueprint.get("")
@access(Access.VIEWER)
def index() -> Response:
    found = _look()
    return page(
        "checkup/show.html",
        found=found,
        habits=len(ADVICE),
        urgencies=Urgency,
        missing=list(dict.fromkeys(f.kind.advice.habit for f in found.findings)),
        shown=SHOWN,
    )


@blueprint.get("/<kind>")
@access(Access.MANAGER)
def confirm(kind: str) -> Response:
    chosen = _kind(kind)
    return _confirm(chosen, Form())


@blueprint.post("/<kind>")
@access(Access.MANAGER)
def remedy(kind: str) -> Response:
    chosen, wanted = _kind(kind), _wanted()
    if not wanted:
        form = Form()
        form.form_errors.append("Please choose at least one key.")
        return _confirm(chosen, form, status=422)
    mended, left = findings.apply_fix(member_actor(), chosen, wanted)
    _counts().pop(current_user.organization.id, None)
    said = (
        [f"{_keys(mended)} {chosen.advice.remedy.done}."] if mended and chosen.advice.remedy else []
    )
    if left:
        said.append(f"{_keys(left)} left alone: things have changed meanwhile.")
    return done(" ".join(said), url_for("checkup.index"))


def count(anew: bool = False) -> int:
    """How many findings there are, for the navigation of every page.

    Cached for a minute where an organization has many keys; `anew`, after a change, skips the cache.
    """
    counts, now = _counts(), clock.now()
    organization_id = current_user.organization.id
    if anew:
        counts.pop(organization_id, None)
        g.pop("checkup", None)
    at, known = counts.get(organization_id, (now - COUNTED_EVERY, 0))
    if "checkup" not in g and now - at < COUNTED_EVERY:
        return known
    found = _look()
    if found.keys >= MANY:
        counts[organization_id] = (now, len(found.findings))
    return len(found.findings)


def _counts() -> dict[int, tuple[datetime, int]]:
    counts: dict[int, tuple[datetime, int]] = current_app.extensions.setdefault("checkup", {})
    return counts


def _look() -> findings.CheckUp:
    """The findings, computed once per request."""
    if "checkup" not in g:
        g.checkup = findings.run(db.session(), current_user.organization.id)
    found: findings.CheckUp = g.checkup
    return found


def _kind(value: str) -> Kind:
    """The kind named in the address, if it has a remedy for all keys at once. Raises `NotFound`."""
    if value not in list(Kind) or Kind(value).advice.remedy is None:
        raise NotFound("There is nothing to confirm here.")
    return Kind(value)


def _wanted() -> set[int]:
    """The ids of the chosen keys. Raises `NotFound` for a value that can't be an id."""
    no_key = NotFound("There is no such key.")
    return {parse_number(text, ID_MAX, no_key) or 0 for text in request.form.getlist("key")}


def _confirm(kind: Kind, form: Form, status: int = 200) -> Response:
    keys = _look().of(kind)
    chosen = set(request.form.getlist("key"))
    return page(
        "checkup/confirm.html",
        "checkup/_confirm.html",
        status=status,
        kind=kind,
        keys=keys[:CONFIRMED],
        left_out=max(0, len(keys) - CONFIRMED),
        chosen=chosen,
        form=form,
        end_date=partial(findings.end_date, current_user.organization),
    )


def _keys(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} was"
    return f"{len(names):,} keys were"

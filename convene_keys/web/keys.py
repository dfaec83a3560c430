"""The key pages: list, create, look at, rename, rotate, revoke."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from flask import Blueprint, Response, request, url_for
from flask_login import current_user
from wtforms import RadioField, SelectField, StringField

from convene_keys import audit, clock, keys
from convene_keys.access import Access, access, member_actor, settings
from convene_keys.errors import FieldError, Invalid, Malformed
from convene_keys.events import Action, Outcome
from convene_keys.extensions import db
from convene_keys.models import ApiKey, AuditEvent, Scope, Tool
from convene_keys.operations import OPERATIONS
from convene_keys.web import charts
from convene_keys.web.forms import Form
from convene_keys.web.fresh import FreshForm, confirm_password
from convene_keys.web.respond import done, is_htmx, page

blueprint = Blueprint("keys", __name__, url_prefix="/admin/api_keys")

Status = Literal["active", "expiring", "revoked", "all"]
Sort = Literal["name", "created", "last_used"]
Direction = Literal["asc", "desc"]
EVENTS_SHOWN = 10
_OPERATIONS = {operation.action: operation.name for operation in OPERATIONS}


@dataclass(frozen=True)
class Filters:
    """What the list's address asks for."""

    q: str = ""
    status: str = "active"
    sort: str = "created"
    dir: str = "desc"


@dataclass(frozen=True)
class Handover:
    """A key that goes on beside its successor: the new one's first call, the old one's last."""

    old: ApiKey
    new: ApiKey
    first: AuditEvent | None
    last: AuditEvent | None

    @property
    def safe(self) -> bool:
        """Whether whatever used the old key uses the new one now, as far as can be seen."""
        return self.first is not None and (self.last is None or self.last.at < self.first.at)


class NewKeyForm(FreshForm):
    name = StringField("Name")
    tool = RadioField(
        "Which tool is it for?",
        choices={
            Tool.CLAUDE.value: "Claude",
            Tool.CHATGPT.value: "ChatGPT",
            Tool.DEVELOPER.value: "A developer’s script",
            Tool.OTHER.value: "Something else",
        },
        default=Tool.OTHER,
    )
    scope = RadioField(
        "What may it do?",
        choices={Scope.READ.value: "Only read", Scope.READ_WRITE.value: "Read and change"},
        default=Scope.READ_WRITE,
    )
    expires_in_days = SelectField(
        "Expires",
        choices={
            "": "Never",
            "30": "In 30 days",
            "90": "In 3 months",
            "180": "In 6 months",
            "365": "In a year",
        },
        default="",
        validate_choice=False,  # any number of days is fine, the list only suggests some
    )

    def days(self) -> int | None:
        """Raises `Invalid` for what is no number."""
        value = (self.expires_in_days.data or "").strip()
        if not value:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) < 6):
            raise Invalid([FieldError("expires_in_days", "Please choose a number of days.")])
        return int(value)


class RenameForm(Form):
    name = StringField("Name")


class RevokeForm(Form):
    reason = StringField("Reason")


class RotateForm(FreshForm):
    grace = RadioField(
        "How long should the old key go on working?",
        choices={"0": "Not at all", "1": "1 hour", "24": "24 hours", "168": "7 days"},
        default="24",
    )


@blueprint.get("")
@access(Access.VIEWER)
def index() -> Response:
    filters, number = _filters()
    session, organization_id = db.session(), current_user.organization.id
    found = keys.list_keys(
        session,
        organization_id,
        q=filters.q,
        status=filters.status,
        sort=filters.sort,
        descending=filters.dir == "desc",
        page=number,
    )
    newest = None if is_htmx() else keys.newest(session, organization_id)
    return page(
        "keys/list.html",
        "keys/_list.html",
        keys=found.keys,
        **_used(found.keys),
        total=found.total,
        page=found.page,
        pages=found.pages,
        filters=filters,
        has_keys=bool(found.total) or keys.any_ever(session, organization_id),
        attention=keys.expiring(session, organization_id),
        **(_first_call(newest) if newest else {}),
    )


@blueprint.get("/new")
@access(Access.MAKER)
def new() -> Response:
    return page("keys/new.html", form=NewKeyForm(data={"tool": Tool.CLAUDE}))


@blueprint.post("")
@access(Access.MAKER)
def create() -> Response:
    form = NewKeyForm()
    if not (form.validate() and confirm_password(form)):
        return page("keys/new.html", status=422, form=form)
    try:
        key, secret = keys.create(
            member_actor(),
            name=form.name.data or "",
            tool=Tool(form.tool.data),
            scope=Scope(form.scope.data),
            expires_in_days=form.days(),
            peppers=settings().key_peppers,
            created_by_id=current_user.member.id,
        )
    except Invalid as invalid:
        form.show(invalid)
        return page("keys/new.html", status=422, form=form)
    return created(key, secret)


@blueprint.get("/<int:key_id>/first_call")
@access(Access.VIEWER)
def first_call(key_id: int) -> Response:
    """Whether the key was used yet. A page that waits for that gets 204, and asks again, until then."""
    found = _first_call(get(key_id))
    if is_htmx() and found["waits"]:
        return Response(status=204)
    return page("keys/first_call.html", "keys/_first_call.html", **found)


@blueprint.get("/<int:key_id>")
@access(Access.VIEWER)
def show(key_id: int) -> Response:
    key = get(key_id)
    return _show(key, RenameForm(obj=key))


@blueprint.post("/<int:key_id>/rename")
@access(Access.MANAGER)
def rename(key_id: int) -> Response:
    key, form = get(key_id), RenameForm()
    try:
        key = keys.rename(member_actor(), key_id, form.name.data or "")
    except Invalid as invalid:
        form.show(invalid)
        return _show(key, form, status=422)
    return done(
        f"This key is called {key.name} now.",
        url_for("keys.show", key_id=key_id),
        "keys/_rename.html",
        key=key,
        form=form,
        renamed=True,
    )


@blueprint.get("/<int:key_id>/rotate")
@access(Access.MAKER)
def confirm_rotate(key_id: int) -> Response:
    key = get(key_id)
    keys.require_rotatable(key)
    return page("keys/rotate.html", key=key, form=RotateForm())


@blueprint.post("/<int:key_id>/rotate")
@access(Access.MAKER)
def rotate(key_id: int) -> Response:
    form = RotateForm()
    if not (form.validate() and confirm_password(form)):
        return page("keys/rotate.html", status=422, key=get(key_id), form=form)
    key, secret = keys.rotate(
        member_actor(),
        key_id,
        grace=timedelta(hours=int(form.grace.data)),
        peppers=settings().key_peppers,
        created_by_id=current_user.member.id,
    )
    return created(get(key.id), secret)


@blueprint.get("/<int:key_id>/revoke")
@access(Access.MANAGER)
def confirm_revoke(key_id: int) -> Response:
    return page("keys/revoke.html", "keys/_revoke.html", key=get(key_id), form=RevokeForm())


@blueprint.post("/<int:key_id>/revoke")
@access(Access.MANAGER)
def revoke(key_id: int) -> Response:
    key, form = get(key_id), RevokeForm()
    try:
        key = keys.revoke(member_actor(), key_id, form.reason.data or "")
    except Invalid as invalid:
        form.show(invalid)
        return page("keys/revoke.html", "keys/_revoke.html", status=422, key=key, form=form)
    return done(
        f"{key.name} was revoked. It stopped working at once.",
        url_for("keys.index"),
        "keys/_row.html",
        key=key,
        just_revoked=True,
        **_used([key]),
    )


def created(key: ApiKey, secret: str) -> Response:
    """The page of a key just made: the only one that ever shows the secret."""
    return page("keys/created.html", secret=secret, **_addresses(), **_first_call(key))


def get(key_id: int) -> ApiKey:
    """The signed-in member's organization's key. Raises `NotFound`."""
    return keys.get(db.session(), current_user.organization.id, key_id)


def _first_call(key: ApiKey) -> dict[str, Any]:
    """The key, its first call if there was one, and whether a page should still wait for it."""
    call = None
    if key.last_used_at is not None:
        call = audit.first(db.session(), key.organization_id, audit.Filter(key=key.id))
    fresh = key.status != "revoked" and clock.now() < key.created_at + keys.NEW_FOR
    done = call is not None and call.outcome == Outcome.OK
    return {
        "key": key,
        "call": call,
        "operation": _OPERATIONS.get(Action(call.action)) if call and done else None,
        "waits": call is None and fresh,
    }


def _addresses() -> dict[str, Any]:
    """What a tool has to be told, and from where it can reach it: this machine, or any."""
    site = settings().base_url
    host = urlsplit(site).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        local, known = address.is_loopback, address.is_global
    except ValueError:  # a name
        local = host == "localhost" or host.endswith(".localhost")
        known = "." in host and not host.endswith((".localhost", ".local", ".internal"))
    secure = settings().secure
    return {"site": site, "secure": secure, "local": local, "public": secure and known}


def _handover(key: ApiKey) -> Handover | None:
    """How far the move from a rotated key to its successor is, seen from either; None without."""
    old, new = (key, key.successor) if key.successor else (key.predecessor, key)
    if old is None or not old.works:
        return None
    session, organization_id = db.session(), key.organization_id
    first = audit.first(session, organization_id, audit.Filter(key=new.id))
    last, _ = audit.page(session, organization_id, audit.Filter(key=old.id), before=None, limit=1)
    return Handover(old, new, first, last[0] if last else None)


def _used(shown: Sequence[ApiKey]) -> dict[str, Any]:
    """What a key's row draws its small chart from."""
    organization, ids = current_user.organization, [key.id for key in shown]
    days = charts.moments(_last_days(), organization.timezone)
    used = audit.count_key_spans(db.session(), organization.id, ids, days, charts.SPARK_CAP)
    return {"used": used, "spark": charts.spark}


def _last_days() -> list[charts.Span]:
    return charts.last_days(charts.day_of(clock.now(), current_user.organization.timezone))


def _show(key: ApiKey, form: RenameForm, status: int = 200) -> Response:
    session, organization = db.session(), current_user.organization
    wanted, days = audit.Filter(key=key.id), _last_days()
    moments = charts.moments(days, organization.timezone)
    events, _ = audit.page(session, organization.id, wanted, before=None, limit=EVENTS_SHOWN)
    counts = audit.count_spans(session, organization.id, wanted, moments, charts.CAP)
    return page(
        "keys/show.html",
        "keys/_rename.html" if status == 422 else None,
        status=status,
        key=key,
        form=form,
        handover=_handover(key),
        events=events,
        chart=charts.bars(days, counts, charts.CAP) if any(counts) else [],
        **_addresses(),
    )


def _filters() -> tuple[Filters, int]:
    """The address's filters and page. Raises `Malformed` for what the list can't do."""
    chosen = Filters(q=request.args.get("q", "").strip())
    if len(chosen.q) > 100 or "\0" in chosen.q:
        raise Malformed("Please search for at most 100 ordinary characters.")
    for name, choices in (("status", Status), ("sort", Sort), ("dir", Direction)):
        value = request.args.get(name)
        if value and value not in get_args(choices):
            raise Malformed(f"There is no {name} “{value[:20]}” to list keys by.")
        if value:
            chosen = replace(chosen, **{name: value})
    number = request.args.get("page", "1")
    if not (number.isascii() and number.isdecimal() and 1 <= int(number[:7]) <= 1_000_000):
        raise Malformed("There is no such page.")
    return chosen, int(number[:7])

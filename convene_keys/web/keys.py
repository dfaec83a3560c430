"""The key pages: list, create, look at, rename, rotate, revoke."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

from flask import Blueprint, Response, request, url_for
from flask_login import current_user
from werkzeug.datastructures import MultiDict
from wtforms import DateField, RadioField, SelectField, StringField
from wtforms.validators import Optional

from convene_keys import clock
from convene_keys.audit import queries as audit_queries
from convene_keys.db.session import db
from convene_keys.errors import FieldError, Invalid, Malformed
from convene_keys.http.access import Access, access, member_actor, settings
from convene_keys.keys import lifecycle
from convene_keys.keys import queries as key_queries
from convene_keys.models import ApiKey, Scope, Tool
from convene_keys.text import NAME_MAX, fold
from convene_keys.web import charts, connect
from convene_keys.web.filters import Filters, parse_number
from convene_keys.web.formats import day
from convene_keys.web.forms import Form, ReasonForm
from convene_keys.web.reauthentication import ReauthForm
from convene_keys.web.respond import done, is_htmx, page

blueprint = Blueprint("keys", __name__, url_prefix="/admin/api_keys")

EVENTS_SHOWN = 10
SCOPES = {Scope.READ.value: "Only read", Scope.READ_WRITE.value: "Read and change"}
_SPANS = {1: "a month", 12: "a year", 24: "2 years"}


@dataclass(frozen=True)
class KeyFilters(Filters):
    q: str = ""
    status: str = "active"
    sort: str = "created"
    dir: str = "desc"

    noun = "key"
    too_long = "Please search for at most 100 ordinary characters."
    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "status": ("active", "expiring", "revoked", "all"),
        "sort": ("name", "created", "last_used"),
        "dir": ("asc", "desc"),
    }


class NewKeyForm(ReauthForm):
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
    scope = RadioField("What may it do?", choices=SCOPES, default=Scope.READ_WRITE)
    expires_in_days = SelectField(
        "Ends",
        default="",
        validate_choice=False,  # any number of days is fine, the list only suggests some
    )

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        choices = {}
        for months, days in _days_by_months(current_user.organization.rotate_months).items():
            span = _SPANS.get(months, f"{months} months")
            choices[str(days)] = f"In {span}, on {day(clock.now() + timedelta(days))}"
        self.expires_in_days.choices = choices | {"": "Never"}

    @classmethod
    def safest(cls) -> Self:
        """What a person is shown: it reads only, and ends when it is to be replaced."""
        months = current_user.organization.rotate_months
        ends = str(_days_by_months(months)[months])
        return cls(data={"tool": Tool.CLAUDE, "scope": Scope.READ, "expires_in_days": ends})

    def days(self) -> int | None:
        """Raises `Invalid` for what is no number."""
        typed = (self.expires_in_days.data or "").strip()
        wrong = FieldError("expires_in_days", "Please choose a number of days.")
        return parse_number(typed, 99_999, Invalid([wrong]))


def _days_by_months(usual: int) -> dict[int, int]:
    """How many days it is to the ends that are suggested, by months; `usual` is among them."""
    now = clock.now()
    return {n: (clock.months_after(now, n) - now).days for n in sorted({1, 3, 6, 12, usual})}


class RenameForm(Form):
    name = StringField("Name")


class EditForm(ReauthForm):
    scope = RadioField("What may it do?", choices=SCOPES)
    expires_on = DateField("Last day", [Optional()])

    def confirm_password(self) -> None:
        """Only where it was given: without it a key may still get less than it has."""
        if self.current_password and self.current_password.data:
            super().confirm_password()


class RotateForm(ReauthForm):
    grace = RadioField(
        "How long should the old key go on working?",
        choices={"0": "Not at all", "1": "1 hour", "24": "24 hours", "168": "7 days"},
        default="24",
    )


@blueprint.get("")
@access(Access.VIEWER)
def index() -> Response:
    filters = KeyFilters.parse(request.args)
    session, organization_id = db.session(), current_user.organization.id
    found = key_queries.list_keys(
        session,
        organization_id,
        q=filters.q,
        status=filters.status,
        sort=filters.sort,
        descending=filters.dir == "desc",
        page=_page_number(),
    )
    return page(
        "keys/list.html",
        "keys/_list.html",
        **vars(found),
        **_used(found.keys),
        filters=filters,
        has_keys=bool(found.total) or key_queries.any_ever(session, organization_id),
        **({} if is_htmx() else _notices()),
    )


@blueprint.get("/new")
@access(Access.MAKER)
def new() -> Response:
    return page("keys/new.html", form=NewKeyForm.safest())


@blueprint.post("")
@access(Access.MAKER)
def create() -> Response:
    form = NewKeyForm()
    with form:
        form.check()
        key, secret = lifecycle.create(
            member_actor(),
            name=form.name.data or "",
            tool=Tool(form.tool.data),
            scope=Scope(form.scope.data),
            expires_in_days=form.days(),
            peppers=settings().key_peppers,
            created_by_id=current_user.member.id,
        )
        return created(key, secret)
    made = _made_just_now(form.name.data) if form.name.errors else None
    return page("keys/new.html", status=422, form=form, made=made)


@blueprint.get("/<int:key_id>/first_call")
@access(Access.VIEWER)
def first_call(key_id: int) -> Response:
    """Whether the key was used yet. A page that waits for that gets 204, and asks again, until then."""
    found = connect.first_call(get(key_id))
    if is_htmx() and found["waits"]:
        return Response(status=204)
    return page("keys/first_call.html", "keys/_first_call.html", **found)


@blueprint.get("/<int:key_id>")
@access(Access.VIEWER)
def show(key_id: int) -> Response:
    return page("keys/show.html", **_facts(get(key_id)))


@blueprint.post("/<int:key_id>/rename")
@access(Access.MANAGER)
def rename(key_id: int) -> Response:
    key, form = get(key_id), RenameForm()
    with form:
        key = lifecycle.rename(member_actor(), key_id, form.name.data or "")
        said = f"This key is called {key.name} now."
        return done(said, _page_of(key), "keys/show.html", renamed=True, **_facts(key))
    return page("keys/show.html", status=422, **_facts(key, form=form))


@blueprint.post("/<int:key_id>/edit")
@access(Access.MANAGER)
def edit(key_id: int) -> Response:
    """Asks for the password only when the key is to get more than it has."""
    key = get(key_id)
    form = EditForm(obj=key, expires_on=key.last_day)
    with form:
        form.check()
        key = lifecycle.edit(
            member_actor(),
            key_id,
            scope=Scope(form.scope.data),
            expires_on=form.expires_on.data,
            confirmed=current_user.recently_authenticated,
        )
        can = "only reads" if key.scope == Scope.READ else "reads and changes"
        ends = f"ends on {day(key.expires_at)}" if key.expires_at else "has no end date"
        said = f"Saved: {key.name} {can} and {ends}."
        return done(said, _page_of(key), "keys/show.html", edited=True, **_facts(key))
    return page("keys/show.html", status=422, **_facts(key, edit=form))


@blueprint.get("/<int:key_id>/rotate")
@access(Access.MAKER)
def confirm_rotate(key_id: int) -> Response:
    key = get(key_id)
    if key.successor:
        return to_successor(key.successor)
    lifecycle.require_rotatable(key)
    return page("keys/rotate.html", key=key, form=RotateForm())


@blueprint.post("/<int:key_id>/rotate")
@access(Access.MAKER)
def rotate(key_id: int) -> Response:
    old, form = get(key_id), RotateForm()
    if old.successor:
        return to_successor(old.successor)
    with form:
        form.check()
        key, secret = lifecycle.rotate(
            member_actor(),
            key_id,
            grace=timedelta(hours=int(form.grace.data)),
            peppers=settings().key_peppers,
            created_by_id=current_user.member.id,
        )
        return created(get(key.id), secret)
    return page("keys/rotate.html", status=422, key=old, form=form)


@blueprint.get("/<int:key_id>/revoke")
@access(Access.MANAGER)
def confirm_revoke(key_id: int) -> Response:
    return page("keys/revoke.html", "keys/_revoke.html", key=get(key_id), form=ReasonForm())


@blueprint.post("/<int:key_id>/revoke")
@access(Access.MANAGER)
def revoke(key_id: int) -> Response:
    key, form = get(key_id), ReasonForm()
    with form:
        key = lifecycle.revoke(member_actor(), key_id, form.reason.data or "")
        filters = _filters_shown()
        return done(
            f"{key.name} was revoked. It stopped working at once.",
            url_for("keys.index"),
            "keys/_revoked.html",
            **(_notices() | {"key": key}),
            just_revoked=True,
            filters=filters,
            total=key_queries.count(db.session(), key.organization_id, filters.q, filters.status),
            **_used([key]),
        )
    return page("keys/revoke.html", "keys/_revoke.html", status=422, key=key, form=form)


def created(key: ApiKey, secret: str) -> Response:
    """The page of a key just made: the only one that ever shows the secret."""
    return page(
        "keys/created.html", secret=secret, **connect.addresses(), **connect.first_call(key)
    )


def to_successor(new: ApiKey) -> Response:
    """Redirect to the successor that this form has already made: reloaded, or opened twice."""
    return done(f"{new.name} was replaced already. This is the new key.", _page_of(new))


def get(key_id: int) -> ApiKey:
    """The signed-in member's organization's key. Raises `NotFound`."""
    return key_queries.get(db.session(), current_user.organization.id, key_id)


def _page_of(key: ApiKey) -> str:
    return url_for("keys.show", key_id=key.id)


def _made_just_now(name: str | None) -> ApiKey | None:
    """The newest key, if the signed-in member made it with this name: a repeated submission."""
    newest = key_queries.newest(db.session(), current_user.organization.id)
    if newest is None or newest.created_by_id != current_user.member.id:
        return None
    return newest if newest.name_folded == fold((name or "").strip()[:NAME_MAX]) else None


def _used(shown: Sequence[ApiKey]) -> dict[str, Any]:
    """The daily counts for the small charts of the list's rows."""
    organization, ids = current_user.organization, [key.id for key in shown]
    last_days = charts.last_days(clock.today(organization.timezone))
    days = charts.moments(last_days, organization.timezone)
    used = audit_queries.count_key_spans(db.session(), organization.id, ids, days, charts.SPARK_CAP)
    return {"used": used, "spark": charts.spark}


def _facts(
    key: ApiKey, *, form: RenameForm | None = None, edit: EditForm | None = None
) -> dict[str, Any]:
    """What a key's page shows, with the forms that something is wrong in."""
    session, organization = db.session(), current_user.organization
    wanted, today = audit_queries.Filter(key=key.id), clock.today(organization.timezone)
    days = charts.last_days(today)
    moments = charts.moments(days, organization.timezone)
    newest = audit_queries.page(session, organization.id, wanted, before=None, limit=EVENTS_SHOWN)
    counts = audit_queries.count_spans(session, organization.id, wanted, moments, charts.CAP)
    return {
        "key": key,
        "form": form or RenameForm(formdata=None, obj=key),
        "edit": edit or EditForm(formdata=None, obj=key, expires_on=key.last_day),
        "between": (today, today + timedelta(days=lifecycle.EXPIRY_MAX_DAYS)),
        "handover": connect.handover(key),
        "events": newest.events,
        "chart": charts.bars(days, counts, charts.CAP) if any(counts) else [],
        **connect.addresses(),
    }


def _notices() -> dict[str, Any]:
    """What stands above the list: how many keys stop soon, and the newest one's first call."""
    session, organization_id = db.session(), current_user.organization.id
    newest = key_queries.newest(session, organization_id)
    attention = key_queries.expiring(session, organization_id)
    return {
        "attention": attention,
        "newest": newest,
        **(connect.first_call(newest) if newest else {}),
    }


def _page_number() -> int:
    no_page = Malformed("There is no such page.")
    number = parse_number(request.args.get("page", "1"), 1_000_000, no_page)
    if not number:
        raise no_page
    return number


def _filters_shown() -> KeyFilters:
    """The filters of the list that HTMX asks from, by the address of its page."""
    query = urlsplit(request.headers.get("HX-Current-URL", "")).query
    try:
        return KeyFilters.parse(MultiDict(parse_qsl(query)))
    except Malformed:
        return KeyFilters()

"""The team: who belongs to the organization, and in which role."""

from flask import Blueprint, Response, request, url_for
from flask_login import current_user
from wtforms import RadioField, StringField

from convene_keys.accounts import links
from convene_keys.accounts import members as accounts_members
from convene_keys.db.session import db
from convene_keys.errors import TooMany
from convene_keys.http.access import Access, access, log_refusal, may, member_actor, settings
from convene_keys.models import Member, Role
from convene_keys.web.forms import Form
from convene_keys.web.reauthentication import ReauthForm
from convene_keys.web.respond import done, page

blueprint = Blueprint("team", __name__, url_prefix="/admin/team")

ONE = "/<int:member_id>"


class MemberForm(ReauthForm):
    name = StringField("Name")
    role = RadioField(
        "Role",
        choices={"admin": "Admin", "manager": "Market manager", "viewer": "Viewer"},
        default=Role.MANAGER,
    )


class NewMemberForm(MemberForm):
    email = StringField("Email")


@blueprint.get("")
@access(Access.VIEWER)
def index() -> Response:
    members = accounts_members.members(db.session(), current_user.organization.id)
    open_links = links.listed(db.session(), current_user.organization.id) if may("admin") else ()
    return page("team/list.html", members=members, open_links=open_links)


@blueprint.get("/new")
@access(Access.ADMIN)
def new() -> Response:
    return page("team/new.html", form=NewMemberForm())


@blueprint.post("")
@access(Access.ADMIN)
def add() -> Response:
    """The only answer that shows the new member's sign-in link."""
    form = NewMemberForm()
    with form:
        form.check()
        try:
            member, code = accounts_members.invite(
                member_actor(),
                name=form.name.data or "",
                email=form.email.data or "",
                role=Role(form.role.data),
            )
        except TooMany as too_many:
            return _too_many(too_many, form, "team/new.html")
        return _show_link(member, code, added=True)
    return page("team/new.html", status=422, form=form)


@blueprint.get(ONE)
@access(Access.ADMIN)
def show(member_id: int) -> Response:
    member = _get(member_id)
    return _page_of("show", member, MemberForm(obj=member))


@blueprint.post(ONE)
@access(Access.ADMIN)
def change(member_id: int) -> Response:
    member = _get(member_id)
    form = MemberForm(obj=member)
    with form:
        form.check()
        member = accounts_members.change_member(
            member_actor(), member_id, name=form.name.data or "", role=Role(form.role.data)
        )
        return done(f"{member.name} was saved.", url_for("team.index"))
    return _page_of("show", member, form, 422)


@blueprint.get(f"{ONE}/disable")
@access(Access.ADMIN)
def confirm_disable(member_id: int) -> Response:
    return _page_of("disable", _get(member_id), ReauthForm())


@blueprint.post(f"{ONE}/disable")
@access(Access.ADMIN)
def disable(member_id: int) -> Response:
    return _set_disabled(member_id, True)


@blueprint.get(f"{ONE}/enable")
@access(Access.ADMIN)
def confirm_enable(member_id: int) -> Response:
    return _page_of("enable", _get(member_id), ReauthForm())


@blueprint.post(f"{ONE}/enable")
@access(Access.ADMIN)
def enable(member_id: int) -> Response:
    return _set_disabled(member_id, False)


@blueprint.get(f"{ONE}/link")
@access(Access.ADMIN)
def confirm_link(member_id: int) -> Response:
    return _page_of("link", _get(member_id), ReauthForm())


@blueprint.post(f"{ONE}/link")
@access(Access.ADMIN)
def make_link(member_id: int) -> Response:
    """The only answer that shows this sign-in link."""
    member, form = _get(member_id), ReauthForm()
    with form:
        form.check()
        try:
            return _show_link(*accounts_members.invitation(member_actor(), member_id), added=False)
        except TooMany as too_many:
            return _too_many(too_many, form, "team/link.html", member)
    return _page_of("link", member, form, 422)


@blueprint.post("/links/<int:link_id>/withdraw")
@access(Access.ADMIN)
def withdraw_link(link_id: int) -> Response:
    """It asks for no password: it can only lower the risk."""
    member = accounts_members.withdraw_link(member_actor(), link_id)
    return done(f"The link for {member.name} doesn’t work any more.", url_for("team.index"))


def _get(member_id: int) -> Member:
    return accounts_members.get(db.session(), current_user.organization.id, member_id)


def _set_disabled(member_id: int, disabled: bool) -> Response:
    member, form = _get(member_id), ReauthForm()
    with form:
        form.check()
        member = accounts_members.set_disabled(member_actor(), member_id, disabled=disabled)
        what = "was disabled and is signed out everywhere" if disabled else "can sign in again"
        return done(f"{member.name} {what}.", url_for("team.index"))
    return _page_of("disable" if disabled else "enable", member, form, 422)


def _too_many(
    too_many: TooMany, form: Form, template: str, member: Member | None = None
) -> Response:
    log_refusal(f"{too_many.code} at {request.endpoint}")
    form.form_errors.append(too_many.detail)
    answer = page(template, status=too_many.status, form=form, member=member)
    answer.headers.update(too_many.headers)
    return answer


def _show_link(member: Member, code: str, *, added: bool) -> Response:
    link = f"{settings().base_url}{url_for('auth.welcome', code=code)}"
    hours = links.VALID.total_seconds() // 3_600
    return page("team/link_made.html", member=member, link=link, hours=int(hours), added=added)


def _page_of(template: str, member: Member, form: Form, status: int = 200) -> Response:
    keys = accounts_members.keys_of(db.session(), member)
    return page(f"team/{template}.html", status=status, member=member, form=form, keys=keys)

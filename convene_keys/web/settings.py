"""Settings: the organization, its billing, and one's own account."""

from functools import cache

from flask import Blueprint, Response, url_for
from flask_login import current_user
from wtforms import (
    BooleanField,
    Field,
    IntegerField,
    PasswordField,
    RadioField,
    SelectField,
    StringField,
)

from convene_keys.accounts import members, organizations, sessions, sign_in
from convene_keys.audit.user_agents import device
from convene_keys.db.session import db
from convene_keys.errors import Invalid
from convene_keys.http.access import Access, access, member_actor
from convene_keys.http.access import settings as settings_of_app
from convene_keys.mail import notices
from convene_keys.models import KeyMakers, OrganizationStatus
from convene_keys.web.forms import Form
from convene_keys.web.reauthentication import ReauthForm, check_password, confirm_password
from convene_keys.web.respond import done, page

blueprint = Blueprint("settings", __name__, url_prefix="/admin/settings")
blueprint.add_app_template_filter(device)


@cache
def _zones() -> dict[str, dict[str, str]]:
    """The time zones for a select: those named after places, by continent, and UTC."""
    groups: dict[str, dict[str, str]] = {}
    for name in organizations.zones():
        region, slash, _ = name.partition("/")
        group = groups.setdefault(region if slash else "Universal time", {})
        group[name] = name.replace("_", " ")
    return groups


class OrganizationForm(ReauthForm):
    name = StringField("Name")
    timezone = SelectField("Time zone", choices=_zones, validate_choice=False)
    status = RadioField(
        "Status",
        choices={"live": "Live", "draft": "Draft"},
    )
    key_makers = RadioField(
        "Who may create keys?",
        choices={
            KeyMakers.MANAGERS.value: "Admins and market managers",
            KeyMakers.ADMINS.value: "Admins only",
        },
    )
    rotate_months = IntegerField("Months after which a key is to be replaced")


class BillingForm(ReauthForm):
    billing_email = StringField("Billing email")
    plan = SelectField(
        "Plan",
        choices={plan: plan.capitalize() for plan in organizations.PLANS},
    )
    stripe_account_id = StringField("Stripe account id")


class NameForm(Form):
    name = StringField("Your name")


class MailForm(Form):
    weekly_digest = BooleanField("A digest each Monday")


class SessionsForm(ReauthForm):
    # Its id is another than that of the page's other field of this name.
    current_password = PasswordField("Your password", id="sessions-password")


class PasswordForm(Form):
    current_password = PasswordField("Current password")
    new_password = PasswordField("New password")


@blueprint.get("/organization")
@access(Access.ADMIN)
def organization() -> Response:
    form = OrganizationForm(obj=current_user.organization)
    undelivered = notices.undelivered(db.session(), current_user.organization.id)
    return page("settings/organization.html", form=form, undelivered=undelivered)


@blueprint.post("/organization")
@access(Access.ADMIN)
def change_organization() -> Response:
    form = OrganizationForm(obj=current_user.organization)
    if form.validate() and confirm_password(form):
        try:
            organizations.change_organization(
                member_actor(),
                name=_text(form.name),
                timezone=_text(form.timezone),
                status=OrganizationStatus(form.status.data),
                key_makers=KeyMakers(form.key_makers.data),
                rotate_months=form.rotate_months.data or 0,
            )
        except Invalid as invalid:
            form.show(invalid)
    if form.errors:
        return page("settings/organization.html", status=422, form=form)
    return done("The organization was saved.", url_for("settings.organization"))


@blueprint.get("/billing")
@access(Access.ADMIN)
def billing() -> Response:
    return page("settings/billing.html", form=BillingForm(obj=current_user.organization))


@blueprint.post("/billing")
@access(Access.ADMIN)
def change_billing() -> Response:
    form = BillingForm(obj=current_user.organization)
    if form.validate() and confirm_password(form):
        try:
            organizations.change_billing(
                member_actor(),
                billing_email=_text(form.billing_email),
                plan=_text(form.plan),
                stripe_account_id=_text(form.stripe_account_id),
            )
        except Invalid as invalid:
            form.show(invalid)
    if form.errors:
        return page("settings/billing.html", status=422, form=form)
    return done("Billing was saved.", url_for("settings.billing"))


@blueprint.get("/account")
@access(Access.VIEWER)
def account() -> Response:
    return _account_page()


@blueprint.post("/account/name")
@access(Access.VIEWER)
def change_name() -> Response:
    form = NameForm(obj=current_user.member)
    try:
        members.rename_self(member_actor(), _text(form.name))
    except Invalid as invalid:
        form.show(invalid)
        return _account_page(name_form=form, status=422)
    return done("Your name was saved.", url_for("settings.account"))


@blueprint.post("/account/mail")
@access(Access.VIEWER)
def choose_mail() -> Response:
    members.choose_mail(member_actor(), weekly_digest=bool(MailForm().weekly_digest.data))
    return done("Your choice was saved.", url_for("settings.account"))


@blueprint.post("/account/password")
@access(Access.VIEWER)
def change_password() -> Response:
    form = PasswordForm()
    try:
        check_password(_text(form.current_password))
        sign_in.change_password(
            member_actor(),
            current_user.member,
            current_user.session_id,
            _text(form.new_password),
            settings_of_app().key_peppers,
        )
    except Invalid as invalid:
        form.show(invalid)
        return _account_page(password_form=form, status=422)
    return done(
        "Your password was changed. Everywhere else you are signed out.",
        url_for("settings.account"),
    )


@blueprint.post("/account/sessions")
@access(Access.VIEWER)
def end_other_sessions() -> Response:
    form = SessionsForm()
    if not confirm_password(form):
        return _account_page(sessions_form=form, status=422)
    sessions.end_other_sessions(member_actor(), current_user.session_id)
    return done("Everywhere else you are signed out.", url_for("settings.account"))


def _account_page(
    *,
    name_form: NameForm | None = None,
    password_form: PasswordForm | None = None,
    sessions_form: SessionsForm | None = None,
    status: int = 200,
) -> Response:
    configured = settings_of_app()
    return page(
        "settings/account.html",
        status=status,
        name_form=name_form or NameForm(formdata=None, obj=current_user.member),
        password_form=password_form or PasswordForm(formdata=None),
        mail_form=MailForm(formdata=None, obj=current_user.member),
        sessions_form=sessions_form or SessionsForm(formdata=None),
        sessions=sessions.sessions(
            db.session(),
            current_user.member.id,
            idle=configured.session_idle,
            most=configured.session_max,
        ),
    )


def _text(field: Field) -> str:
    return str(field.data or "")

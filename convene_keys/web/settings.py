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
from convene_keys.http.access import Access, access, member_actor
from convene_keys.http.access import settings as settings_of_app
from convene_keys.mail import notices
from convene_keys.models import KeyMakers, OrganizationStatus
from convene_keys.web.forms import Form
from convene_keys.web.reauthentication import ReauthForm, check_password
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
    status = RadioField("Status", choices={"live": "Live", "draft": "Draft"})
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
    plan = SelectField("Plan", choices={plan: plan.capitalize() for plan in organizations.PLANS})
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
    with form:
        form.check()
        organizations.change_organization(
            member_actor(),
            name=_text(form.name),
            timezone=_text(form.timezone),
            status=OrganizationStatus(form.status.data),
            key_makers=KeyMakers(form.key_makers.data),
            rotate_months=form.rotate_months.data or 0,
        )
        return done("The organization was saved.", url_for("settings.organization"))
    return page("settings/organization.html", status=422, form=form)


@blueprint.get("/billing")
@access(Access.ADMIN)
def billing() -> Response:
    return page("settings/billing.html", form=BillingForm(obj=current_user.organization))


@blueprint.post("/billing")
@access(Access.ADMIN)
def change_billing() -> Response:
    form = BillingForm(obj=current_user.organization)
    with form:
        form.check()
        organizations.change_billing(
            member_actor(),
            billing_email=_text(form.billing_email),
            plan=_text(form.plan),
            stripe_account_id=_text(form.stripe_account_id),
        )
        return done("Billing was saved.", url_for("settings.billing"))
    return page("settings/billing.html", status=422, form=form)


@blueprint.get("/account")
@access(Access.VIEWER)
def account() -> Response:
    return _account_page()


@blueprint.post("/account/name")
@access(Access.VIEWER)
def change_name() -> Response:
    form = NameForm(obj=current_user.member)
    with form:
        members.rename_self(member_actor(), _text(form.name))
        return done("Your name was saved.", url_for("settings.account"))
    return _account_page(422, name_form=form)


@blueprint.post("/account/mail")
@access(Access.VIEWER)
def choose_mail() -> Response:
    members.choose_mail(member_actor(), weekly_digest=bool(MailForm().weekly_digest.data))
    return done("Your choice was saved.", url_for("settings.account"))


@blueprint.post("/account/password")
@access(Access.VIEWER)
def change_password() -> Response:
    form = PasswordForm()
    with form:
        check_password(_text(form.current_password))
        sign_in.change_password(
            member_actor(),
            current_user.member,
            current_user.session_id,
            _text(form.new_password),
            settings_of_app().key_peppers,
        )
        said = "Your password was changed. Everywhere else you are signed out."
        return done(said, url_for("settings.account"))
    return _account_page(422, password_form=form)


@blueprint.post("/account/sessions")
@access(Access.VIEWER)
def end_other_sessions() -> Response:
    form = SessionsForm()
    with form:
        form.check()
        sessions.end_other_sessions(member_actor(), current_user.session_id)
        return done("Everywhere else you are signed out.", url_for("settings.account"))
    return _account_page(422, sessions_form=form)


def _account_page(status: int = 200, **submitted: Form) -> Response:
    """The page with the form that something is wrong in, if any, and the others as they were."""
    configured, member = settings_of_app(), current_user.member
    forms: dict[str, Form] = {
        "name_form": NameForm(formdata=None, obj=member),
        "password_form": PasswordForm(formdata=None),
        "mail_form": MailForm(formdata=None, obj=member),
        "sessions_form": SessionsForm(formdata=None),
    }
    return page(
        "settings/account.html",
        status=status,
        **(forms | submitted),
        sessions=sessions.sessions(
            db.session(), member.id, idle=configured.session_idle, most=configured.session_max
        ),
    )


def _text(field: Field) -> str:
    return str(field.data or "")

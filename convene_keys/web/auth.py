"""The way in and out: first run, sign-in, sign-out, and one-time links that set a password."""

from urllib.parse import urlsplit

from flask import Blueprint, Response, flash, redirect, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_user
from wtforms import BooleanField, HiddenField, PasswordField, StringField
from wtforms.validators import InputRequired

from convene_keys.accounts import links, members, organizations, sessions
from convene_keys.accounts import sign_in as accounts_sign_in
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.errors import Invalid, NotFound, TooMany
from convene_keys.http.access import Access, access, log_refusal, member_actor, origin, settings
from convene_keys.markets import sample
from convene_keys.models import Member
from convene_keys.web.forms import Form
from convene_keys.web.respond import done, page
from convene_keys.web.signed_in import load

blueprint = Blueprint("auth", __name__)

NEXT_MAX = 2_000


class SetupForm(Form):
    organization = StringField("Organization")
    name = StringField("Your name")
    email = StringField("Your email")
    password = PasswordField("Password")
    timezone = HiddenField()  # which the browser fills in
    sample_data = BooleanField("Add sample data")


class SignInForm(Form):
    email = StringField("Email", [InputRequired("Please type your email.")])
    password = PasswordField("Password", [InputRequired("Please type your password.")])
    next = HiddenField()


class WelcomeForm(Form):
    password = PasswordField("New password")


@blueprint.get("/")
@access(Access.PUBLIC)
def home() -> ResponseReturnValue:
    here = "keys.index" if current_user.is_authenticated else "auth.login"
    return redirect(url_for(here), 303)


@blueprint.get("/admin")
@access(Access.VIEWER)
def admin() -> ResponseReturnValue:
    return redirect(url_for("keys.index"), 303)


@blueprint.get("/setup")
@access(Access.PUBLIC)
def setup() -> ResponseReturnValue:
    _require_first_run()
    return page("setup.html", form=SetupForm())


@blueprint.post("/setup")
@access(Access.PUBLIC)
def set_up() -> ResponseReturnValue:
    _require_first_run()
    form = SetupForm()
    with form:
        organization, member = organizations.create_organization(
            name=form.organization.data or "",
            admin_name=form.name.data or "",
            admin_email=form.email.data or "",
            password=form.password.data or "",
            origin=origin(),
            peppers=settings().key_peppers,
            timezone=form.timezone.data or "",
            first_only=True,
        )
        actor, name = Actor.of_member(member, origin()), organization.name
        _enter(accounts_sign_in.start_session(member.id, origin()))
        if form.sample_data.data:
            sample.make(actor)
        said = f"{name} is set up. Now create a key for your first tool."
        return done(said, url_for("keys.index"))
    return page("setup.html", status=422, form=form)


@blueprint.get("/login")
@access(Access.PUBLIC)
def login() -> ResponseReturnValue:
    wanted = _on_this_site(request.args.get("next"))
    if current_user.is_authenticated:
        return redirect(wanted or url_for("keys.index"), 303)
    return _sign_in_page(SignInForm(data={"next": wanted}))


@blueprint.post("/login")
@access(Access.PUBLIC)
def sign_in() -> ResponseReturnValue:
    form = SignInForm()
    wanted = form.next.data = _on_this_site(form.next.data)
    if current_user.is_authenticated:
        return redirect(wanted or url_for("keys.index"), 303)
    with form:
        form.check()
        try:
            token = accounts_sign_in.sign_in(
                form.email.data or "", form.password.data or "", origin(), settings().key_peppers
            )
        except Invalid:
            log_refusal("sign-in", form.email.data)
            raise
        except TooMany as too_many:
            log_refusal("sign-in, after too many tries", form.email.data)
            form.form_errors.append(too_many.detail)
            answer = _sign_in_page(form, 429)
            answer.headers.update(too_many.headers)
            return answer
        _enter(token)
        return redirect(wanted or url_for("keys.index"), 303)
    return _sign_in_page(form, 422)


@blueprint.post("/logout")
@access(Access.VIEWER)
def logout() -> ResponseReturnValue:
    sessions.sign_out(member_actor(), current_user.session_id)
    session.clear()
    flash("You are signed out.", "ok")
    return redirect(url_for("auth.login"), 303)


@blueprint.get("/welcome")
@access(Access.PUBLIC)
def welcome() -> ResponseReturnValue:
    return page("auth/welcome.html", member=_invited(), form=WelcomeForm())


@blueprint.post("/welcome")
@access(Access.PUBLIC)
def accept() -> ResponseReturnValue:
    """Set the password of whom the link was made for. Who was signed in here before leaves."""
    form = WelcomeForm()
    with form:
        code, password = request.args.get("code", ""), form.password.data or ""
        member_id = members.accept(code, password, origin(), settings().key_peppers).id
        if current_user.is_authenticated and current_user.member.id != member_id:
            sessions.sign_out(member_actor(), current_user.session_id)
        _enter(accounts_sign_in.start_session(member_id, origin()))
        return done("Your password is set, and you are signed in.", url_for("keys.index"))
    return page("auth/welcome.html", status=422, member=_invited(), form=form)


def _require_first_run() -> None:
    code, configured = request.args.get("code", ""), settings()
    right = organizations.is_setup_code(code, configured.secret_key, configured.key_peppers[0])
    if not right or not organizations.is_empty(db.session()):
        raise NotFound(
            "This set-up link doesn’t work. If Convene Keys has been set up already, please sign "
            "in. If not, open the link that it printed when it was started, whole."
        )


def _invited() -> Member:
    return links.opened_by(db.session(), request.args.get("code", "")).member


def _sign_in_page(form: SignInForm, status: int = 200) -> Response:
    first_run, why = False, None
    if status != 429:  # which reads nothing more: guessers get many of them
        configured, token = settings(), session.get("_user_id")
        first_run = organizations.is_empty(db.session())
        why = token and sessions.why_ended(
            db.session(), token, idle=configured.session_idle, most=configured.session_max
        )
    return page(
        "auth/login.html",
        status=status,
        form=form,
        first_run=first_run,
        why=why,
        lost="lost" in request.args,
    )


def _enter(token: str) -> None:
    """Reset the session at sign-in, against session fixation."""
    session.clear()
    login_user(load(token))


def _on_this_site(address: str | None) -> str | None:
    """`address` when it is a path of this site to go on to after sign-in; None for all else.

    Browsers read a backslash as a slash and drop control characters, and `//host` is another site.
    """
    if not address or len(address) > NEXT_MAX:
        return None
    if not address.startswith("/") or not address.isprintable():
        return None
    if "//" in address or "\\" in address:
        return None
    path = urlsplit(address).path.rstrip("/")
    return None if path in ("/login", "/logout") else address

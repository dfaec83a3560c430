"""Convene Keys: API keys for market organizers, and an audit log of everything they do."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from flask import Flask, Request, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadHost
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import RequestRedirect

from convene_keys import api, config, errors, limits, mcp, web
from convene_keys.audit import seals
from convene_keys.db.session import db, prepare_sqlite
from convene_keys.http import access, headers, request_body
from convene_keys.http.answers import problem_document, problem_of
from convene_keys.http.extensions import csrf, htmx, login
from convene_keys.http.key_app import KeyApp
from convene_keys.http.request_body import FORM_MAX
from convene_keys.keys import tokens
from convene_keys.operations import table
from convene_keys.operations.runner import Site

ROOT = Path(__file__).resolve().parent.parent


def create_app(environ: Mapping[str, str] | None = None, *, commands: bool = True) -> Flask:
    """The application, configured from `environ` (by default the process's own).

    A server needs no `commands`: without them, and the migrations behind them, it is 12 MB lighter.
    Raises `config.ConfigError` with one line for a person when a value can't be used.
    """
    settings = config.load(environ)
    app = _configured(settings)
    app.session_interface = _Sessions()
    db.init_app(app)
    with app.app_context():
        prepare_sqlite(db.engine)
        db.engine.update_execution_options(
            audit_keys=seals.keys((*settings.audit_keys, *settings.key_peppers)),
            mail_site=settings.base_url if settings.mail_server else None,
        )
        engine = db.engine
    site = Site(engine, limits.init_app(app, settings), settings.key_peppers, settings.base_url)
    app.extensions["site"] = site
    every_answer = headers.of_every_answer(secure=settings.secure)
    headers.init_app(app, every_answer)
    key_app = app.extensions["key_app"] = KeyApp(app, site, every_answer)
    app.wsgi_app = key_app  # type: ignore[assignment]
    if hops := settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    request_body.init_app(app)

    app.before_request(access.guard)  # before the CSRF check: who are you comes first
    login.init_app(app)
    csrf.init_app(app)
    htmx.init_app(app)
    web.init_app(app)
    api.init_app(app, key_app)
    mcp.init_app(app, key_app)
    if commands:
        from convene_keys import cli

        cli.init_app(app)
    app.register_error_handler(Exception, _answer_error)
    return app


def _configured(settings: config.Settings) -> Flask:
    app = Flask(
        __name__,
        template_folder=ROOT / "templates",
        static_folder=ROOT / "static",
        instance_path=str(settings.instance_path),
    )
    app.config.update(
        SETTINGS=settings,
        SECRET_KEY=settings.secret_key,
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        # A server may have gone since the connection was last used; a file has not.
        SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": not settings.database_url.startswith("sqlite")},
        MAX_CONTENT_LENGTH=FORM_MAX,
        MAX_FORM_MEMORY_SIZE=FORM_MAX,
        SEND_FILE_MAX_AGE_DEFAULT=timedelta(days=365),  # addresses carry the files' version
        SESSION_COOKIE_NAME="__Host-convene" if settings.secure else "convene",
        SESSION_COOKIE_SECURE=settings.secure,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        WTF_CSRF_TIME_LIMIT=None,  # a form left open over lunch is still good; a session ends
        WTF_CSRF_SSL_STRICT=True,
    )
    return app


class _Sessions(SecureCookieSessionInterface):
    """Cookies are for people: for machines and files there is no session to open or save."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        if _for_machines(request) or request.path.startswith(("/static/", "/connect/")):
            return None
        return super().open_session(app, request)


def _for_machines(request: Request) -> bool:
    path = request.path
    return (
        path.startswith("/api/") or path in (table.VERIFY, mcp.PATH) or access.seeks_sign_in(path)
    )


def _answer_error(error: Exception) -> ResponseReturnValue:
    """Every error of Flask's leaves here: as JSON for machines, as a page for people."""
    # A redirect that routing raised; or no host, without which no page has addresses.
    if isinstance(error, BadHost | RequestRedirect):
        return error
    for_machines = _for_machines(request)
    problem = problem_of(error, None if for_machines else web.WORDS)
    refused = isinstance(error, errors.Forbidden | errors.TooMany)
    # Of a key the audit log tells; what only looks like one hides no member.
    by_key = tokens.is_well_formed(access.presented_key(request.environ) or "")
    if refused and not (for_machines or by_key):
        access.log_refusal(f"{problem.code} at {request.endpoint}")
    request_id = access.origin().request_id
    if request.path == mcp.PATH:
        return mcp.refusal(problem, request_id).as_response()
    if for_machines:
        return problem_document(problem, request_id, access.settings().base_url).as_response()
    return web.problem_page(problem)

"""The pages: one blueprint a page area, and what all of them share."""

from flask import Flask, Response, request
from flask_wtf.csrf import CSRFError

from convene_keys.errors import Malformed
from convene_keys.http.access import log_refusal, may
from convene_keys.http.extensions import login
from convene_keys.web import (
    audit,
    auth,
    checkup,
    data,
    docs,
    formats,
    health,
    help,
    keys,
    leak,
    settings,
    static,
    styleguide,
    team,
)
from convene_keys.web.respond import WORDS, NoIndentation, navigation, problem_page
from convene_keys.web.signed_in import load

__all__ = ["WORDS", "init_app", "problem_page"]

THEMES = ("light", "dark")


def init_app(app: Flask) -> None:
    areas = (auth, keys, leak, checkup, audit, data, team, settings, help, docs, health, styleguide)
    for area in areas:
        app.register_blueprint(area.blueprint)
    login.session_protection = None  # it trusts a forged address; sessions live on the server
    login.user_loader(load)
    formats.init_app(app)
    static.init_app(app)
    app.jinja_env.add_extension(NoIndentation)
    configured = app.config["SETTINGS"]

    @app.context_processor
    def shared() -> dict[str, object]:
        theme = request.cookies.get("theme")
        return {
            "may": may,
            "navigation": navigation(),
            "findings_count": checkup.count,
            "support_email": configured.support_email,
            "mail_from": configured.mail_from,
            "theme": theme if theme in THEMES else None,
        }

    app.register_error_handler(CSRFError, _stale_form)
    app.after_request(_headers)


def _stale_form(_: CSRFError) -> Response:
    log_refusal(f"no CSRF token that fits at {request.endpoint}")
    return problem_page(
        Malformed(
            "This form is out of date: you may have signed in again since it was opened. "
            "Please go back, reload the page and try again. Nothing was changed.",
            code="stale_form",
        )
    )


def _headers(response: Response) -> Response:
    if not request.path.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "no-store")  # a file says how long to keep it
    if not request.path.startswith(("/api/", "/static/")):
        response.vary.add("HX-Request")
    return response

"""How a view answers: the fragment that changed to HTMX, a whole page or a redirect to a browser."""

import json
import re
from urllib.parse import urlsplit

from flask import Response, flash, make_response, redirect, render_template, request, url_for
from flask_login import current_user
from jinja2.ext import Extension

from convene_keys.errors import Problem
from convene_keys.http.access import origin
from convene_keys.keys import tokens
from convene_keys.web.signed_in import forget

_AREAS = (
    ("keys.index", "API keys", "key", "keys"),
    ("checkup.index", "Check-up", "shield-check", "checkup"),
    ("audit.index", "Audit log", "scroll-text", "audit"),
    ("data.bookings", "Bookings", "calendar-days", "data"),
    ("data.applications", "Applications", "inbox", "data"),
    ("team.index", "Team", "users", "team"),
)


class NoIndentation(Extension):
    """Templates without the indentation that is for their readers: a sixth of a long list."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return re.sub(r"(?m)^[ \t]+", "", source)


# What an error's page says where the framework's own words would be for developers.
TITLES = {
    400: "That didn’t work",
    401: "Please sign in",
    403: "Not for you to open",
    404: "Nothing here",
    405: "That doesn’t work here",
    411: "That didn’t work",
    413: "Too much at once",
    415: "That didn’t work",
    429: "Please wait",
}
WORDS = {
    400: "The request could not be read. Please go back, reload the page and try again.",
    401: "This page is for members who are signed in.",
    403: "Your role doesn’t allow this. Please ask an admin of your organization.",
    404: "There is no such page. It may have moved, or the address may not be complete.",
    405: "This address is part of a form. Please open the page that it is on, and try from there.",
    411: "The request could not be read. Please go back, reload the page and try again.",
    413: "What was sent is larger than what can be taken. Please make it shorter and try again.",
    415: "Files can’t be sent here.",
    429: "Please wait a moment, then try again.",
}


def is_htmx() -> bool:
    return request.headers.get("HX-Request") == "true"


def page(
    template: str, fragment: str | None = None, *, status: int = 200, **context: object
) -> Response:
    """The page, or for HTMX only its `fragment` template."""
    chosen = fragment if fragment and is_htmx() else template
    return make_response(_render(chosen, **context), status)


def _render(template: str, **context: object) -> str:
    """The template, and after a change in place also the number that the navigation shows."""
    text = render_template(template, **context)
    if is_htmx() and request.method == "POST" and current_user.is_authenticated:
        text += render_template("_findings.html", oob=True)
    return text


def done(message: str, back_to: str, fragment: str | None = None, **context: object) -> Response:
    """After a change: for HTMX the fragment that changed and a toast, else a redirect and a notice."""
    if is_htmx() and fragment is not None:
        response = make_response(_render(fragment, **context))
        response.headers["HX-Trigger"] = _toast(message, "ok")
        return response
    flash(message, "ok")
    if is_htmx():
        return make_response("", 200, {"HX-Redirect": back_to})
    return make_response(redirect(back_to, 303))


def stale(problem: Problem, fragment: str, **context: object) -> Response:
    """A conflicting change, for HTMX: the current state of the thing, and a toast that says why."""
    response = make_response(_render(fragment, **context), problem.status)
    response.headers["HX-Trigger"] = _toast(problem.detail, "danger")
    return response


def problem_page(problem: Problem) -> Response:
    """An error for a person: a toast where HTMX asked, since its target should stay; else a page."""
    headers = problem.headers
    if is_htmx():
        headers = headers | {"HX-Reswap": "none", "HX-Trigger": _toast(problem.detail, "danger")}
        return make_response(problem.detail, problem.status, headers)
    if problem.status >= 500:
        forget()  # the page must not need what has just failed
    body = render_template(
        "error.html",
        problem=problem,
        title=TITLES.get(problem.status, problem.title),
        next_step=_next_step(problem.status),
        request_id=origin().request_id,
    )
    return make_response(body, problem.status, headers)


def _next_step(status: int) -> tuple[str, str]:
    """The link that an error page offers, and its label: try again, go back, or the start."""
    if status >= 429 and request.method == "GET":
        return _here(request.full_path.rstrip("?")), "Try again"
    came_from = urlsplit(request.referrer or "")
    back = _here(f"{came_from.path}?{came_from.query}".rstrip("?"))
    if came_from.netloc == request.host and not tokens.PATTERN.search(back):
        return back, "Go back"
    if status >= 500:
        return url_for("auth.home"), "Back to the start"
    if current_user.is_authenticated:
        return url_for("keys.index"), "Back to your keys"
    return url_for("auth.login"), "Sign in"


def _here(address: str) -> str:
    """A path of this site: one that begins with two slashes would lead to another."""
    return "/" + address.lstrip("/\\")


def navigation() -> list[tuple[str, str, str, bool]]:
    """The areas for the page's header: endpoint, label, icon, whether it is open now."""
    if not current_user.is_authenticated:
        return []
    here = request.endpoint or ""
    blueprint = here.partition(".")[0].replace("leak", "keys")
    return [
        (endpoint, label, icon, here == endpoint or (area == blueprint and area != "data"))
        for endpoint, label, icon, area in _AREAS
    ]


def _toast(message: str, kind: str) -> str:
    """The header by which the page shows a message. ASCII only, as headers are."""
    return json.dumps({"toast": {"message": message, "kind": kind}})

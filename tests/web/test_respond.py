"""What goes wrong, as a person sees it: what happened and the next step, as a page or a toast."""

import io
import json
import re

import pytest
from flask import Flask, abort

from convene_keys import errors
from convene_keys.errors import Problem
from convene_keys.http.access import Access, access
from tests import factories
from tests.conftest import Browser, new_browser

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}
OURS = {
    400: errors.Malformed("Words of our own."),
    401: errors.Unauthenticated("Words of our own."),
    403: errors.Forbidden("Words of our own."),
    404: errors.NotFound("Words of our own."),
    405: errors.MethodNotAllowed("Words of our own.", allowed=["POST"]),
    409: errors.Conflict("Words of our own."),
    413: errors.TooLarge("Words of our own."),
    429: errors.TooMany("Words of our own.", retry_after=7),
    500: Problem("Words of our own."),
    503: errors.Unavailable("Words of our own."),
}
THEIRS = (400, 401, 403, 404, 405, 411, 413, 415, 429)


@pytest.fixture
def failing(own_app: Flask) -> Browser:
    """A browser of an app with a path for each error, raised by the product and by Flask."""

    @access(Access.PUBLIC)
    def ours(status: int) -> None:
        raise OURS[status]

    @access(Access.PUBLIC)
    def theirs(status: int) -> None:
        abort(status)

    app = own_app
    app.config["WTF_CSRF_ENABLED"] = False
    app.add_url_rule("/ours/<int:status>", "ours", ours, methods=["GET", "POST"])
    app.add_url_rule("/theirs/<int:status>", "theirs", theirs, methods=["GET", "POST"])
    app.add_url_rule("/broken", "broken", access(Access.PUBLIC)(lambda: 1 / 0))
    return new_browser(app)


def next_step(text: str) -> tuple[str, str]:
    (found,) = re.findall(r'<a class="button primary"\s+href="([^"]*)">([^<]*)</a>', text)
    return found


@pytest.mark.parametrize("status", OURS)
def test_our_errors_are_pages_with_a_next_step(failing: Browser, status: int) -> None:
    answer = failing.get(f"/ours/{status}")
    assert answer.status_code == status
    assert answer.text.count("<h1>") == 1
    assert "Words of our own." in answer.text
    assert answer.headers["X-Request-Id"] in answer.text
    assert next_step(answer.text)[1]
    assert answer.headers.get("Retry-After") == {429: "7", 503: "5"}.get(status)


@pytest.mark.parametrize("status", THEIRS)
def test_the_frameworks_errors_speak_plainly_too(failing: Browser, status: int) -> None:
    answer = failing.get(f"/theirs/{status}")
    assert answer.status_code == status
    text = re.sub(r"<[^>]+>", " ", answer.text).lower()
    for jargon in ("url", "server", "method", "browser (or proxy)", "resource", "data value"):
        assert jargon not in text, jargon


@pytest.mark.parametrize("status", OURS)
def test_htmx_gets_a_toast_and_swaps_nothing(failing: Browser, status: int) -> None:
    answer = failing.post(f"/ours/{status}", headers=HTMX)
    assert answer.status_code == status
    assert answer.headers["HX-Reswap"] == "none"
    assert json.loads(answer.headers["HX-Trigger"]) == {
        "toast": {"message": "Words of our own.", "kind": "danger"}
    }
    assert "<" not in answer.text


def test_what_breaks_tells_nothing_of_its_insides(failing: Browser) -> None:
    answer = failing.get("/broken")
    assert answer.status_code == 500
    assert "Nothing was changed" in answer.text
    assert "division" not in answer.text
    assert "ZeroDivisionError" not in answer.text


def test_the_next_step_is_to_try_again_where_that_may_help(failing: Browser) -> None:
    for status in (429, 500, 503):
        step = next_step(failing.get(f"/ours/{status}?q=a&page=2").text)
        assert step == (f"/ours/{status}?q=a&amp;page=2", "Try again")


def test_the_next_step_is_back_to_where_they_came_from(failing: Browser) -> None:
    here = {"Referer": "http://localhost/admin/api_keys?q=a"}
    for status in (400, 404, 503):
        answer = failing.post(f"/ours/{status}", headers=here)
        assert next_step(answer.text) == ("/admin/api_keys?q=a", "Go back")


def test_the_next_step_is_never_another_site(failing: Browser) -> None:
    for referrer in ("https://evil.example/login", "http://localhost.evil.example/", "evil"):
        answer = failing.get("/ours/404", headers={"Referer": referrer})
        assert next_step(answer.text) == ("/login", "Sign in")
    answer = failing.post("/ours/404", headers={"Referer": "http://localhost//evil.example/x"})
    assert next_step(answer.text) == ("/evil.example/x", "Go back")
    secret = {"Referer": "http://localhost/login?key=fm_org_" + "a" * 38}
    assert next_step(failing.get("/ours/404", headers=secret).text) == ("/login", "Sign in")


def test_without_anywhere_to_go_back_to_it_is_the_start(failing: Browser) -> None:
    assert next_step(failing.get("/nothing").text) == ("/login", "Sign in")
    assert next_step(failing.post("/ours/503").text) == ("/", "Back to the start")
    failing.sign_in(factories.member(factories.organization()))
    assert next_step(failing.get("/nothing").text) == ("/admin/api_keys", "Back to your keys")


def test_every_way_a_real_request_goes_wrong(failing: Browser) -> None:
    form = "application/x-www-form-urlencoded"
    failing.sign_in(factories.member(factories.organization(), "viewer"))
    for method, path, status, body in (
        ("GET", "/admin/audit_log?since=soon", 400, {}),
        ("GET", "/admin/team/new", 403, {}),
        ("GET", "/admin/api_keys/9", 404, {}),
        ("GET", "/logout", 405, {}),
        ("POST", "/login", 413, {"data": b"a=" + b"x" * 70_000, "content_type": form}),
        ("POST", "/login", 415, {"data": {"email": (io.BytesIO(b"x"), "x.txt")}}),
    ):
        answer = failing.open(path, method=method, **body)
        assert (answer.status_code, answer.text.count("<h1>")) == (status, 1), path
        assert next_step(answer.text)


@pytest.mark.parametrize(
    ("status", "framed"), [(400, True), (403, True), (404, True), (500, False)]
)
def test_who_is_signed_in_keeps_the_navigation(failing: Browser, status: int, framed: bool) -> None:
    stranger = failing.get(f"/ours/{status}").text
    failing.sign_in(factories.member(factories.organization()))
    assert ('aria-label="Main"' in failing.get(f"/ours/{status}").text) is framed
    assert 'aria-label="Main"' not in stranger

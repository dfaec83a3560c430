"""Who may open which route. Every view declares it; one guard reads it; none means nobody."""

import ipaddress
import logging
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar
from urllib.parse import unquote, unquote_plus, urlsplit
from wsgiref.types import WSGIEnvironment

from flask import Flask, current_app, g, redirect, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from werkzeug.exceptions import LengthRequired, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Request

from convene_keys import models
from convene_keys.audit.log import Actor, Origin, new_request_id
from convene_keys.config import Settings
from convene_keys.errors import Forbidden, Malformed, NotFound
from convene_keys.keys import tokens
from convene_keys.models import Role
from convene_keys.operations import runner, table
from convene_keys.operations.runner import Caller
from convene_keys.text import printable

log = logging.getLogger(__name__)
View = TypeVar("View", bound=Callable[..., object])

# What is read of a form and of an address, so that no field costs more than 5 ms before it is
# known to be wanted. A check-up ticks 1,000 keys; a note of 2,000 emoji has 8,000 bytes as %XX; an
# address has a line of 4,094 bytes.
VALUE_MAX = 16_000  # characters; the field itself says so of less that is too long
FORM_FIELDS_MAX, FORM_ESCAPES_MAX = 1_100, 9_000
QUERY_FIELDS_MAX, QUERY_ESCAPES_MAX = 100, 1_400
CONTENT_TYPE_MAX = 200


class Access(StrEnum):
    """`OPEN`: everyone, a key too. `PUBLIC`: everyone but a key. `KEY`: a key. Else a role.

    `MAKER`: a manager or an admin, if the organization lets them make keys.
    """

    OPEN = "open"
    PUBLIC = "public"
    KEY = "key"
    VIEWER = Role.VIEWER.value
    MANAGER = Role.MANAGER.value
    MAKER = models.MAKER
    ADMIN = Role.ADMIN.value


def access(level: Access) -> Callable[[View], View]:
    """Declare who may open a view."""

    def declare(view: View) -> View:
        view.access = level  # type: ignore[attr-defined]
        return view

    return declare


def declared(app: Flask, endpoint: str) -> Access | None:
    """Who may open what is at an endpoint; None means nobody."""
    if endpoint in app.extensions["key_app"]:
        return Access.KEY
    return getattr(app.view_functions[endpoint], "access", None)


def settings() -> Settings:
    configured: Settings = current_app.config["SETTINGS"]
    return configured


def origin() -> Origin:
    """From where Flask's request came."""
    if "origin" not in g:
        g.origin = origin_of(request.environ)
    found: Origin = g.origin
    return found


def origin_of(environ: WSGIEnvironment) -> Origin:
    """From where a request came, with an id of its own that the answer carries as well."""
    agent = printable(environ.get("HTTP_USER_AGENT", ""))[:256] or None
    return Origin(_address(environ.get("REMOTE_ADDR") or ""), agent, new_request_id())


@lru_cache(1_024)
def _address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:  # a socket file, or nonsense from a proxy
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def member_actor() -> Actor:
    """The signed-in member, as who acts."""
    return Actor.of_member(current_user.member, origin(), current_user.session_id)


def log_refusal(what: str, email: str | None = None) -> None:
    """A line about a refusal that no organization's audit log has, or not as the host needs it.

    The email, by default the signed-in member's, shows as a digest under the pepper: the same for
    the same address, and nothing to try addresses against.
    """
    if email is None and current_user.is_authenticated:
        email = current_user.member.email
    who = "nobody signed in"
    if email is not None:
        known = f"email {email.strip().lower()[:254]}"
        who = f"email {tokens.digest(known, settings().key_peppers[0]).hex()[:16]}"
    log.warning("refused: %s, %s, network %s", what, who, origin().network or "unknown")


def may(level: str) -> bool:
    """Whether the signed-in member's role covers `level`, a role or `maker`."""
    return bool(current_user.is_authenticated and current_user.member.may(level))


def presented_key(environ: WSGIEnvironment) -> str | None:
    """The key in a request's header; an empty one counts. None when there is no such header."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        return str(token.strip())
    return environ.get("HTTP_X_API_KEY")


def seeks_sign_in(path: str) -> bool:
    """Whether a client asks here how it may sign in, as some do with a key that was refused.

    Of that there is nothing, and it must hear so: told 401 again, or a page, it would go on to ask
    (RFC 9728, RFC 8414, RFC 7591).
    """
    return path == "/register" or path.startswith("/.well-known/")


def guard() -> ResponseReturnValue | None:
    """Before every request: keys only where they belong, people only where their role allows."""
    level = declared(current_app, request.endpoint) if request.endpoint else None
    refuse_key_outside_header(request, level if request.endpoint else Access.OPEN)
    if isinstance(request.routing_exception, RequestRedirect) or level is Access.OPEN:
        return None
    token = presented_key(request.environ)
    if token is not None and tokens.is_well_formed(token):
        # A method that no route takes, such as TRACE, comes here for the API's addresses too.
        path = "/" + request.path.removeprefix(f"{table.ROOT}/").lstrip("/")
        g.caller = Caller(current_app.extensions["site"], token, origin())
        problem = runner.record_refusal(request.method, path, g.caller)
        if seeks_sign_in(request.path) and problem.status in (401, 403):
            problem = NotFound(problem.detail)
        raise problem
    if request.endpoint is None or level is Access.PUBLIC:
        return None
    if not current_user.is_authenticated:
        return _to_sign_in()
    if level is None or not may(level):
        raise Forbidden("Your role doesn’t allow this. Please ask an admin of your organization.")
    return None


def _to_sign_in() -> ResponseReturnValue:
    """To sign in, and from there back to the page that they are on."""
    # Only who was signed in lost something, and a sign-out has come true.
    lost = request.method != "GET" and "_user_id" in session and request.endpoint != "auth.logout"
    address = url_for("auth.login", next=_page(), lost="yes" if lost else None)
    if request.headers.get("HX-Request") == "true":
        return "", 401, {"HX-Redirect": address}
    return redirect(address, 303)


def _page() -> str | None:
    """The path of the page that was asked for, or on which a form or HTMX asked, if it can be opened."""
    asks = request.headers.get("HX-Request") == "true"
    if request.method == "GET" and not asks:
        return request.full_path.rstrip("?")
    url = urlsplit((request.headers.get("HX-Current-URL") if asks else request.referrer) or "")
    page = f"{url.path}?{url.query}".rstrip("?")
    adapter = current_app.create_url_adapter(request)
    opens = adapter is not None and adapter.test(unquote(url.path), "GET")
    key = tokens.PATTERN.search(unquote_plus(page))
    return page if opens and not key and url.netloc == request.host else None


def refuse_key_outside_header(request: Request, level: Access | None) -> None:
    """A key in an address or a form ends up in histories, logs and databases: refuse it unread."""
    if _is_crowded(request.query_string, QUERY_FIELDS_MAX, QUERY_ESCAPES_MAX):
        raise Malformed("The address is not well-formed.")
    try:
        query = unquote_plus(request.query_string.decode())
    except UnicodeDecodeError:  # which would fail wherever the query is read
        raise Malformed("The address is not well-formed.") from None
    found = tokens.PATTERN.search(f"{request.path} {query}")
    # What a proxy asks has the headers of a body that stayed with the proxy.
    if not found and request.environ.get("CONTENT_TYPE") and request.path != table.VERIFY:
        found = tokens.PATTERN.search(_form(request, level))
    if found:
        raise Malformed(tokens.MISPLACED, code="key_outside_header")


def _form(request: Request, level: Access | None) -> str:
    """All that a form holds, read within its limits; nothing where the body is none.

    No page sends its form in parts, as those with files are: such a one is looked at and refused.
    Where none is read, what comes with a key is refused later, and recorded.
    """
    if len(request.environ["CONTENT_TYPE"]) > CONTENT_TYPE_MAX:  # of no body that anybody takes
        request.environ["CONTENT_TYPE"] = ""
        return ""
    in_parts = request.mimetype == "multipart/form-data"
    if not in_parts and request.mimetype != "application/x-www-form-urlencoded":
        return ""
    if request.content_length is None and request.headers.get("Transfer-Encoding"):
        raise LengthRequired  # of one that comes in chunks, what is too much would be cut off unseen
    body = request.get_data()
    if in_parts:
        text = body.decode("latin-1")
        if level not in (Access.OPEN, Access.KEY) and not tokens.PATTERN.search(text):
            raise UnsupportedMediaType
        return text
    if _is_crowded(body, FORM_FIELDS_MAX, FORM_ESCAPES_MAX):
        raise RequestEntityTooLarge
    texts = [text for pair in request.form.items(multi=True) for text in pair]
    if any(len(text) > VALUE_MAX for text in texts):
        raise RequestEntityTooLarge
    return " ".join(texts)


def _is_crowded(encoded: bytes, fields: int, escapes: int) -> bool:
    """Whether reading a query or a form would take long, by how many parts it has."""
    return encoded.count(b"&") > fields or encoded.count(b"%") > escapes

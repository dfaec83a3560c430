"""No input that is let through costs more than 5 ms of processor time, whatever is in it.

That is what `make soak` asks, of a machine that does nothing else. Each run asks for a tenth of it,
which no other process's noise can reach: what grows with the square of its length fails both.

Which fields there are is found out by asking: requests write down what the views read of them, and
the forms and the operations table say what they have. A field that is added is covered from then
on; one that is read by none of these requests fails here.
"""

import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from operator import itemgetter
from typing import Any, ClassVar

import pytest
from flask import Flask, Request, request
from sqlalchemy import delete, update
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.test import TestResponse

from convene_keys import clock, create_app
from convene_keys.accounts import organizations, passwords
from convene_keys.db.session import db
from convene_keys.http.access import Access, access, declared
from convene_keys.models import SignInAttempt, SignInSession
from convene_keys.operations.table import OPERATIONS, ROOT, Operation
from convene_keys.web.forms import Form
from tests import factories
from tests.conftest import Browser, new_browser
from tests.databases import PEPPER, SECRET_KEY, environ, hasten

BAR, ROUGH_BAR = 0.005, 0.05  # seconds
COUNTING = 0.06  # seconds that counting to a million takes where those bars are meant
LINE_MAX = 3_900  # bytes of a query that gunicorn takes: 4,094 with all that is around it
PASSWORDS = {"password", "current_password"}
FORM = "application/x-www-form-urlencoded"
PASSWORD = "velvet tractor umbrella ninety"
ARGUMENTS = {"kind": "endless", "filename": "app.css", "path": "nothing"}
PLAIN = {
    "email": "anna@example.org",
    "billing_email": "anna@example.org",
    "name": "Anna",
    "password": PASSWORD,
    "current_password": PASSWORD,
    "new_password": PASSWORD + " x",
    "role": "viewer",
    "tool": "other",
    "scope": "read",
    "grace": "24",
    "plan": "free",
    "timezone": "Europe/Berlin",
    "key_makers": "managers",
    "rotate_months": "6",
    "key": "1",
    "organization": "Harbour",
    "expires_in_days": "",
    "page": "1",
    "since": "2026-01-01",
}
STATUS = {"settings.change_organization": "live", "data.decide_application": "approved"}
MARKS, TIBETAN, LIGATURE = "\u0301\u0316", "\u0f75", "\ufdfa"
HARMLESS = ["x", "a", "qqqq", "x" * 2_100]  # a word that is nowhere makes a search read all
BAIT = [
    "x" * 16_000,
    *("a" + MARKS * (length // 2) for length in (98, 252, 398, 2_000, 15_998)),
    *(TIBETAN * length for length in (256, 2_000)),
    *(LIGATURE * length for length in (100, 254, 2_000)),
    "a@" + LIGATURE * 252,
    "a@" + "ü." * 120 + "de",
    "4(3690157821%2" * 18,  # letters as a guesser writes them
    "9" * 4_300,  # as many digits as Python reads
    "0" * 16_000,
    "[" * 16_000,
    "fm_org_" * 2_280,
    "a" + " " * 15_998 + "a",
]


class Asked(ImmutableMultiDict[str, str]):
    """A form or a query that writes down the names it is asked for."""

    names: ClassVar[set[str]] = set()

    def __getitem__(self, key: str) -> str:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def getlist(self, key: str, type: Any = None) -> list[Any]:
        self.names.add(key)
        return super().getlist(key, type)


class AskedRequest(Request):
    parameter_storage_class = Asked  # type: ignore[assignment]


class Stopwatch:
    """What the application needs for an answer, without what the test's browser does around it."""

    def __init__(self, wsgi_app: Callable[..., Iterable[bytes]]) -> None:
        self.took = 0.0  # seconds of this thread's processor time, of the last request
        self._wsgi_app = wsgi_app

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        began = time.thread_time()
        try:
            return self._wsgi_app(environ, start)
        finally:
            self.took = time.thread_time() - began


@cache
def slowness() -> float:
    """How much longer this machine takes than the one that the bars are for; 1 at the least."""

    def count() -> float:
        began, n = time.thread_time(), 0
        while n < 1_000_000:
            n += 1
        return time.thread_time() - began

    return max(1, min(count() for _ in range(3)) / COUNTING)


@dataclass
class Site:
    """An application, empty or with all there can be, and its admin's browser."""

    app: Flask
    empty: bool
    bar: float = ROUGH_BAR
    browser: Browser = field(init=False)
    stranger: Browser = field(init=False)
    stopwatch: Stopwatch = field(init=False)
    headers: dict[str, str] = field(default_factory=dict)
    code: str = organizations.setup_code(SECRET_KEY, PEPPER)
    fresh: bool = False
    moved: bool = True  # whether the last answer may have ended the session

    def __post_init__(self) -> None:
        self.app.config["WTF_CSRF_ENABLED"] = False
        self.app.request_class = AskedRequest
        self.stopwatch = Stopwatch(self.app.wsgi_app)
        self.app.wsgi_app = self.stopwatch  # type: ignore[method-assign]
        self.browser, self.stranger = new_browser(self.app), new_browser(self.app)
        if self.empty:
            return
        of = factories.organization()
        factories.market_data(of)
        hashed = passwords.hash_password(PASSWORD, [PEPPER])
        self.maya = factories.member(of, password_hash=hashed)
        other = factories.member(of)
        _, secret = factories.api_key(of, creator=self.maya)
        self.headers = {"X-API-Key": secret}
        self.ready(fresh=True, tries=False)
        made = self.browser.post(f"/admin/team/{other.id}/link").text
        found = re.search(r"welcome\?code=([\w.-]+)", made)
        assert found
        self.code = found[1]

    @property
    def rough(self) -> bool:
        return self.bar == ROUGH_BAR

    def timed(self, act: Callable[[], TestResponse]) -> tuple[float, int]:
        """Seconds of processor time for an answer, and its status."""
        status = act().status_code
        return self.stopwatch.took, status

    def ready(self, *, fresh: bool, tries: bool) -> None:
        """Sign in again where the last request signed out; with `tries` as if none were made."""
        if tries:
            db.session.execute(delete(SignInAttempt))
            db.session.commit()
        if not self.empty and (self.moved or fresh != self.fresh):
            self.browser.sign_in(self.maya)
            self.moved, self.fresh = False, fresh
            if not fresh:
                long_ago = clock.now() - timedelta(hours=2)
                db.session.execute(update(SignInSession).values(password_checked_at=long_ago))
                db.session.commit()


@dataclass(frozen=True)
class View:
    """A view that people open, by one method, and the names it reads of a form or a query."""

    endpoint: str
    method: str
    path: str
    level: Access

    def open(
        self, site: Site, values: Mapping[str, str], *, fresh: bool = True
    ) -> tuple[float, int]:
        """With these values, raw, in the form of a POST or the query of a GET."""
        site.ready(fresh=fresh, tries=not PASSWORDS.isdisjoint(values))
        browser = site.stranger if self.level is Access.PUBLIC else site.browser
        encoded = b"&".join(f"{name}=".encode() + _raw(value) for name, value in values.items())
        query = b"" if self.method == "POST" else encoded
        if "code" not in values:
            query = b"code=" + site.code.encode() + b"&" + query
        sent = {"data": encoded, "content_type": FORM} if self.method == "POST" else {}
        over = {"QUERY_STRING": query[:LINE_MAX].decode("latin-1")}
        took, status = site.timed(
            lambda: browser.open(self.path, method=self.method, environ_overrides=over, **sent)
        )
        site.moved = status < 400 and self.method == "POST"
        return took, status

    def fields(self, site: Site) -> set[str]:
        Asked.names = set()
        self.open(site, {"x": "x"}, fresh=False)
        first = Asked.names - {"x"}
        Asked.names = set()  # what is read only once the first are there
        self.open(site, {name: self.plain(name) for name in first}, fresh=False)
        return (first | Asked.names) - {"csrf_token"}

    def plain(self, name: str) -> str:
        if name == "status":
            return STATUS.get(self.endpoint, "all")
        return PLAIN.get(name, "")


def _raw(value: str) -> bytes:
    """As short as can be sent, so that most of it goes through."""
    for reserved in "%&+=":
        value = value.replace(reserved, f"%{ord(reserved):X}")
    return value.replace(" ", "+").encode()


Act = Callable[[], tuple[float, int]]


def _slow(
    site: Site, harmless: Iterable[Act], cases: Mapping[str, Act], bar: float
) -> Iterator[str]:
    """Those that take longer than the `harmless` by more than `bar`, each at its best of some.

    Each answer has its own cost, a page that refuses more than a redirect: what is harmless comes
    in all the ways that it may be answered.
    """
    bar *= slowness()
    tries = 1 if site.rough else 20  # a busy machine counts some of others' time as ours

    def least(act: Act) -> float:
        return min(act()[0] for _ in range(min(tries, 4)))

    plain, allowed = max(((act, least(act)) for act in harmless), key=itemgetter(1))
    for name, worst in cases.items():
        most = worst()[0]
        for _ in range(tries + 2):
            if most - allowed > bar:
                allowed, most = min(allowed, plain()[0]), min(most, worst()[0])
        if most - allowed > bar:
            yield f"{name}: {(most - allowed) * 1_000:.0f} ms"


def _baits(site: Site) -> list[str]:
    return (
        [bait for bait in BAIT if len(bait) >= 4_000] if site.rough else BAIT
    )  # what can reach it


def _harmless(site: Site) -> list[str]:
    return HARMLESS[2:] if site.rough else HARMLESS


def _views(app: Flask) -> Iterator[View]:
    for rule in app.url_map.iter_rules():
        level = declared(app, rule.endpoint)
        if level in (Access.KEY, None):
            continue
        built = rule.build({name: ARGUMENTS.get(name, 1) for name in rule.arguments})
        assert built
        for method in {"GET", "POST"} & (rule.methods or set()):
            yield View(rule.endpoint, method, built[1], level)


def _too_slow(site: Site, view: View) -> Iterator[str]:
    """The fields of a view that some bait makes slow."""
    fields = view.fields(site)
    for name in fields:

        def send(value: str, name: str = name) -> Act:
            values = {other: view.plain(other) for other in fields} | {name: value}
            return lambda: view.open(site, values, fresh=name != "current_password")

        cases = {
            f"{view.endpoint} {name} {bait[:9]!r} {len(bait)}": send(bait) for bait in _baits(site)
        }
        yield from _slow(site, map(send, _harmless(site)), cases, site.bar)


@pytest.fixture(params=[ROUGH_BAR, pytest.param(BAR, marks=pytest.mark.soak)])
def bar(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(params=[False, True], ids=["full", "empty"])
def site(request: pytest.FixtureRequest, sqlite_url: str, bar: float) -> Iterator[Site]:
    app = create_app(environ(sqlite_url, KEY_RATE_LIMIT="9999999/minute"))
    with app.app_context():
        hasten(db.engine)
        yield Site(app, request.param, bar)
        db.session.remove()
        db.engine.dispose()


def _is_here(view: View, site: Site) -> bool:
    """The way in of an empty site is its set-up; all else needs somebody to sign in."""
    return site.empty == (view.endpoint in ("auth.setup", "auth.set_up"))


def test_no_field_of_a_page_is_slow(site: Site) -> None:
    views = [view for view in _views(site.app) if _is_here(view, site)]
    slow = [found for view in views for found in _too_slow(site, view)]
    assert slow == []


def _forms(of: type[Form] = Form) -> Iterator[type[Form]]:
    for form in of.__subclasses__():
        yield form
        yield from _forms(form)


def test_every_form_is_read_by_one_of_these_requests(sqlite_url: str) -> None:
    found: set[str] = set()
    for empty in (True, False):
        app = create_app(environ(sqlite_url))
        with app.app_context():
            site = Site(app, empty)
            for view in _views(app):
                if view.method == "POST" and _is_here(view, site):
                    found |= {f"{view.endpoint.partition('.')[0]} {n}" for n in view.fields(site)}
            db.session.remove()
            db.engine.dispose()
    names = {
        f"{form.__module__.rpartition('.')[2]} {name}"
        for form in _forms()
        for name in vars(form)
        if hasattr(getattr(form, name), "field_class")
        and form.__module__.startswith("convene_keys")
    }
    read = {name.split()[1] for name in found}
    shared = {f"{room} {name}" for room in ("forms", "reauthentication") for name in read}
    shown_only = {name for name in names if name.startswith("styleguide ")}
    assert names - found - shared - shown_only == set()


def test_a_careless_field_is_found(sqlite_url: str) -> None:
    app = create_app(environ(sqlite_url))

    @access(Access.PUBLIC)
    def careless() -> str:
        return unicodedata.normalize("NFKC", request.form.get("new", ""))

    app.add_url_rule("/careless", "careless", careless, methods=["POST"])
    with app.app_context():
        site = Site(app, True)
        (view,) = (view for view in _views(app) if view.endpoint == "careless")
        assert next(_too_slow(site, view)).split()[:2] == ["careless", "new"]
        db.session.remove()
        db.engine.dispose()


# What a key sends -----------------------------------------------------------------------------


def _rpc(site: Site, method: str, params: Mapping[str, Any]) -> Act:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return _post(site, "POST", "/mcp", json.dumps(message, ensure_ascii=False))


def _post(site: Site, method: str, path: str, body: str | bytes) -> Act:
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    kind = "application/json"
    return lambda: site.timed(
        lambda: site.browser.open(
            path, method=method, data=data, content_type=kind, headers=site.headers
        )
    )


def _get(site: Site, path: str, query: bytes) -> Act:
    over = {"QUERY_STRING": query[:LINE_MAX].decode("latin-1")}
    return lambda: site.timed(
        lambda: site.browser.get(path, environ_overrides=over, headers=site.headers)
    )


def _call(site: Site, way: str, operation: Operation, given: Mapping[str, Any]) -> Any:
    """A call of an operation for the first of what it is about."""
    needed = {"status": "approved"} if operation.name == "update_vendor_application" else {}
    if way == "mcp":
        one = {"id": 1} if "{id}" in operation.path else {}
        arguments = {**one, **needed, **given}
        return _rpc(site, "tools/call", {"name": operation.name, "arguments": arguments})
    path = ROOT + operation.path.replace("{id}", "1")
    if operation.method != "GET":
        body = json.dumps({**needed, **given}, ensure_ascii=False)
        return _post(site, operation.method, path, body)
    query = b"&".join(f"{name}=".encode() + _raw(str(value)) for name, value in given.items())
    return _get(site, path, query)


@pytest.mark.parametrize("site", [False], indirect=True)
@pytest.mark.parametrize("way", ["rest", "mcp"])
def test_no_input_of_an_operation_is_slow(site: Site, way: str) -> None:
    baits = [*_baits(site), 10**4_000, [[]] * 900, {str(n): n for n in range(900)}]
    slow: list[str] = []
    for operation in OPERATIONS:
        for name in operation.input.model_fields:
            harmless = [_call(site, way, operation, {name: value}) for value in _harmless(site)]
            cases = {
                f"{operation.name} {name} {str(bait)[:9]}": _call(
                    site, way, operation, {name: bait}
                )
                for bait in baits
            }
            slow += _slow(site, harmless, cases, site.bar)
    assert slow == []


@pytest.mark.parametrize("site", [False], indirect=True)
def test_no_body_or_query_is_slow_as_a_whole(site: Site) -> None:
    write, login = f"{ROOT}/vendor_applications/1", ("POST", "/login", b"email=x&password=x")
    many = {f"{n:x}": 1 for n in range(2_500)}
    client = {"name": "x", "version": "1"}
    hello: dict[str, Any] = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": client,
    }

    def form(body: bytes, kind: str = FORM) -> Act:
        return lambda: site.timed(
            lambda: site.stranger.open("/login", method="POST", data=body, content_type=kind)
        )

    part = b'--b\r\nContent-Disposition: form-data; name="f"'
    in_parts = "multipart/form-data; boundary=b"
    plain_write = _post(site, "PATCH", write, '{"status":"approved"}')
    plain_hello, plain_call = (
        _rpc(site, "initialize", hello),
        _rpc(site, "tools/call", {"name": "x"}),
    )
    plain_list = _get(site, f"{ROOT}/bookings", b"")
    refused_page = _get(site, "/login", b"next=\xff")  # as these are, by a page that says so
    plain_form = form(login[2])
    cases = {
        "deep": (plain_write, _post(site, "PATCH", write, '{"x":' + "[" * 30_000)),
        "wide": (plain_write, _post(site, "PATCH", write, '{"x":[' + "[]," * 10_000 + "1]}")),
        "names": (plain_write, _post(site, "PATCH", write, json.dumps(many))),
        "digits": (plain_write, _post(site, "PATCH", write, '{"x":[' + ",".join(["9" * 4_300] * 7) + "]}")),
        "fraction": (plain_write, _post(site, "PATCH", write, '{"x":' + "1" * 30_000 + ".5}")),
        "halves": (plain_write, _post(site, "PATCH", write, '{"note":"' + "\\ud800" * 5_000 + '"}')),
        "mcp deep": (plain_hello, _post(site, "POST", "/mcp", "[" * 60_000)),
        "mcp client": (plain_hello, _rpc(site, "initialize", hello | {"clientInfo": client | {"name": MARKS * 9_000}})),
        "mcp icons": (plain_hello, _rpc(site, "initialize", hello | {"clientInfo": client | {"icons": [{}] * 12_000}})),
        "mcp wrong": (plain_hello, _rpc(site, "initialize", hello | {"clientInfo": client | {"icons": [{}] * 1_400}})),
        "mcp names": (plain_hello, _rpc(site, "initialize", hello | {"capabilities": {"experimental": {n: {} for n in many}}})),
        "mcp tool": (plain_call, _rpc(site, "tools/call", {"name": "x" * 60_000})),
        "mcp path": (plain_call, _rpc(site, "tools/call", {"name": "/" * 60_000})),
        "query parts": (plain_list, _get(site, f"{ROOT}/bookings", b"a&" * 2_000)),
        "query names": (plain_list, _get(site, f"{ROOT}/bookings", "&".join(f"{n}=" for n in many).encode())),
        "query escapes": (refused_page, _get(site, "/login", b"next=" + b"%" * 4_000)),
        "query page": (refused_page, _get(site, "/login", b"a&" * 2_000)),
        "form parts": (plain_form, form(b"a&" * 30_000)),
        "form escapes": (plain_form, form(b"email=" + b"%" * 64_000)),
        "form type": (plain_form, form(b"x", FORM + ";a=b" * 1_900)),
        "parts": (plain_form, form(part + b"\r\n\r\nx\r\n" + part * 1_000, in_parts)),
        "parts' headers": (plain_form, form(part + b"\r\na:b" * 12_000 + b"\r\n\r\nx\r\n--b--\r\n", in_parts)),
        "parts' words": (plain_form, form(part + b';a="' + b'\\"' * 30_000 + b'"\r\n\r\nx\r\n--b--\r\n', in_parts)),
    }  # fmt: skip
    slow = [
        found
        for name, (plain, act) in cases.items()
        for found in _slow(site, [plain], {name: act}, site.bar)
    ]
    assert slow == []

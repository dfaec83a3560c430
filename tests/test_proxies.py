"""Keys in front of any site: real nginx and real Caddy, configured as `deploy/forward-auth/` says."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import pytest
from flask import Flask
from sqlalchemy import select

from convene_keys import create_app
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.keys import lifecycle
from convene_keys.models import ApiKey, AuditEvent, Organization
from tests import factories
from tests.conftest import challenge
from tests.databases import environ
from tests.proxies import PROXIES, Proxy, Site
from tests.servers import Server, free_port

HANDED_ON = (
    "X-Convene-Organization",
    "X-Convene-Key-Id",
    "X-Convene-Key-Name",
    "X-Convene-Scope",
)
LIMIT = 40


@dataclass(frozen=True)
class House:
    """Convene Keys as it runs in earnest, a site, and each proxy in front of it."""

    app: Flask
    server: Server
    site: Site
    proxies: dict[str, Proxy]


@pytest.fixture(scope="module")
def house(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    copy(sqlite_template, folder / "test.db")
    url = f"sqlite:///{folder}/test.db"
    settings = {"TRUSTED_PROXIES": "1", "KEY_RATE_LIMIT": f"{LIMIT}/minute"}
    app = create_app(environ(url))
    with ExitStack() as stack:
        server = stack.enter_context(Server(url, folder / "server.log", workers=1, **settings))
        site = stack.enter_context(Site())
        proxies = {
            name: stack.enter_context(kind(folder / name, site.port, server.port))
            for name, kind in PROXIES.items()
        }
        yield House(app, server, site, proxies)
    with app.app_context():
        db.engine.dispose()


@pytest.fixture(params=list(PROXIES))
def proxy(request: pytest.FixtureRequest, house: House) -> Proxy:
    house.site.asked.clear()
    return house.proxies[request.param]


@pytest.fixture
def organization(house: House) -> Iterator[Organization]:
    with house.app.app_context():
        yield factories.organization()
        db.session.remove()


@pytest.fixture
def key(organization: Organization) -> tuple[ApiKey, str]:
    return factories.api_key(organization, "Zoë’s laptop", creator=factories.member(organization))


@pytest.fixture
def reader(organization: Organization) -> tuple[ApiKey, str]:
    return factories.api_key(
        organization, "Reader", creator=factories.member(organization), scope="read"
    )


def _events(of: Organization) -> list[AuditEvent]:
    db.session.rollback()
    mine = select(AuditEvent).where(AuditEvent.organization_id == of.id)
    return list(db.session.scalars(mine.order_by(AuditEvent.id)))


def test_nobody_passes_without_a_key(proxy: Proxy, house: House) -> None:
    for token in (None, "", "fm_org_" + "0" * 38):
        answer = proxy.ask("GET", "/", token)
        assert answer.status == 401
        code = "key_unknown" if token else "key_missing"
        assert answer.headers["WWW-Authenticate"] == challenge(code)
    assert house.site.asked == []


def test_site_learns_who_asks_and_nothing_of_the_key(
    proxy: Proxy, organization: Organization, reader: tuple[ApiKey, str], key: tuple[ApiKey, str]
) -> None:
    for (row, secret), name, scope in (
        (reader, "Reader", "read"),
        (key, "Zo%C3%AB%E2%80%99s%20laptop", "read_write"),
    ):
        for headers in ([("Authorization", f"Bearer {secret}")], [("X-API-Key", secret)]):
            answer = proxy.ask("GET", "/reports?page=2", headers=headers)
            assert answer.status == 200
            handed_on = [answer.seen(header) for header in HANDED_ON]
            assert handed_on == [[organization.slug], [str(row.id)], [name], [scope]]
            assert secret not in answer.text
            assert answer.seen("Authorization") == answer.seen("X-API-Key") == []


def test_every_request_is_recorded_under_the_keys_name_without_its_query(
    proxy: Proxy, organization: Organization, key: tuple[ApiKey, str]
) -> None:
    asked = [("GET", "/a%20b?token=hush"), ("HEAD", "/h"), ("OPTIONS", "/o"), ("POST", "/p?x=hush")]
    for method, path in asked:
        assert proxy.ask(method, path, key[1], [("User-Agent", "reporter/1")]).status == 200
    events = _events(organization)
    assert [(e.action, e.outcome, e.key_name, e.target_name) for e in events] == [
        ("proxy.request", "ok", "Zoë’s laptop", name)
        for name in ("GET /a b", "HEAD /h", "OPTIONS /o", "POST /p")
    ]
    assert {(e.ip, e.user_agent, str(e.detail)) for e in events} == {
        ("127.0.0.1", "reporter/1", "{}")
    }
    assert "hush" not in proxy.logs()


def test_address_in_the_log_is_the_one_that_the_proxy_saw(
    proxy: Proxy, organization: Organization, key: tuple[ApiKey, str]
) -> None:
    assert proxy.ask("GET", "/", key[1], [("X-Forwarded-For", "203.0.113.9")]).status == 200
    assert _events(organization)[-1].ip == "127.0.0.1"


def test_client_cannot_say_who_it_is(
    proxy: Proxy, organization: Organization, reader: tuple[ApiKey, str]
) -> None:
    row, secret = reader
    right = [[organization.slug], [str(row.id)], ["Reader"], ["read"]]
    for forged in (
        [(name, "forged") for name in HANDED_ON],
        [(name.lower(), "forged") for name in HANDED_ON * 2],
        [(name.replace("-", "_"), "forged") for name in HANDED_ON],
        [("Connection", f"close, {', '.join(HANDED_ON)}")],
    ):
        answer = proxy.ask("GET", "/", secret, forged)
        assert [answer.seen(name) for name in HANDED_ON] == right
        assert "forged" not in answer.text


def test_key_that_may_only_read_changes_nothing(
    proxy: Proxy, house: House, organization: Organization, reader: tuple[ApiKey, str]
) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert proxy.ask(method, "/reports/1", reader[1], body=b"x").status == 403
    assert house.site.asked == []
    assert {(e.outcome, str(e.detail)) for e in _events(organization)} == {
        ("denied", "{'code': 'scope_required'}")
    }


def test_get_cannot_be_made_a_change_on_the_way(proxy: Proxy, reader: tuple[ApiKey, str]) -> None:
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        for written in (name, name.replace("-", "_")):
            answer = proxy.ask("GET", "/", reader[1], [(written, "DELETE")])
            assert answer.status == 200
            assert answer.seen(name) == []


def test_body_arrives_whole(proxy: Proxy, key: tuple[ApiKey, str]) -> None:
    form = ("Content-Type", "application/x-www-form-urlencoded")
    for body in (b"a=1&b=2", b"text=" + b"x" * 200_000):
        for chunked in (False, True):
            answer = proxy.ask("POST", "/orders", key[1], [form], body, chunked=chunked)
            assert (answer.status, answer.body) == (200, body.decode())


def test_revoked_key_does_not_pass_once_more(
    proxy: Proxy, house: House, organization: Organization
) -> None:
    actor = Actor.system(organization.id)
    for number in range(3):
        row, secret = factories.api_key(organization, f"Key {number}")
        assert {proxy.ask("GET", "/", secret).status for _ in range(4)} == {200}
        lifecycle.revoke(actor, row.id)
        house.site.asked.clear()
        assert {proxy.ask("GET", "/", secret).status for _ in range(4)} == {401}
        assert house.site.asked == []
    refused = [e.key_name for e in _events(organization) if e.action == "key.refused"]
    assert refused == ["Key 0", "Key 1", "Key 2"]


def test_each_organization_has_its_own_name_and_log(
    proxy: Proxy, organization: Organization, key: tuple[ApiKey, str]
) -> None:
    elsewhere = factories.organization("Elsewhere")
    row, secret = factories.api_key(elsewhere, "Zoë’s laptop")
    answer = proxy.ask("GET", "/theirs", secret)
    assert answer.seen("X-Convene-Organization") == [elsewhere.slug]
    assert answer.seen("X-Convene-Key-Id") == [str(row.id)] != [str(key[0].id)]
    assert [e.target_name for e in _events(elsewhere)] == ["GET /theirs"]
    assert _events(organization) == []


def test_client_cannot_say_what_it_asks(
    proxy: Proxy, house: House, organization: Organization, reader: tuple[ApiKey, str]
) -> None:
    """Whichever pair of headers is forged, whole, in part, twice or written otherwise."""
    method, uri = ("X-Original-Method", "GET"), ("X-Original-URI", "/harmless")
    forwarded = [("X-Forwarded-Method", "GET"), ("X-Forwarded-Uri", "/harmless")]
    for forged in (
        [method],
        [method, uri],
        forwarded[:1],
        forwarded,
        [method, uri, *forwarded],
        [method, method, *forwarded, *forwarded],
        [(name.replace("-", "_"), value) for name, value in (method, uri, *forwarded)],
        [*forwarded, ("Connection", "X-Forwarded-Method, X-Forwarded-Uri, X-Original-Method")],
    ):
        assert proxy.ask("POST", "/harm", reader[1], forged).status == 403, forged
        assert proxy.ask("GET", "/fine", reader[1], forged).status == 200, forged
    assert set(house.site.asked) == {"GET /fine"}
    assert {e.target_name for e in _events(organization)} == {"POST /harm", "GET /fine"}


def test_address_does_not_become_a_header(
    proxy: Proxy, house: House, reader: tuple[ApiKey, str]
) -> None:
    path = "/a%0d%0aX-Convene-Scope:%20read_write%0d%0aX-Mine:%20b"
    answer = proxy.ask("GET", path, reader[1])
    assert (answer.status, answer.seen("X-Convene-Scope"), answer.seen("X-Mine")) == (
        200,
        ["read"],
        [],
    )
    assert house.site.asked == [f"GET {path}"]


def test_key_in_an_address_is_refused_and_kept_nowhere(
    proxy: Proxy, house: House, organization: Organization, key: tuple[ApiKey, str]
) -> None:
    row, secret = key
    for path in (f"/?key={secret}", f"/{secret}", f"/?key={secret.replace('_', '%5F')}"):
        assert proxy.ask("GET", path, secret).status == 403
        assert proxy.ask("GET", path).status == 401
    assert house.site.asked == []
    events = _events(organization)
    assert {str(e.detail) for e in events} == {"{'code': 'key_outside_header'}"}
    assert [e.target_name for e in events] == ["GET /", f"GET /{row.hint}…", "GET /"]
    assert secret not in house.server.log.read_text()


def test_too_many_calls_are_told_as_such(
    proxy: Proxy, house: House, key: tuple[ApiKey, str]
) -> None:
    for _ in range(LIMIT * 5):  # each of two workers counts for itself, and the minute may turn
        answer = proxy.ask("GET", "/", key[1])
        if answer.status != 200:
            break
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_error_of_the_site_is_its_own(proxy: Proxy, key: tuple[ApiKey, str]) -> None:
    answer = proxy.ask("GET", "/broken", key[1])
    assert answer.status == 500
    assert answer.seen("X-Convene-Scope") == ["read_write"]


def test_question_can_not_be_asked_from_outside(house: House, key: tuple[ApiKey, str]) -> None:
    house.site.asked.clear()
    assert house.proxies["nginx"].ask("GET", "/_convene_verify", key[1]).status == 404
    assert house.site.asked == []


@pytest.mark.parametrize("name", list(PROXIES))
def test_nobody_passes_while_there_is_nobody_to_ask(
    name: str, tmp_path: Path, key: tuple[ApiKey, str]
) -> None:
    with Site() as site, PROXIES[name](tmp_path / name, site.port, free_port()) as proxy:
        answer = proxy.ask("GET", "/?hush", headers=[("X-API-Key", key[1])])
        assert answer.status == {"nginx": 503, "caddy": 502}[name]
        assert site.asked == []
        assert key[1] not in proxy.logs()


@pytest.mark.parametrize("name", list(PROXIES))
def test_key_is_in_no_log_when_the_site_is_away(
    name: str, house: House, tmp_path: Path, key: tuple[ApiKey, str]
) -> None:
    with PROXIES[name](tmp_path / name, free_port(), house.server.port) as proxy:
        for header in ("X-API-Key", "Authorization"):
            value = key[1] if header == "X-API-Key" else f"Bearer {key[1]}"
            assert proxy.ask("GET", "/", headers=[(header, value)]).status == 502
        assert "502" in proxy.logs()
        assert key[1] not in proxy.logs()

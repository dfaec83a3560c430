"""Health, readiness, and what is answered while the database is away."""

from collections.abc import Iterator

import pytest
from flask import Flask

from convene_keys import create_app
from convene_keys.db.session import db
from tests import factories
from tests.conftest import Browser, new_browser
from tests.databases import Postgres, environ


def test_healthz_and_readyz_answer_ok(client: Browser) -> None:
    assert (client.get("/healthz").status_code, client.get("/healthz").text) == (200, "ok")
    assert (client.get("/readyz").status_code, client.get("/readyz").text) == (200, "ok")


@pytest.fixture
def away(postgres: Postgres) -> Iterator[tuple[Flask, str]]:
    """An app on a PostgreSQL database that the test may take away, and its name."""
    name = postgres.create()
    app = create_app(environ(postgres.url(name)))
    with app.app_context():
        yield app, name
        db.session.remove()
        db.engine.dispose()
    postgres.drop(name)


def test_a_database_that_is_away_gives_503_and_comes_back_by_itself(
    away: tuple[Flask, str], postgres: Postgres
) -> None:
    app, name = away
    of = factories.organization()
    _, token = factories.api_key(of)
    client = new_browser(app)
    client.sign_in(factories.member(of))
    db.session.remove()
    key = {"Authorization": f"Bearer {token}"}
    assert client.get("/admin/api_keys").status_code == 200

    postgres.lock(name, out=True)

    for path in ("/login", "/admin/api_keys", "/readyz", "/no/such/page"):
        page = client.get(path)
        if path != "/no/such/page":
            assert (page.status_code, page.headers["Retry-After"]) == (503, "5"), path
            assert "try again in a moment" in page.text
    document = client.get("/api/v1/admin/me", headers=key)
    assert (document.status_code, document.json["code"]) == (503, "unavailable")
    assert document.headers["Retry-After"] == "5"
    assert client.get("/healthz").status_code == 200

    postgres.lock(name, out=False)

    assert client.get("/readyz").status_code == 200
    assert client.get("/admin/api_keys").status_code == 200
    assert client.get("/api/v1/admin/me", headers=key).status_code == 200

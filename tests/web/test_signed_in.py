"""Who is signed in: the cookie that says so, and for how long it does."""

import pytest

from convene_keys import create_app
from convene_keys.db.session import db
from tests import factories
from tests.conftest import Clock, new_browser
from tests.databases import environ
from tests.web.test_auth import PASSWORD, is_signed_in, member_with_password

pytestmark = pytest.mark.on_sqlite


@pytest.mark.parametrize(
    ("base_url", "name", "secure"),
    [("http://127.0.0.1:8000", "convene", False), ("https://keys.example", "__Host-convene", True)],
)
def test_the_cookie_is_marked_for_this_site_alone(sqlite_url, base_url, name, secure):
    app = create_app(environ(sqlite_url, BASE_URL=base_url))
    app.config["WTF_CSRF_ENABLED"] = False
    with app.app_context():
        member_with_password(email="maya@example.org")
        client = new_browser(app)

        answer = client.post(
            "/login", data={"email": "maya@example.org", "password": PASSWORD}, base_url=base_url
        )

        (cookie,) = answer.headers.getlist("Set-Cookie")
        value, *flags = cookie.split("; ")
        assert value.startswith(f"{name}=")
        assert set(flags) == {"HttpOnly", "Path=/", "SameSite=Lax"} | (
            {"Secure"} if secure else set()
        )
        assert ("Strict-Transport-Security" in answer.headers) is secure
        db.engine.dispose()


def test_session_ends_when_idle(client, fake_clock: Clock):
    client.sign_in(factories.member(factories.organization()))

    fake_clock.advance(minutes=119)
    assert is_signed_in(client)
    fake_clock.advance(minutes=119)
    assert is_signed_in(client)
    fake_clock.advance(minutes=120)
    assert not is_signed_in(client)


def test_session_ends_after_a_day_however_busy(client, fake_clock: Clock):
    client.sign_in(factories.member(factories.organization()))

    for _ in range(23):
        fake_clock.advance(hours=1)
        assert is_signed_in(client)
    fake_clock.advance(hours=1)
    assert not is_signed_in(client)


def test_a_changed_cookie_is_no_cookie(client):
    client.sign_in(factories.member(factories.organization()))
    value = client.get_cookie("convene").value
    client.set_cookie("convene", value[:-3] + ("aaa" if value[-3:] != "aaa" else "bbb"))

    assert not is_signed_in(client)

"""From an empty page to a first key that has been used."""

from datetime import timedelta

import pytest

from convene_keys.db.session import db
from convene_keys.models import ApiKey
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}
POLLS = 'hx-trigger="every 2s"'


@pytest.fixture
def made(client: Browser, fake_clock: Clock) -> tuple[ApiKey, str]:
    """A new key of Maya, who is signed in, and its secret."""
    organization = factories.organization()
    factories.market_data(organization)
    maya = factories.member(organization, "manager", "Maya")
    client.sign_in(maya)
    return factories.api_key(organization, "Claude", creator=maya)


def ask(client: Browser, key: ApiKey, *, htmx: bool = True):
    return client.get(f"/admin/api_keys/{key.id}/first_call", headers=HTMX if htmx else {})


def use(client: Browser, secret: str, path: str = "bookings") -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    return client.get(f"/api/v1/admin/{path}", headers=headers).status_code


def test_an_empty_page_teaches_the_circle(client: Browser) -> None:
    client.sign_in(factories.member(factories.organization(), "manager"))
    text = client.get("/admin/api_keys").text
    places = [text.index(step) for step in ("Create a key for", "Paste it into", "See its first")]
    assert places == sorted(places)
    assert "Create your first key" in text
    assert "first-call" not in text


def test_a_viewer_is_told_who_can_begin(client: Browser) -> None:
    client.sign_in(factories.member(factories.organization(), "viewer"))
    text = client.get("/admin/api_keys").text
    assert "A market manager or admin can create one." in text
    assert "Create your first key" not in text


@pytest.mark.parametrize("tool", ["claude", "chatgpt", "developer", "other"])
def test_the_page_that_shows_a_key_waits_for_its_first_call(client: Browser, tool: str) -> None:
    client.sign_in(factories.member(factories.organization(), "manager"))
    text = client.post("/admin/api_keys", data={"name": "Mine", "tool": tool}).text
    assert POLLS in text
    assert "Waiting for the first call" in text
    assert ("curl http" in text) == (tool in ("developer", "other"))
    assert 'href="/help/keys#keep"' in text


def test_waiting_ends_with_the_first_call(client: Browser, made: tuple[ApiKey, str]) -> None:
    key, secret = made
    assert (ask(client, key).status_code, ask(client, key).data) == (204, b"")
    assert POLLS in client.get("/admin/api_keys").text
    assert use(client, secret) == 200
    for answer in (ask(client, key), client.get("/admin/api_keys"), ask(client, key, htmx=False)):
        assert answer.status_code == 200
        assert "Connected" in answer.text
        assert "list_bookings" in answer.text
        assert ">12:00</time>" in answer.text
        assert POLLS not in answer.text


def test_the_first_call_stays_the_first(
    client: Browser, made: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    key, secret = made
    use(client, secret)
    fake_clock.advance(minutes=3)
    use(client, secret, "vendors")
    assert "list_bookings" in ask(client, key).text
    assert ">12:00</time>" in ask(client, key).text


def test_a_first_call_that_was_refused_is_told_as_such(
    client: Browser, made: tuple[ApiKey, str]
) -> None:
    key, secret = made
    assert use(client, secret, "billing") == 403
    assert "tried to reach" in ask(client, key).text


def test_after_ten_minutes_nobody_waits(
    client: Browser, made: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    key, _ = made
    fake_clock.advance(minutes=9, seconds=59)
    assert ask(client, key).status_code == 204
    fake_clock.advance(seconds=1)
    answer = ask(client, key)
    assert answer.status_code == 200
    assert "has not called yet" in answer.text
    assert "Check now" in answer.text
    assert POLLS not in answer.text
    assert "first-call" not in client.get("/admin/api_keys").text


def test_nobody_waits_for_a_revoked_key(
    client: Browser, made: tuple[ApiKey, str], fake_clock: Clock
) -> None:
    key, _ = made
    key.revoked_at = key.released_at = fake_clock() + timedelta(0)
    db.session.commit()
    assert ask(client, key).status_code == 200
    assert POLLS not in ask(client, key).text
    assert "first-call" not in client.get("/admin/api_keys").text


def test_without_javascript_there_is_a_page_to_ask_on(
    client: Browser, made: tuple[ApiKey, str]
) -> None:
    key, _ = made
    text = ask(client, key, htmx=False).text
    assert "<html" in text
    assert "Waiting for the first call" in text
    assert "Check again" in text
    assert "<noscript>" in client.get("/admin/api_keys").text


def test_a_list_that_is_narrowed_leaves_the_line_alone(
    client: Browser, made: tuple[ApiKey, str]
) -> None:
    assert "first-call" not in client.get("/admin/api_keys?q=c", headers=HTMX).text

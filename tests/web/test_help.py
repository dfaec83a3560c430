"""The help page: for everybody, with nobody's data."""

import re

import pytest

from tests import factories
from tests.conftest import Browser

pytestmark = pytest.mark.on_sqlite


def test_help_is_read_without_signing_in(client: Browser) -> None:
    answer = client.get("/help/keys")
    assert answer.status_code == 200
    for habit in ("One key for each device", "3 to 6 months", "Revoke it.", "password manager"):
        assert habit in answer.text
    assert "mailto:hello@convene.markets" in answer.text
    assert 'href="/login"' in answer.text


def test_help_keeps_the_way_back_of_who_is_signed_in(client: Browser) -> None:
    client.sign_in(factories.member(factories.organization(), name="Maya"))
    text = client.get("/help/keys").text
    assert "Audit log</a>" in text
    assert "Maya" in text


def test_what_its_contents_link_to_is_on_the_page(client: Browser) -> None:
    text = client.get("/help/keys").text
    links = re.findall(r'href="#([a-z]+)"', text)
    assert len(links) > 5
    for link in links:
        assert f'id="{link}"' in text, link


@pytest.mark.parametrize("path", ["/admin/api_keys", "/admin/api_keys/new", "/login"])
def test_other_pages_lead_to_it(client: Browser, path: str) -> None:
    if path != "/login":
        client.sign_in(factories.member(factories.organization()))
    assert 'href="/help/keys"' in client.get(path).text

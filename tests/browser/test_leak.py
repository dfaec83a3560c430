"""The leak walk-through on a bad day: what the key changed is undone where it is told of."""

from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from convene_keys import create_app
from convene_keys.audit.log import Origin
from convene_keys.db.session import db
from tests import factories
from tests.browser.conftest import PATIENCE, listen
from tests.browser.season import signed
from tests.databases import environ
from tests.servers import Server


@dataclass(frozen=True)
class Incident:
    """The walk-through's address, and the cookies of Maya and Sam, who both look at it."""

    address: str
    maya: list[Any]
    sam: list[Any]


@pytest.fixture
def incident(server_database: str, server: Server) -> Incident:
    """A stranger approved three bookings with a key; the last of them was paid since."""
    app = create_app(environ(server_database))
    with app.app_context():
        organization = factories.organization()
        factories.market_data(organization)
        maya, sam = (factories.member(organization, "manager", name) for name in ("Maya", "Sam"))
        key, secret = factories.api_key(organization, "Website", creator=maya)
        stranger = Origin("203.0.113.66")
        for _ in range(3):
            factories.call(secret, "list_bookings", stranger)
        for number in (1, 2, 3):
            factories.call(secret, "approve_booking", stranger, id=number)
        factories.decide(sam, "mark_booking_paid", id=3)
        cookies = [
            [
                {
                    "name": "convene",
                    "value": signed(app, factories.session(who)[1]),
                    "url": server.url,
                }
            ]
            for who in (maya, sam)
        ]
        made = Incident(f"/admin/api_keys/{key.id}/leak", *cookies)
        db.session.remove()
        db.engine.dispose()
    return made


def test_what_it_changed_is_undone_in_place_and_by_keyboard(page: Page, incident: Incident) -> None:
    page.context.add_cookies(incident.maya)
    page.goto(incident.address)
    expect(page.get_by_text("3 changes and 3 reads, always from the same address.")).to_be_visible()
    expect(page.get_by_text("Sam changed booking 3 since.")).to_be_visible()
    page.get_by_role("button", name="Undo: Approved booking 2").focus()
    page.keyboard.press("Enter")
    done = page.locator("#changes tr", has_text="booking 2").locator("td span")
    expect(done).to_be_focused()
    expect(done).to_contain_text("Undone")
    expect(done).to_contain_text("by Maya")
    expect(page).to_have_url(f"{page.url.partition('/admin')[0]}{incident.address}")
    expect(page.locator("#announce")).to_have_text("Undone: it is as it was before.")

    with page.context.browser.new_context(base_url=page.url) as other:  # type: ignore[union-attr]
        other.add_cookies(incident.sam)
        second = other.new_page()
        second.goto(incident.address)
        second.get_by_role("button", name="Undo: Approved booking 1").click()
        expect(second.get_by_text("by Sam", exact=False)).to_be_visible()

    # Pressed on a page that doesn't know of it yet: nothing is asked, and who did it is told.
    page.get_by_role("button", name="Undo: Approved booking 1").click()
    expect(page.locator("#changes tr", has_text="booking 1")).to_contain_text("by Sam")
    page.reload()
    expect(page.locator("#changes tr", has_text="booking 1")).to_contain_text("by Sam")
    expect(page.locator("#changes tr", has_text="booking 2")).to_contain_text("by Maya")
    expect(page.locator("#changes button")).to_have_count(0)


def test_all_are_undone_in_one_go(page: Page, incident: Incident) -> None:
    page.context.add_cookies(incident.maya)
    page.goto(incident.address)
    page.get_by_role("button", name="Undo all that can be undone").click()
    expect(page.locator("#changes", has_text="Undone")).to_be_visible()
    expect(page.locator("#announce")).to_have_text(
        "2 changes undone. 1 could not be: it says why beside each."
    )
    expect(page.locator("#changes tr", has_text="Undone")).to_have_count(2)
    expect(page.locator("#changes button")).to_have_count(0)
    expect(page.locator("#changes tr", has_text="booking 2").locator("td span")).to_be_focused()


def test_without_javascript_it_comes_back(
    chromium: Browser, server: Server, incident: Incident
) -> None:
    with chromium.new_context(base_url=server.url, java_script_enabled=False) as context:
        context.set_default_timeout(PATIENCE)
        context.add_cookies(incident.maya)
        page = context.new_page()
        said = listen(page, server.url)
        page.goto(incident.address)
        page.get_by_role("button", name="Undo: Approved booking 2").click()
        expect(page.get_by_text("Undone: it is as it was before.")).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_have_text("Website has leaked")
        expect(page.locator("#changes tr", has_text="booking 2")).to_contain_text("by Maya")
        page.get_by_role("button", name="Undo all that can be undone").click()
        expect(page.get_by_text("1 change undone. 1 could not be")).to_be_visible()
        expect(page.locator("#changes tr", has_text="Undone")).to_have_count(2)
        expect(page.locator("#changes button")).to_have_count(0)
        assert said == []

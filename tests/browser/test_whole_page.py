"""What acts in place leaves nothing on the page that is no longer so, and a lost session says why."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect

from convene_keys import clock, create_app
from convene_keys.accounts import passwords
from convene_keys.db.session import db
from convene_keys.models import SignInSession
from tests import factories
from tests.browser.conftest import PATIENCE, listen, unexpected
from tests.browser.season import signed
from tests.browser.test_main_job import PASSWORD
from tests.databases import PEPPER, environ
from tests.servers import Server


@pytest.fixture
def app(server_database: str) -> Flask:
    return create_app(environ(server_database))


@pytest.fixture
def maya(app: Flask, server: Server) -> list[Any]:
    """Maya's cookie; her keys: one that ends soon, and a new one that has called."""
    with app.app_context():
        organization = factories.organization()
        factories.market_data(organization)
        hashed = passwords.hash_password(PASSWORD, [PEPPER])
        maya = factories.member(organization, email="maya@example.org", password_hash=hashed)
        ends = clock.now() + timedelta(days=3)
        factories.api_key(organization, "Stall", creator=maya, expires_at=ends)
        _, secret = factories.api_key(organization, "Website", creator=maya)
        factories.call(secret, "list_bookings")
        cookie = signed(app, factories.session(maya)[1])
        db.session.remove()
        db.engine.dispose()
    return [{"name": "convene", "value": cookie, "url": server.url}]


def lose_the_session(app: Flask) -> None:
    with app.app_context():
        long_ago = clock.now() - timedelta(hours=3)
        db.session.query(SignInSession).update({"last_seen_at": long_ago})
        db.session.commit()
        db.engine.dispose()


def test_after_a_revoke_and_a_rename_all_is_true(page: Page, maya: list[Any]) -> None:
    page.context.add_cookies(maya)
    page.goto("/admin/api_keys")
    badge, count, notices = (page.locator(f"#{part}") for part in ("findings", "count", "notices"))
    expect(count).to_have_text("2 keys")
    expect(notices).to_contain_text("1 key stops working soon.")
    expect(notices).to_contain_text("Connected:")
    for name, left in (("Website", "1 key"), ("Stall", "0 keys")):
        page.get_by_role("link", name=f"Revoke {name}", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke key").click()
        expect(page.locator("tr", has_text=name)).to_contain_text("Revoked just now")
        expect(page.locator(":focus")).to_have_text("Revoked just now by Maya")
        expect(count).to_have_text(left)
        told = badge.inner_text()
        page.context.new_page().goto("/admin/audit_log")
        anew = page.context.pages[-1]
        assert anew.locator("#findings").inner_text() == told
        anew.close()
    expect(notices).to_be_empty()
    page.reload()
    expect(page.get_by_role("heading", name="No key works any more")).to_be_visible()

    page.get_by_role("link", name="Show revoked keys").click()
    expect(page.locator("tr.off")).to_have_count(2)


def test_a_rename_keeps_the_focus_and_renames_the_whole_page(page: Page, maya: list[Any]) -> None:
    page.context.add_cookies(maya)
    page.goto("/admin/api_keys")
    page.get_by_role("link", name="Website", exact=True).click()
    page.get_by_label("Name", exact=True).fill("Till")
    page.get_by_label("Name", exact=True).press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Till")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    expect(page).to_have_title("Till · Convene Keys")
    expect(page.get_by_role("link", name="Revoke Till")).to_be_visible()
    assert "Revoke Website" not in page.content()


def test_a_session_that_ends_meanwhile_says_what_was_not_done(
    context: Any, server: Server, app: Flask, maya: list[Any]
) -> None:
    context.add_cookies(maya)
    page = context.new_page()
    said = listen(page, server.url)
    page.goto("/admin/bookings?status=all")
    lose_the_session(app)
    page.get_by_role("button", name="Approve booking 1 of Green Acre Farm").click()
    expect(page.get_by_text("You were signed out after 2 hours without a click.")).to_be_visible()
    expect(page.get_by_text("What you did last was not done.")).to_be_visible()
    expect(page.get_by_label("Email")).to_be_focused()
    page.keyboard.type("maya@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{server.url}/admin/bookings?status=all")
    expect(page.locator("#booking-1")).to_contain_text("Pending")
    assert unexpected(said, 401) == []


def test_without_javascript_a_form_that_comes_too_late_says_so(
    chromium: Browser, server: Server, app: Flask, maya: list[Any]
) -> None:
    with chromium.new_context(base_url=server.url, java_script_enabled=False) as context:
        context.set_default_timeout(PATIENCE)
        context.add_cookies(maya)
        page = context.new_page()
        page.goto("/admin/api_keys")
        page.get_by_role("link", name="Revoke Website", exact=True).click()
        asked = page.url
        lose_the_session(app)
        page.get_by_role("button", name="Revoke key").click()
        expect(page.get_by_text("What you did last was not done.")).to_be_visible()
        page.get_by_label("Email").fill("maya@example.org")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(asked)
        page.get_by_role("button", name="Revoke key").click()
        expect(page.get_by_text("Website was revoked.")).to_be_visible()
        expect(page.locator("#count")).to_have_text("1 key")

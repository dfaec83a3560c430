"""The whole circle in a browser: set up, make a key, use it, watch it, revoke it."""

import re

from playwright.sync_api import Page, expect

from convene_keys.accounts import organizations
from tests.browser.conftest import pasted
from tests.databases import PEPPER, SECRET_KEY
from tests.servers import Server, Visitor

PASSWORD = "correct horse battery staple"


def call(server: Server, key: str, path: str) -> int:
    with Visitor(server.port, Authorization=f"Bearer {key}") as visitor:
        return visitor.get(f"/api/v1/admin{path}")[0]


def test_a_key_is_made_used_watched_and_revoked(page: Page, server: Server) -> None:
    page.goto(f"/setup?code={organizations.setup_code(SECRET_KEY, PEPPER)}")
    page.get_by_label("Organization").fill("Riverside Market")
    page.get_by_label("Your name").fill("Maya Lindqvist")
    page.get_by_label("Email").fill("maya@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Sample data").check()
    page.get_by_role("button", name="Start").click()
    expect(page).to_have_url(re.compile(r"/admin/api_keys$"))

    page.get_by_role("link", name="Create your first key").click()
    page.get_by_label("Name").fill("Claude on Maya’s laptop")
    page.get_by_label("Claude", exact=True).check()
    page.get_by_role("button", name="Create key").click()
    shown = page.locator("#new-key")
    expect(shown).to_have_value(re.compile(r"^fm_org_[0-9A-Za-z]{38}$"))
    key = shown.input_value()
    page.get_by_role("button", name="Copy key").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert pasted(page) == key
    page.get_by_label("I’ve saved it").check()
    page.get_by_role("button", name="Done").click()

    assert call(server, key, "/bookings?status=pending") == 200
    assert call(server, key, "/billing") == 403

    page.get_by_role("link", name="Audit log").click()
    page.get_by_label("Key").select_option(label="Claude on Maya’s laptop")
    listed = page.locator("tr[data-action='booking.listed']")
    expect(listed).to_contain_text("Claude on Maya’s laptop listed bookings")
    expect(
        page.locator("tr[data-action='request.off_limits'][data-outcome='denied']")
    ).to_be_visible()
    expect(page.locator("tr[data-action='member.signed_in']")).to_have_count(0)
    assert re.search(r"[?&]key=\d+", page.url)

    page.get_by_role("link", name="API keys").click()
    page.evaluate("window.unharmed = 'by a reload'")
    page.get_by_role("link", name="Revoke Claude on Maya’s laptop").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("can’t be undone")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    dialog.get_by_role("button", name="Revoke key").click()
    gone = page.get_by_text("Revoked just now by Maya Lindqvist")
    expect(gone).to_be_focused()
    expect(dialog).to_have_count(0)
    assert page.evaluate("window.unharmed") == "by a reload"

    assert call(server, key, "/me") == 401  # further tries within the minute are written later

    page.goto("/admin/api_keys?status=revoked")
    expect(page.locator("#main")).to_contain_text("Refused once since")
    page.get_by_role("link", name="Audit log").click()
    page.get_by_label("Key").select_option(label="Claude on Maya’s laptop (ended)")
    refused = page.locator("tr[data-action='key.refused'][data-outcome='denied']")
    expect(refused).to_have_count(1)
    expect(refused).to_contain_text("Claude on Maya’s laptop was refused")


def test_the_secret_is_in_no_log_and_no_page_again(page: Page, server: Server) -> None:
    page.goto(f"/setup?code={organizations.setup_code(SECRET_KEY, PEPPER)}")
    page.get_by_label("Organization").fill("Riverside Market")
    page.get_by_label("Your name").fill("Maya Lindqvist")
    page.get_by_label("Email").fill("maya@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Start").click()
    page.goto("/admin/api_keys/new")
    page.get_by_label("Name").fill("Script")
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").input_value()

    assert call(server, key, f"/bookings?token={key}") == 400
    assert call(server, key, f"/{key}") == 400

    log = server.log.read_text()
    assert "/api/v1/admin/bookings" in log
    assert key not in log
    assert PASSWORD not in log
    assert organizations.setup_code(SECRET_KEY, PEPPER) not in log

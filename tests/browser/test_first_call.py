"""A page that waits for a key's first call, in a real browser."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import set_up
from tests.servers import Server, Visitor


def test_the_first_call_shows_on_the_page_that_waits_for_it(page: Page, server: Server) -> None:
    set_up(page)
    page.get_by_role("link", name="Create your first key").click()
    page.get_by_label("Name").fill("Claude")
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").input_value()
    line = page.locator("#first-call")
    expect(line).to_have_text(re.compile("Waiting for the first call of Claude…"))
    with page.expect_response("**/first_call") as waited:
        pass
    assert waited.value.status == 204
    expect(line).to_contain_text("Waiting")

    asked: list[str] = []
    with Visitor(server.port, Authorization=f"Bearer {key}") as visitor:
        assert visitor.get("/api/v1/admin/bookings")[0] == 200
    expect(line).to_contain_text(re.compile(r"Connected: Claude called list_bookings at \d\d:\d\d"))
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2_500)
    assert asked == [], "it asks although it knows"

    page.get_by_label("I’ve saved it").check()
    page.get_by_role("button", name="Done").click()
    expect(line).to_contain_text("Connected: Claude called list_bookings")


def test_the_row_in_the_list_tells_it_too_and_takes_no_focus(page: Page, server: Server) -> None:
    set_up(page)
    page.goto("/admin/api_keys/new")
    page.get_by_label("Name").fill("Claude")
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#new-key").input_value()
    page.goto("/admin/api_keys")
    row = page.locator("tr[id^=key-]")
    expect(row).to_contain_text("Never used")
    page.get_by_label("More for Claude").press("Enter")
    with Visitor(server.port, Authorization=f"Bearer {key}") as visitor:
        assert visitor.get("/api/v1/admin/bookings")[0] == 200
    expect(page.locator("#first-call")).to_contain_text("Connected")
    expect(row).to_contain_text("Just now from 127.0.0.1", ignore_case=True)
    expect(row.locator("> *")).to_have_count(6)
    expect(page.get_by_label("More for Claude")).to_be_focused()
    expect(page.locator(".menu[open]")).to_have_count(1)

"""What a key may do and when it ends: chosen with care beforehand, and changed on its page."""

import re
from datetime import date, timedelta

from playwright.sync_api import Page, expect

from tests.browser.conftest import set_up, sign_in
from tests.browser.test_circle import tab_to
from tests.browser.test_new_key import create
from tests.servers import Server

DAY = date.today() + timedelta(days=40)
SHOWN = f"{DAY.day} {DAY:%b %Y}"


def test_by_keyboard_and_in_place(page: Page, server: Server) -> None:
    set_up(page)
    page.goto("/admin/api_keys/new")
    expect(page.get_by_label("Only read")).to_be_checked()
    ends = page.get_by_label("Ends")
    expect(ends.locator(":checked")).to_have_text(re.compile(r"^In 6 months, on \d+ \w+ \d{4}$"))
    create(page)
    page.get_by_label("I’ve saved it").check()
    page.reload()
    page.evaluate("window.unharmed = 'by a reload'")

    page.get_by_label("Only read").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Read and change")).to_be_checked()
    page.get_by_label("Last day").fill(DAY.isoformat())
    page.get_by_label("Last day").focus()
    tab_to(page, page.get_by_role("button", name="Save rights and end date of Claude"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved", exact=True)).to_be_focused()
    said = f"Saved: Claude reads and changes and ends on {SHOWN}."
    expect(page.locator("#announce")).to_have_text(said)
    main = page.locator("#main")
    expect(main.locator(".facts").first).to_contain_text(SHOWN)
    expect(main).to_contain_text("Answer vendor applications")

    page.get_by_label("Last day").fill("")
    page.get_by_role("button", name="Save rights and end date of Claude").click()
    expect(main.locator(".facts").first).to_contain_text("Never")
    assert page.evaluate("window.unharmed") == "by a reload"


def test_without_javascript(page: Page, plain: Page) -> None:
    set_up(page)
    sign_in(plain)
    create(plain)
    plain.get_by_label("I’ve saved it").check()
    plain.get_by_role("button", name="Done").click()
    plain.get_by_role("link", name="Claude", exact=True).click()
    plain.get_by_label("Read and change").check()
    plain.get_by_label("Last day").fill(DAY.isoformat())
    plain.get_by_role("button", name="Save rights and end date of Claude").click()
    note = f"Saved: Claude reads and changes and ends on {SHOWN}."
    expect(plain.get_by_text(note)).to_be_visible()
    plain.get_by_role("link", name="Audit log", exact=True).click()
    for action in ("key.widened", "key.expiry_changed"):
        expect(plain.locator(f"tr[data-action='{action}']")).to_be_visible()

"""A list in a browser: while it loads, its bars and menus by keyboard, and on paper."""

import re
import sqlite3
from contextlib import closing

from playwright.sync_api import Browser, Page, Route, expect
from sqlalchemy import make_url

from tests.browser.conftest import SeededSite, set_up


def test_a_list_says_that_it_loads_and_its_bars_narrow_it(page: Page) -> None:
    set_up(page)
    page.goto("/admin/audit_log")
    log, busy = page.locator("#log"), []

    def look(route: Route) -> None:
        busy.append(log.get_attribute("aria-busy"))
        route.continue_()

    page.route("**/admin/audit_log?*", look)
    page.get_by_label("Member").select_option(label="Maya Lindqvist")
    expect(page).to_have_url(re.compile("member="))
    expect(log).not_to_have_attribute("aria-busy", "true")
    assert busy == ["true"]
    page.unroute("**/admin/audit_log?*")

    days = page.get_by_role("navigation", name="Days")
    today = days.get_by_role("link", name=re.compile(r", \d+ events?$"))
    expect(today).to_have_count(1)  # the other days have nothing to lead to
    today.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"member=\d+&since=([-\d]+)&until=\1$"))
    expect(today).to_have_attribute("aria-current", "true")


MANY = """
    WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
    INSERT INTO audit_event (at, organization_id, actor, action, outcome, detail, mac)
    SELECT strftime('%Y-%m-%d %H:%M:%f000', 'now', -i || ' seconds'), 1, 'system', 'booking.listed',
        iif(i < 60000, 'denied', 'ok'), '{}', zeroblob(32)
    FROM n"""


def test_a_search_looks_further_back_by_itself_while_somebody_types(
    page: Page, server_database: str
) -> None:
    set_up(page)
    with closing(sqlite3.connect(make_url(server_database).database or "")) as database, database:
        database.execute(MANY)
    page.goto("/admin/audit_log")
    page.get_by_label("Outcome").select_option("ok")
    search = page.get_by_label("Search")
    search.press_sequentially("listed")
    event = page.locator("tr.event")
    expect(event).to_have_count(1, timeout=30_000)
    expect(page.locator("#more")).to_have_count(0)
    expect(search).to_be_focused()
    expect(search).to_have_value("listed")


def test_the_log_on_paper_is_the_log_alone(page: Page) -> None:
    set_up(page)
    page.goto("/admin/audit_log?outcome=ok")
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator("tr.event").first).to_be_visible()
    expect(page.get_by_text("/admin/audit_log?outcome=ok")).to_be_visible()
    for chrome in (".top", "footer", "form.bar", ".bars", ".foot"):
        expect(page.locator(chrome)).to_be_hidden()
    colours = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    white, black = "rgb(255, 255, 255)", "rgb(0, 0, 0)"
    assert page.locator("body").evaluate(colours) == [white, black]


def test_a_menu_closes_for_the_dialog_it_opens_and_has_the_focus_after_it(
    seeded_site: SeededSite, chromium: Browser
) -> None:
    page = seeded_site.page_of(chromium, "maya")
    page.goto("/admin/bookings")
    menu = page.locator("td .menu:has(a)").first
    menu.locator("summary").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(menu).not_to_have_attribute("open")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(menu.locator("summary")).to_be_focused()
    page.close()

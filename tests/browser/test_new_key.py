"""The page that shows a new key's secret: what reloading it, leaving it and coming back do."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Dialog, Page, expect

from tests.browser.conftest import set_up, sign_in
from tests.browser.test_main_job import call
from tests.servers import Server

ITS_OWN = re.compile(r"/admin/api_keys/\d+$")


def create(page: Page) -> str:
    page.goto("/admin/api_keys/new")
    page.get_by_label("Name", exact=True).fill("Claude")
    page.get_by_role("button", name="Create key").click()
    return page.locator("#new-key").input_value()


def rotate(page: Page) -> str:
    create(page)
    page.get_by_label("I’ve saved it").check()
    page.goto("/admin/api_keys")
    page.get_by_label("More for Claude").click()
    page.get_by_role("link", name="Rotate Claude").click()
    page.get_by_role("button", name="Rotate key").click()
    return page.locator("#new-key").input_value()


def replace(page: Page) -> str:
    create(page)
    page.get_by_label("I’ve saved it").check()
    page.goto("/admin/api_keys")
    page.get_by_label("More for Claude").click()
    page.get_by_role("link", name="Claude has leaked").click()
    page.get_by_role("button", name="Revoke Claude").click()
    page.get_by_role("button", name="Create the new key").click()
    return page.locator("#new-key").input_value()


MAKING = pytest.mark.parametrize("make", [create, rotate, replace])


@MAKING
def test_a_reload_tells_that_the_key_was_made_and_offers_a_new_secret(
    page: Page, server: Server, make: Callable[[Page], str]
) -> None:
    set_up(page)
    lost = make(page)
    expect(page).to_have_url(ITS_OWN)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.locator("h1").click()  # a browser asks only where something was done
    page.reload()
    assert asked == ["beforeunload"]
    notice = page.locator(".notice", has_text="can’t be shown again")
    expect(notice).to_contain_text("made just now")
    assert lost not in page.content()

    page.get_by_role("button", name="Get a new secret for Claude").click()
    secret = page.locator("#new-key")
    expect(secret).not_to_have_value(lost)
    assert call(server, lost, "/me") == 401
    assert call(server, secret.input_value(), "/me") == 200
    expect(page).to_have_url(ITS_OWN)


def test_the_browser_asks_before_leaving_until_the_key_is_saved(page: Page, server: Server) -> None:
    set_up(page)
    secret = create(page)
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.get_by_role("link", name="Audit log").click()
    page.get_by_role("button", name="Copy key").click()
    page.get_by_role("link", name="Bookings").click()
    expect(page.locator("#new-key")).to_have_value(secret)
    assert asked == ["beforeunload"] * 2
    page.get_by_label("I’ve saved it").check()
    page.get_by_role("link", name="Audit log").click()
    expect(page).to_have_url(re.compile("/audit_log$"))
    assert len(asked) == 2
    page.go_back()
    expect(page).to_have_url(ITS_OWN)
    expect(page.locator(".notice", has_text="can’t be shown again")).to_be_visible()


@MAKING
def test_without_javascript_sending_the_form_again_leads_to_the_key(
    server: Server, page: Page, plain: Page, make: Callable[[Page], str]
) -> None:
    set_up(page)
    sign_in(plain)
    make(plain)
    plain.reload()  # the browser sends the form again
    if make is create:
        plain.get_by_role("link", name="You made this key just now").click()
    expect(plain).to_have_url(ITS_OWN)
    expect(plain.locator("#main")).to_contain_text("can’t be shown again")
    plain.get_by_role("button", name="Get a new secret for Claude").click()
    secret = plain.locator("#new-key").input_value()
    assert call(server, secret, "/me") == 200

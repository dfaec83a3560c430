"""The steps that come with a new key, as somebody follows them in a browser."""

from playwright.sync_api import Page, expect

from tests.browser.conftest import pasted, set_up
from tests.servers import Server


def create(page: Page, tool: str) -> None:
    page.goto("/admin/api_keys/new")
    page.get_by_label("Name").fill(f"Key for {tool}")
    page.get_by_label(tool, exact=True).check()
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#new-key")).to_be_visible()


def test_what_to_paste_is_copied_and_the_extension_is_saved(page: Page, server: Server) -> None:
    set_up(page)
    create(page, "ChatGPT")
    page.get_by_role("button", name="Copy the address").click()
    expect(page.get_by_role("button", name="Copied the address")).to_be_visible()
    assert pasted(page) == f"{server.url}/api/openapi.json"

    create(page, "Claude")
    page.get_by_text("Claude Code, in a terminal").click()
    page.get_by_role("button", name="Copy the command").click()
    expect(page.get_by_role("button", name="Copied the command")).to_be_visible()
    assert pasted(page) == page.locator("#connect-command").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the extension").click()
    assert download.value.suggested_filename == "convene-keys.mcpb"
    expect(page.locator("#new-key")).to_be_visible()


def test_the_keys_page_shows_the_steps_until_the_key_is_used(page: Page) -> None:
    set_up(page)
    create(page, "A developer’s script")
    page.goto("/admin/api_keys")
    page.get_by_role("link", name="Key for A developer’s script", exact=True).click()
    expect(page.get_by_role("button", name="Copy the command")).to_be_visible()
    page.locator("#connect > summary").press("Enter")
    expect(page.get_by_role("button", name="Copy the command")).to_be_hidden()

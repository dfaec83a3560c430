"""A page that is open while the server goes away and comes back."""

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.conftest import set_up
from tests.servers import Server


def test_a_page_says_that_the_server_is_gone_and_tries_again(
    chromium: Browser, sqlite_url: str, tmp_path: Path
) -> None:
    with Server(sqlite_url, tmp_path / "log", workers=1) as server:
        page = chromium.new_page(base_url=server.url)
        set_up(page)
        page.goto("/admin/api_keys/new")
        page.get_by_label("Name").fill("Claude")

        server.kill()
        page.get_by_role("button", name="Create key").click()
        gone = page.locator(".toast", has_text="No answer from the server")
        expect(gone).to_be_visible()
        page.get_by_role("button", name="Create key").click()
        page.wait_for_timeout(300)
        expect(gone).to_have_count(1)  # said once, however often it is tried
        expect(page.get_by_label("Name")).to_have_value("Claude")

        with server:  # on the same port
            gone.get_by_role("button", name="Try again").click()
            expect(page.locator("#new-key")).to_be_visible()
        page.close()

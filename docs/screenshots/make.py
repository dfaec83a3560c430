"""The screenshots of the README and docs, taken of the demo's data: `make screenshots`."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import ARGUMENTS
from tests.servers import serving_demo

FOLDER = Path(__file__).parent
DESK, PHONE = (1280, 800), (390, 780)


def take(page: Page, name: str, size: tuple[int, int] = DESK, theme: str = "light") -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("document.fonts.ready")
    page.screenshot(path=FOLDER / f"{name}.png")


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        sys.exit("The screenshots need Chromium. Please install it: apt-get install -y chromium")
    address = "http://127.0.0.1:8000"  # which the pages name, wherever they are served this time
    with (
        serving_demo(BASE_URL=address) as (server, email, password),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        page = browser.new_page(base_url=server.url, reduced_motion="reduce")
        page.goto("/login")
        page.get_by_label("Email").fill(email)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()

        page.wait_for_url("**/admin/api_keys")
        take(page, "keys")
        take(page, "keys-phone", PHONE, "dark")
        page.get_by_role("link", name="Revoke ChatGPT at the office").click()
        page.get_by_role("dialog").wait_for()
        take(page, "revoke")
        page.goto("/admin/api_keys")
        page.get_by_role("link", name="Claude on Maya’s laptop", exact=True).click()
        page.get_by_role("heading", name="What it did").wait_for()
        take(page, "key")
        page.goto("/admin/audit_log")
        take(page, "audit-log")
        page.goto("/admin/checkup")
        take(page, "checkup")
        page.goto("/admin/api_keys/new")
        page.get_by_label("Name").fill("Claude at the market stall")
        page.get_by_role("button", name="Create key").click()
        page.get_by_role("heading", name="Copy your new key now").wait_for()
        take(page, "new-key")
        browser.close()


if __name__ == "__main__":
    main()

"""Real Chromium in front of a real server; whatever the console or the policy says fails a test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.servers import Server

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium is missing: install Debian's package with `apt-get install chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def server(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """The product on an empty database."""
    with Server(sqlite_url, tmp_path / "server.log") as server:
        yield server


@pytest.fixture
def context(chromium: Browser, server: Server) -> Iterator[BrowserContext]:
    with chromium.new_context(base_url=server.url) as context:
        context.set_default_timeout(10_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield context


@pytest.fixture
def page(context: BrowserContext, server: Server) -> Iterator[Page]:
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(server.url) else said.append(f"request: {request.url}")
        ),
    )
    # The policy's violations come as console errors as well; this names what was violated.
    page.add_init_script(
        "addEventListener('securitypolicyviolation',"
        " e => console.error(e.violatedDirective, e.blockedURI))"
    )
    yield page
    assert said == []

"""Real Chromium in front of a real server; whatever the console or the policy says fails a test."""

import itertools
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from convene_keys.accounts import organizations
from tests.browser.season import Season, season
from tests.databases import PEPPER, SECRET_KEY, EmptiedSQLite
from tests.servers import Server

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--renderer-process-limit=1",  # one for each context, as long as it has a page
]
PATIENCE = 30_000  # milliseconds; generous, since a busy machine is no fault
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    # The same engine without a window: a third faster. Not every system has a package of it.
    names = ("chromium-headless-shell", "chromium", "chromium-browser")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, "Chromium is missing: install Debian's package with `apt-get install chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


_keys = itertools.count()


@pytest.fixture(scope="session")
def shared_server(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmptiedSQLite, Server]]:
    """The product for one test after the other, since starting it takes as long as many of them."""
    folder = tmp_path_factory.mktemp("server")
    with (
        closing(EmptiedSQLite(folder / "test.db", sqlite_template)) as database,
        Server(database.url, folder / "server.log", workers=1) as server,
    ):
        yield database, server


@pytest.fixture
def server(shared_server: tuple[EmptiedSQLite, Server]) -> Server:
    """The product on an empty database; not for what changes more of it than rows."""
    database, server = shared_server
    database.empty()
    # Keys that no earlier test had: the server remembers some of a key by its number.
    first = next(_keys) * 1_000
    with closing(sqlite3.connect(database.url.removeprefix("sqlite:///"))) as file, file:
        file.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('api_key', ?)", (first,))
    return server


@pytest.fixture
def server_database(shared_server: tuple[EmptiedSQLite, Server], server: Server) -> str:
    """The address of the server's database."""
    return shared_server[0].url


@pytest.fixture
def context(chromium: Browser, server: Server) -> Iterator[BrowserContext]:
    with chromium.new_context(base_url=server.url) as context:
        context.set_default_timeout(PATIENCE)
        context.grant_permissions(["clipboard-write"])
        yield context


@pytest.fixture
def page(context: BrowserContext, server: Server) -> Iterator[Page]:
    page = context.new_page()
    said = listen(page, server.url)
    yield page
    assert said == []


@pytest.fixture
def plain(chromium: Browser, server: Server) -> Iterator[Page]:
    """A page of a browser without JavaScript."""
    with chromium.new_context(base_url=server.url, java_script_enabled=False) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        said = listen(page, server.url)
        yield page
        assert unexpected(said, 422) == []


def set_up(page: Page) -> None:
    """Go through the first run, up to the key list."""
    page.goto(f"/setup?code={organizations.setup_code(SECRET_KEY, PEPPER)}")
    page.get_by_label("Organization").fill("Riverside Market")
    page.get_by_label("Your name").fill("Maya Lindqvist")
    page.get_by_label("Email").fill("maya@example.org")
    page.get_by_label("Password").fill("correct horse battery staple")
    page.get_by_role("button", name="Start").click()
    expect(page).to_have_url(re.compile(r"/admin/api_keys$"))


def sign_in(page: Page) -> None:
    """As whom `set_up` made, in another browser."""
    page.goto("/login")
    page.get_by_label("Email").fill("maya@example.org")
    page.get_by_label("Password").fill("correct horse battery staple")
    page.get_by_role("button", name="Sign in").click()


def pasted(page: Page) -> str:
    """What is in the clipboard, by pasting it elsewhere: no page of ours may read it."""
    elsewhere = page.context.new_page()
    elsewhere.set_content("<input>")
    elsewhere.locator("input").focus()
    elsewhere.keyboard.press("Control+V")
    text = elsewhere.locator("input").input_value()
    elsewhere.close()
    page.bring_to_front()
    return text


def listen(page: Page, url: str) -> list[str]:
    """What the console and the policy will say on this page, and what it asks of other hosts."""
    said: list[str] = []
    page.on(
        "console",
        lambda message: (
            said.append(f"{message.type}: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(url) else said.append(f"request: {request.url}")
        ),
    )
    # The policy's violations come as console errors as well; this names what was violated.
    page.add_init_script(
        "addEventListener('securitypolicyviolation',"
        " e => console.error(e.violatedDirective, e.blockedURI))"
    )
    return said


def unexpected(said: list[str], problem: int) -> list[str]:
    """What the console said, but for the lines of Chromium and htmx about this very status."""
    lines: tuple[str, ...] = (
        f"error: Failed to load resource: the server responded with a status of {problem} (",
    )
    if problem == 0:
        offline = "error: Failed to load resource: net::ERR_INTERNET_DISCONNECTED"
        lines = (offline, "error: htmx: htmx:error: Failed to fetch")
    return [text for text in said if not text.startswith(lines)]


@dataclass(frozen=True)
class SeededSite:
    """The product with a season's data, and a browser for each person in it."""

    server: Server
    season: Season
    contexts: dict[str, BrowserContext]

    def page_of(self, chromium: Browser, person: str) -> Page:
        """A page of somebody who is signed in (see `season`), or of "nobody"."""
        if person not in self.contexts:
            context = self.contexts[person] = chromium.new_context(base_url=self.server.url)
            context.set_default_timeout(PATIENCE)
            if person != "nobody":
                cookie = self.season.cookies[person]
                context.add_cookies([{"name": "convene", "value": cookie, "url": self.server.url}])
            context.new_page().goto("/healthz")  # stays, and its process with it for the others
        return self.contexts[person].new_page()


@pytest.fixture(scope="session")
def seeded_site(
    chromium: Browser, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SeededSite]:
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(sqlite_template, folder / "season.db")
    url = f"sqlite:///{folder}/season.db"
    made = season(url)
    with Server(url, folder / "server.log", workers=1) as server:
        yield SeededSite(server, made, {})

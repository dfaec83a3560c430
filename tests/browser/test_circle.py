"""The whole circle by keyboard alone, and without JavaScript; and how soon a revoked key's row says so."""

import re
from collections.abc import Iterator
from statistics import median

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from convene_keys import create_app
from tests.browser.conftest import PATIENCE, SeededSite, listen, pasted, unexpected
from tests.browser.test_main_job import PASSWORD, call
from tests.databases import environ
from tests.servers import Server

NAME = "Claude on Maya’s laptop"


@pytest.fixture
def maya(server_database: str) -> None:
    """An organization and its admin, who has a password."""
    app = create_app(environ(server_database))
    made = app.test_cli_runner().invoke(
        args=[
            *("organization", "create", "--name", "Riverside Market", "--admin-name", "Maya"),
            *("--admin-email", "maya@example.org", "--password-stdin"),
        ],
        input=PASSWORD,
    )
    assert made.exit_code == 0, made.output


@pytest.fixture
def keyboard(context: BrowserContext, server: Server) -> Iterator[Page]:
    """A page that takes any event of a mouse or a finger as an error.

    But for the move that Chromium makes itself, where the pointer has been from the start, when
    what is under it changes.
    """
    page = context.new_page()
    said = listen(page, server.url)
    page.add_init_script(
        "for (const type of ['mousedown', 'mousemove', 'pointerdown', 'touchstart', 'wheel'])"
        " addEventListener(type, ({clientX, clientY}) =>"
        " (type !== 'mousemove' || clientX || clientY) && console.error(type), true)"
    )
    yield page
    assert unexpected(said, 422) == []


def tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Press Tab until `target` has the focus; each stop on the way must be seen to have it."""
    for _ in range(40):
        page.keyboard.press(key)
        if target.evaluate("element => element === document.activeElement"):
            break
    expect(target).to_be_focused()
    assert target.evaluate(
        "element => element.matches(':focus-visible') && getComputedStyle(element).outlineStyle"
    ) not in (False, "none")


def test_by_keyboard_alone(keyboard: Page, server: Server, maya: None) -> None:
    page, keys = keyboard, keyboard.keyboard
    page.goto("/login")
    expect(page.get_by_label("Email")).to_be_focused()
    keys.type("maya@example.org")
    keys.press("Tab")
    expect(page.get_by_label("Password")).to_be_focused()
    keys.type(PASSWORD)
    keys.press("Enter")

    # The first stop of every page leads past its header.
    expect(page).to_have_title(re.compile("API keys"))
    keys.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keys.press("Enter")
    expect(page.locator("main")).to_be_focused()
    keys.press("Tab")
    expect(page.get_by_role("link", name="Create your first key")).to_be_focused()
    keys.press("Enter")

    # An error keeps what was chosen, and takes the focus to its field.
    name = page.get_by_label("Name", exact=True)
    expect(name).to_be_focused()
    tab_to(page, page.get_by_role("radio", name="Claude"))
    keys.press("ArrowDown")
    expect(page.get_by_role("radio", name="ChatGPT")).to_be_checked()
    tab_to(page, page.get_by_role("button", name="Create key"))
    keys.press("Enter")
    expect(name).to_be_focused()
    expect(page.get_by_role("radio", name="ChatGPT")).to_be_checked()
    expect(name).to_have_attribute("aria-invalid", "true")
    keys.type(NAME)
    keys.press("Enter")

    # The new key: its heading has the focus, the key and its button come next.
    expect(page.get_by_role("heading", name="Copy your new key now")).to_be_focused()
    keys.press("Tab")
    shown = page.locator("#new-key")
    expect(shown).to_be_focused()
    key = shown.input_value()
    keys.press("Tab")
    keys.press("Enter")
    expect(page.locator("#announce")).to_have_text("Copied")
    assert pasted(page) == key
    tab_to(page, page.get_by_label("I’ve saved it"))
    keys.press("Space")
    keys.press("Tab")
    expect(page.get_by_role("button", name="Done")).to_be_focused()
    keys.press("Enter")
    assert call(server, key, "/bookings") == 200

    # The log, narrowed to this key, which is announced.
    tab_to(page, page.get_by_role("link", name="Audit log"))
    keys.press("Enter")
    expect(page).to_have_title(re.compile("Audit log"))
    tab_to(page, page.get_by_label("Key", exact=True))
    keys.type("Claude")
    expect(page.locator("#count")).to_have_text("1 event")
    event = page.locator("tr[data-action='booking.listed'] summary")
    tab_to(page, event)
    keys.press("Enter")
    expect(page.locator("tr[data-action='booking.listed'] dl")).to_be_visible()

    # Its menu opens, closes with Escape, which gives the focus back, and leads to the new name.
    tab_to(page, page.get_by_role("link", name="API keys"), "Shift+Tab")
    keys.press("Enter")
    menu = page.locator(f"summary[aria-label='More for {NAME}']")
    tab_to(page, menu)
    keys.press("Enter")
    keys.press("Tab")
    rotate = page.get_by_role("link", name=f"Rotate {NAME}")
    expect(rotate).to_be_focused()
    keys.press("Escape")
    expect(rotate).to_be_hidden()
    expect(menu).to_be_focused()
    keys.press("Enter")
    tab_to(page, page.get_by_role("link", name=f"Rename {NAME}"))
    keys.press("Enter")
    expect(page).to_have_url(re.compile("#rename$"))
    tab_to(page, page.get_by_label("Name", exact=True))
    keys.press("ControlOrMeta+a")
    keys.type("Claude at the stall")
    keys.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Claude at the stall")
    expect(page.locator("#announce")).to_have_text("This key is called Claude at the stall now.")

    # Revoke: the dialog keeps the focus in, Escape closes it, and gives the focus back.
    tab_to(page, page.get_by_role("link", name="API keys").first, "Shift+Tab")
    keys.press("Enter")
    revoke = page.get_by_role("link", name="Revoke Claude at the stall")
    tab_to(page, revoke)
    keys.press("Enter")
    dialog = page.get_by_role("dialog", name="Revoke Claude at the stall?")
    cancel = dialog.get_by_role("button", name="Cancel")
    expect(cancel).to_be_focused()
    keys.press("Escape")
    expect(dialog).to_have_count(0)
    expect(revoke).to_be_focused()
    assert call(server, key, "/me") == 200
    keys.press("Enter")
    expect(cancel).to_be_focused()
    keys.press("Tab")
    expect(dialog.get_by_role("button", name="Revoke key")).to_be_focused()
    keys.press("Enter")
    expect(page.get_by_text("Revoked just now by Maya")).to_be_focused()
    said = "Claude at the stall was revoked. It stopped working at once."
    expect(page.locator("#announce")).to_have_text(said)

    assert call(server, key, "/me") == 401
    tab_to(page, page.get_by_role("link", name="Audit log"), "Shift+Tab")
    keys.press("Enter")
    expect(page.locator("tr[data-action='key.refused']")).to_be_visible()


def test_without_javascript(chromium: Browser, server: Server, maya: None) -> None:
    with chromium.new_context(base_url=server.url, java_script_enabled=False) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        said = listen(page, server.url)
        page.goto("/login")
        page.get_by_label("Email").fill("maya@example.org")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()

        page.get_by_role("link", name="Create your first key").click()
        page.get_by_label("Name", exact=True).fill(NAME)
        page.get_by_role("button", name="Create key").click()
        key = page.locator("#new-key").input_value()
        expect(page.get_by_role("button", name="Copy key")).to_be_hidden()
        page.get_by_label("I’ve saved it").check()
        page.get_by_role("button", name="Done").click()
        assert call(server, key, "/bookings") == 200

        page.get_by_role("link", name="Audit log").click()
        page.get_by_label("Key", exact=True).select_option(label=NAME)
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("status").first).to_have_text("1 event")
        page.locator("tr[data-action='booking.listed'] summary").click()
        expect(page.locator("tr[data-action='booking.listed'] dl")).to_be_visible()

        page.get_by_role("link", name="API keys").click()
        page.locator(f"summary[aria-label='More for {NAME}']").click()
        page.get_by_role("link", name=f"Rename {NAME}").click()
        page.get_by_label("Name", exact=True).fill("Claude at the stall")
        page.get_by_role("button", name=f"Rename {NAME}").click()
        expect(page.get_by_text("This key is called Claude at the stall now.")).to_be_visible()

        page.get_by_role("link", name="Revoke Claude at the stall").click()
        expect(page.get_by_text("This can’t be undone")).to_be_visible()
        page.get_by_label("Reason").fill("Stall closed")
        page.get_by_role("button", name="Revoke key").click()
        expect(page.get_by_text("Claude at the stall was revoked")).to_be_visible()
        assert call(server, key, "/me") == 401
        page.get_by_role("link", name="Audit log").click()
        expect(page.locator("tr[data-action='key.refused']")).to_be_visible()
        assert said == []


# From the click to the moment in which the row has its new state and the focus.
STOPWATCH = """() => {
  let begun;
  addEventListener("click", event => {
    if (event.target.closest("dialog button.danger")) begun = performance.now();
  }, true);
  addEventListener("focusin", event => {
    if (event.target.textContent.startsWith("Revoked just now"))
      (window.took ??= []).push(performance.now() - begun);
  });
}"""


def test_a_revoked_key_says_so_at_once(seeded_site: SeededSite, chromium: Browser) -> None:
    """At most 100 ms in the median on a quiet machine; a busy one may take some more."""
    page = seeded_site.page_of(chromium, "otto")
    page.goto("/admin/api_keys?sort=created&dir=asc")
    page.evaluate(STOPWATCH)
    for number in range(15):
        page.get_by_role("link", name=f"Revoke Key {number}", exact=True).click()
        page.get_by_role("button", name="Revoke key").click()
        expect(page.get_by_text("Revoked just now")).to_have_count(number + 1)
        expect(page.get_by_role("dialog")).to_have_count(0)
    took = page.evaluate("window.took")
    print(f"from the click to the row settled: median {median(took):.0f} ms, most {max(took):.0f}")
    page.close()
    assert len(took) == 15
    assert median(took) < 1_000

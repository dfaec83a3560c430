"""Every page a person can open, in both themes and three widths: what all of them must keep to."""

import itertools
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, expect

from convene_keys import create_app
from convene_keys.accounts import organizations
from convene_keys.http.access import Access, declared
from tests.browser.conftest import SeededSite, listen, unexpected
from tests.browser.season import LONG
from tests.databases import PEPPER, SECRET_KEY, environ
from tests.servers import ROOT, Server

WIDTHS = (1280, 390, 320)
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# A theme changes colours and nothing else, so that the second needs only what looks at them.
RULES = {"light": TAGS, "dark": ["color-contrast", "link-in-text-block"]}
# How far anything sticks out of the window: to the left only what lies above the page can.
# A dialog scrolls sideways instead.
OVER = """() => Math.max(
  document.documentElement.scrollWidth - innerWidth,
  ...[...document.querySelectorAll("dialog[open]")].map(d => d.scrollWidth - d.clientWidth),
  ...[...document.querySelectorAll("dialog[open], .menu[open] > div, .toast")].map(
    above => Math.ceil(Math.max(-above.getBoundingClientRect().left,
                                above.getBoundingClientRect().right - innerWidth))))"""
# The smallest type that anything is set in, in pixels.
SMALLEST = """() => Math.min(...[...document.body.querySelectorAll("*")].filter(
  e => e.offsetHeight > 1 && (e.value || [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
).map(e => parseFloat(getComputedStyle(e).fontSize)))"""
Act = Callable[[Page], object]


@dataclass(frozen=True)
class Visit:
    """An address with <names> of the season, who opens it, and what they do there first.

    `problem` is the status that the browser may name in its console, of a page that is an error.
    """

    name: str
    address: str
    person: str = "maya"
    act: Act | None = None
    problem: int = 200
    width: int = WIDTHS[0]  # at which to act
    part: str = "html"  # what axe looks at: a menu covers some of what is under it
    again: bool = False  # another has this page with other words: axe has it in `make soak`


# These answer with a file, or send the browser on to another page.
# The style guide is there in debug mode only.
NO_PAGES = {
    "audit.export_csv",
    "audit.export_jsonl",
    "auth.home",
    "auth.admin",
    "leak.text",
    "styleguide.show",
}
# Addresses that the URL map alone doesn't give. Set-up is over here: it has a test of its own.
SPECIAL = {
    "auth.login": Visit("auth.login", "/login", "nobody"),
    "auth.welcome": Visit("auth.welcome", "/welcome?code=<code>", "nobody"),
    "auth.setup": Visit("auth.setup", "/setup", "nobody", problem=404),
    "team.confirm_enable": Visit("team.confirm_enable", "/admin/team/<gone>/enable"),
}


def _pages() -> list[Visit]:
    app = create_app(environ("postgresql+psycopg://nobody@127.0.0.1/nothing"))  # never asked
    found = {}
    for rule in app.url_map.iter_rules():
        name, methods = rule.endpoint, rule.methods or set()
        if "GET" not in methods or name in NO_PAGES:
            continue
        if declared(app, name) not in (Access.OPEN, Access.KEY):
            found[name] = SPECIAL.get(name) or Visit(name, re.sub(r"<\w+:", "<", rule.rule))
    return sorted(found.values(), key=lambda visit: visit.name)


def _open(summary: str) -> Act:
    return lambda page: page.locator(f"summary:has-text('{summary}')").first.click()


def _open_dialog(link: str) -> Act:
    def act(page: Page) -> None:
        # Its menu may be closed.
        page.locator(f"a[aria-label^='{link}']").first.dispatch_event("click")
        expect(page.get_by_role("dialog")).to_be_visible()

    return act


def _open_remedy(words: str) -> Act:
    def act(page: Page) -> None:
        page.get_by_role("link", name=words).first.click()
        expect(page.get_by_role("dialog")).to_be_visible()

    return act


def _fill(button: str, **fields: str) -> Act:
    """Fill fields, found by their names, and send the form without asking the browser about it."""

    def act(page: Page) -> None:
        for name, value in fields.items():
            page.locator(f"main [name={name}]").fill(value)
        sent = page.get_by_role("button", name=button, exact=True)
        sent.evaluate("button => button.form.noValidate = true")
        sent.click()
        page.wait_for_load_state()

    return act


def _create(tool: str) -> Act:
    """Make a key for the tool, and open all that its steps keep closed."""

    def act(page: Page) -> None:
        page.locator(f"[name=tool][value={tool}]").check()
        _fill("Create key", name=f"Till of {tool}")(page)
        expect(page.locator("#new-key")).to_be_visible()
        _open_all(page)

    return act


def _open_all(page: Page) -> None:
    closed = page.locator(".more:not([open]) > summary")
    while closed.count():  # the first may hold others
        closed.first.click()


def _show_error(page: Page) -> None:
    expect(page.locator(".error, .notice-danger").first).to_be_visible()


def _then_error(act: Act) -> Act:
    def both(page: Page) -> None:
        act(page)
        _show_error(page)

    return both


def _revoke(page: Page) -> None:
    page.get_by_role("link", name="Revoke Key 57", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke key").click()
    expect(page.get_by_text("Revoked just now by Otto")).to_be_visible()
    page.locator(".toast").hover()  # it stays as long


def _rotate(page: Page) -> None:
    page.get_by_role("button", name="Rotate key").click()
    expect(page.locator("#new-key")).to_be_visible()


def _too_often(page: Page) -> None:
    for _ in range(10):
        form = {"email": "guess@example.org", "password": "a guess"}
        token = page.locator("[name=csrf_token]").input_value()
        page.request.post("/login", form={**form, "csrf_token": token})
    _fill("Sign in", **form)(page)
    expect(page.get_by_text("too many tries")).to_be_visible()


def _lose_the_network(page: Page) -> None:
    page.context.set_offline(True)
    page.get_by_role("link", name="Revoke Website developer").click()
    expect(page.locator(".toast")).to_contain_text("No answer from the server")
    page.context.set_offline(False)


KEYS, LOG, MENU = "/admin/api_keys", "/admin/audit_log", ".menu[open]"
STATES = [
    # Lists of every length, and names of every length.
    *(
        Visit(f"{person}: {address.rpartition('/')[2]}", address, person, again=person == "lena")
        for person in ("ada", "lena")
        for address in (KEYS, LOG, "/admin/bookings?status=all", "/admin/applications?status=all")
    ),
    Visit("lena: key", f"{KEYS}/<long>", "lena", again=True),
    Visit("lena: revoke", KEYS, "lena", _open_dialog(f"Revoke {LONG}"), again=True),
    Visit("lena: old key", f"{KEYS}/<old>", "lena"),
    Visit("lena: leak", f"{KEYS}/<leaked>/leak", "lena", again=True),
    Visit("lena: rotated", f"{KEYS}/<long>/rotate", "lena", _rotate),
    Visit("rotate, stale", f"{KEYS}/<key_id>/rotate", "stale"),
    Visit("lena: account menu", KEYS, "lena", _open("Account"), width=320, part=MENU, again=True),
    Visit("lena: event", LOG, "lena", _open("changed"), width=320, again=True),
    *(
        Visit(f"{person}: check-up", "/admin/checkup", person)
        for person in ("ada", "lena", "otto", "ines")
    ),
    Visit("lena: end dates", "/admin/checkup/endless", "lena", again=True),
    Visit("nothing to end", "/admin/checkup/idle"),
    Visit("end dates dialog", "/admin/checkup", act=_open_remedy("Set an end date")),
    Visit("lena: team", "/admin/team", "lena", again=True),
    Visit("lena: organization", "/admin/settings/organization", "lena", again=True),
    Visit("many keys", f"{KEYS}?page=2", "otto", again=True),
    Visit("all keys", f"{KEYS}?status=all", again=True),
    Visit("expiring keys", f"{KEYS}?status=expiring", again=True),
    Visit("no key found", f"{KEYS}?q=nonsense"),
    Visit("no event found", f"{LOG}?q=nonsense"),
    Visit("events of a key", f"{LOG}?key=<key_id>"),
    Visit("revoked key", f"{KEYS}/<revoked>"),
    Visit("expiring key", f"{KEYS}/<expiring>"),
    # What opens.
    Visit("account menu", KEYS, act=_open("Account"), part=MENU),
    Visit(
        "key menu", KEYS, act=lambda page: page.get_by_label("More for Claude").click(), part=MENU
    ),
    Visit("revoke dialog", KEYS, act=_open_dialog("Revoke Claude on Maya’s laptop")),
    *(
        Visit(f"{area}, stale", f"/admin/settings/{area}", "stale")
        for area in ("organization", "billing", "account")
    ),
    Visit("create, stale", f"{KEYS}/new", "stale"),
    Visit("decline dialog", "/admin/bookings", act=_open_dialog("Decline booking")),
    Visit("event", LOG, act=lambda page: page.locator(".event summary").first.click()),
    Visit("audit filters", LOG, act=_open("More filters"), width=390),
    Visit("booking filters", "/admin/bookings", act=_open("More filters"), width=390),
    # What comes of pressing.
    *(
        Visit(f"new key: {tool}", f"{KEYS}/new", act=_create(tool))
        for tool in ("claude", "chatgpt", "developer", "other")
    ),
    Visit("key to connect", f"{KEYS}/<key_id>", act=_open_all),
    Visit("revoked just now", KEYS, "otto", _revoke),
    Visit(
        "signed out", "/login", "nobody", _then_error(_fill("Sign in", email="", password="")), 422
    ),
    Visit("no name", f"{KEYS}/new", act=_then_error(_fill("Create key", name="")), problem=422),
    Visit(
        "no such day",
        f"{KEYS}/<key_id>",
        act=_then_error(
            _fill("Save rights and end date of Claude on Maya’s laptop", expires_on="2020-01-01")
        ),
        problem=422,
    ),
    Visit(
        "no member",
        "/admin/team/new",
        act=_then_error(_fill("Add member", name="", email="")),
        problem=422,
    ),
    # For everybody.
    Visit("reference", "/docs/api", "nobody"),
    Visit("reference, signed in", "/docs/api"),
    Visit("help", "/help/keys", "nobody"),
    # Errors.
    Visit("400", f"{KEYS}?status=nonsense", problem=400, again=True),
    Visit("403", f"{KEYS}/new", "ines", problem=403, again=True),
    Visit("404", "/nowhere", problem=404),
    Visit("404, a stranger", "/nowhere", "nobody", problem=404),
    Visit("405", "/logout", problem=405, again=True),
    Visit("429", "/login", "nobody", _too_often, 429),
    Visit("500", KEYS, "bo", problem=500),
    Visit("offline", KEYS, act=_lose_the_network, problem=0),
]
VISITS = [*_pages(), *STATES]


@pytest.mark.parametrize("visit", VISITS, ids=lambda visit: visit.name)
def test_a_page(visit: Visit, seeded_site: SeededSite, chromium: Browser) -> None:
    names = seeded_site.season.names
    page = seeded_site.page_of(chromium, visit.person)
    said = listen(page, seeded_site.server.url)
    page.set_viewport_size({"width": visit.width, "height": 800})
    answer = page.goto(re.sub(r"<(\w+)>", lambda found: names[found[1]], visit.address))
    assert answer is not None
    if visit.act:
        visit.act(page)
    else:
        assert answer.status == visit.problem
    assert page.locator("main h1").count() == 1
    faults = look(page, visit.part, axe=not visit.again or combinations is ALL)
    page.close()
    faults += unexpected(said, visit.problem)
    assert not faults, "\n".join(faults)


def test_set_up_and_a_database_that_is_away(
    chromium: Browser, sqlite_url: str, tmp_path: Path
) -> None:
    with Server(sqlite_url, tmp_path / "log", workers=1) as server:
        page = chromium.new_page(base_url=server.url)
        said = listen(page, server.url)
        page.goto(f"/setup?code={organizations.setup_code(SECRET_KEY, PEPPER)}")
        expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
        faults = look(page) + said
        assert not faults, "\n".join(faults)

        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as database:
            database.execute("ALTER TABLE organization RENAME TO away")
        answer = page.goto("/login")
        assert answer is not None
        assert answer.status == 503
        faults = look(page) + unexpected(said, 503)
        page.close()
    assert not faults, "\n".join(faults)


def test_signing_in_stands_in_the_middle_of_a_tall_screen(
    seeded_site: SeededSite, chromium: Browser
) -> None:
    page = seeded_site.page_of(chromium, "nobody")
    page.goto("/login")
    for height in (568, 800, 1_600):
        page.set_viewport_size({"width": 390, "height": height})
        above, card = (page.locator(part).bounding_box() for part in (".brand", "form"))
        assert above
        assert card
        middle = (above["y"] + card["y"] + card["height"]) / 2
        assert 0 <= above["y"] < card["y"]
        assert 0.4 * height < middle < 0.5 * height or height == 568
        assert page.get_by_role("button", name="Sign in").evaluate(
            "button => button.getBoundingClientRect().bottom <= innerHeight"
        )
    page.close()


# Which rules of axe in which combination. In the narrow one, those that depend on the width.
ALL = {(theme, width): rules for theme, rules in RULES.items() for width in WIDTHS}
EACH_RUN = {
    ("light", 1280): TAGS,
    ("dark", 390): RULES["dark"],
    ("light", 320): ["color-contrast", "scrollable-region-focusable", "target-size"],
}
combinations = EACH_RUN
# axe reads colours from text again and again, which takes a quarter of its time.
READ_COLOURS_ONCE = """() => {
  const {Color} = axe.commons.color, parse = Color.prototype.parseString, known = {};
  Color.prototype.parseString = function (text) {
    const {r, g, b, alpha} = known[text] ??= parse.call(new Color(), text);
    return Object.assign(this, {r, g, b, alpha});
  };
}"""
# Contrast takes most of the rest. It is the same wherever colour, type and ground are the same, the
# ground being what an element and those around it paint; so that axe need look at three of each
# kind. It can't tell the contrast of every one: of what a menu covers, for example.
THREE_OF_A_KIND = """() => {
  const grounds = new Map(), seen = {};
  for (const e of document.querySelectorAll("body, body *")) {
    const s = getComputedStyle(e), around = grounds.get(e.parentElement);
    const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter, s.position].join();
    const ground = own == "rgba(0, 0, 0, 0),none,1,none,static" ? around : around + own;
    grounds.set(e, ground);
    const text = e.value || [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
    const kind = [ground, s.color, s.fontSize, s.fontWeight, s.textShadow].join();
    const shown = text && e.checkVisibility();
    if (shown) seen[kind] = (seen[kind] ?? 0) + 1;
    e.toggleAttribute("data-seen", !shown || seen[kind] > 3);
  }
  axe.configure({rules: [{id: "color-contrast", selector: ":not([data-seen])"}]});
}"""


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(EACH_RUN, id="three"),
        pytest.param(ALL, id="six", marks=pytest.mark.soak),
    ],
)
def in_combinations(request: pytest.FixtureRequest) -> Iterator[None]:
    """axe takes most of the time: three on each run, all six in `make soak`."""
    global combinations
    combinations = request.param
    yield
    combinations = EACH_RUN


def look(page: Page, part: str = "html", *, axe: bool = True) -> list[str]:
    """What is wrong with the page as it is now, in each theme and width.

    Its size and its type in each width, since a theme changes neither; in `make soak` in all six.
    What axe finds in those of `combinations`.
    """
    if axe:
        page.evaluate(AXE_SCRIPT)
        page.evaluate(READ_COLOURS_ONCE)
    faults = []
    for width, theme in itertools.product(WIDTHS, RULES):
        rules = combinations.get((theme, width)) if axe else None
        if not rules and theme == "dark":
            continue
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": 800})
        over, smallest = page.evaluate(f"() => [({OVER})(), ({SMALLEST})()]")
        if over > 0:
            faults.append(f"{theme} {width}: {over} px beyond the window")
        if smallest < 11:
            faults.append(f"{theme} {width}: type of {smallest} px")
        if not rules:
            continue
        if combinations is EACH_RUN:
            page.evaluate(THREE_OF_A_KIND)
        options = {"runOnly": rules, "resultTypes": ["violations"], "preload": False}
        for found in page.evaluate("of => axe.run(...of)", [part, options])["violations"]:
            for node in found["nodes"]:
                faults.append(f"{theme} {width}: {found['id']}: {node['html'][:200]}")
    return faults


def test_a_theme_changes_colours_alone() -> None:
    """So that what is wrong with sizes in one theme is wrong in the other: `light-dark` has colours."""
    style = (ROOT / "static" / "app.css").read_text()
    assert "prefers-color-scheme" not in style
    assert re.findall(r"[^}]*data-theme[^}]*}", style) == [
        "\n[data-theme=light]{color-scheme:light}",
        "\n[data-theme=dark]{color-scheme:dark}",
    ]

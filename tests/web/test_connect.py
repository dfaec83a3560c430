"""How to connect a key's tool: the right addresses, and commands that work as they stand."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from flask import Flask

from convene_keys import clock, create_app
from convene_keys.db.session import db
from convene_keys.models import ApiKey, Member
from tests import factories
from tests.conftest import Browser, new_browser
from tests.databases import environ
from tests.servers import Server

pytestmark = pytest.mark.on_sqlite

TOOLS = ["claude", "chatgpt", "developer", "other"]
HERE, PUBLIC = "http://127.0.0.1:8000", "https://keys.riverside.example"
LOCAL = "which only the computer that runs it reaches"
UNREACHED = "ChatGPT’s servers can’t reach this site"
PLAIN = "The extension sends a key over https only"


def copied(text: str) -> dict[str, str]:
    """What the page's copy buttons copy, by the ids; the key itself, which is no text, is not."""
    found = re.findall(r'<pre id="([^"]+)">(.*?)</pre>', text, re.DOTALL)
    assert len(found) == text.count("<pre")
    assert len(dict(found)) == len(found)
    for name, _ in found:
        assert f'data-copy="#{name}"' in text
    return {name: unescape(part) for name, part in found}


@contextmanager
def manager_of(app: Flask) -> Iterator[Browser]:
    """The browser of a new organization's manager."""
    app.config["WTF_CSRF_ENABLED"] = False
    browser = new_browser(app)
    with app.app_context():
        browser.sign_in(factories.member(factories.organization("Riverside Market"), "manager"))
        yield browser
        db.session.remove()
        db.engine.dispose()


def at(base_url: str, database_url: str) -> AbstractContextManager[Browser]:
    return manager_of(create_app(environ(database_url, BASE_URL=base_url)))


def created(browser: Browser, tool: str, **form: str) -> str:
    """The page that shows a new key."""
    answer = browser.post("/admin/api_keys", data={"name": f"My {tool}", "tool": tool, **form})
    assert answer.status_code == 200
    return str(answer.text)


@pytest.fixture
def maya(client: Browser) -> Member:
    """A manager, signed in."""
    member = factories.member(factories.organization(), "manager", "Maya")
    client.sign_in(member)
    return member


@pytest.mark.parametrize("base_url", [HERE, PUBLIC])
def test_the_addresses_are_the_installations_wherever_the_page_was_opened(
    sqlite_url: str, base_url: str
) -> None:
    with at(base_url, sqlite_url) as browser:
        texts = {tool: created(browser, tool) for tool in TOOLS}
    parts = {tool: copied(text) for tool, text in texts.items()}
    assert 'href="/connect/convene-keys.mcpb"' in texts["claude"]
    assert parts["chatgpt"] == {"connect-schema": f"{base_url}/api/openapi.json"}
    assert parts["developer"]["connect-mcp"] == parts["other"]["connect-mcp"] == f"{base_url}/mcp"
    assert parts["other"]["connect-rest"] == f"{base_url}/api/v1/admin"
    assert parts["other"]["connect-header"] == "Authorization: Bearer YOUR_KEY"
    for tool, text in texts.items():
        assert "http://localhost" not in text  # where this browser found the page
        for address in re.findall(r"https?://[^/\s\"<&]+", "\n".join(parts[tool].values())):
            assert address == base_url


def test_claude_desktop_gets_a_configuration_that_is_json(client: Browser, maya: Member) -> None:
    text = created(client, "claude")
    assert json.loads(copied(text)["connect-json"]) == {
        "mcpServers": {
            "convene-keys": {
                "command": "node",
                "args": ["/path/to/server/index.js"],
                "env": {"CONVENE_URL": HERE, "CONVENE_API_KEY": "YOUR_KEY"},
            }
        }
    }
    assert "~/Library/Application Support/Claude/claude_desktop_config.json" in text
    assert r"%APPDATA%\Claude\claude_desktop_config.json" in text
    assert "Node 18 or newer" in text


def test_claude_code_gets_one_command(client: Browser, maya: Member) -> None:
    """As `claude mcp add --help` has it: what follows --header is all headers, so it comes last."""
    command = copied(created(client, "claude"))["connect-command"]
    assert "\n" not in command
    assert shlex.split(command) == [
        *("claude", "mcp", "add", "--transport", "http", "--scope", "user"),
        *("convene-keys", f"{HERE}/mcp", "--header", "Authorization: Bearer YOUR_KEY"),
    ]


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        (HERE, {LOCAL, UNREACHED}),
        ("http://localhost:8000", {LOCAL, UNREACHED}),
        ("https://[::1]", {LOCAL, UNREACHED}),
        ("http://192.168.1.5:8000", {PLAIN, UNREACHED}),
        ("http://keys.riverside.example", {PLAIN, UNREACHED}),
        ("https://192.168.1.5", {UNREACHED}),
        ("https://keys.local", {UNREACHED}),
        ("https://office", {UNREACHED}),
        ("https://203.0.114.7", set()),
        (PUBLIC, set()),
    ],
)
def test_it_says_who_can_not_reach_the_site(sqlite_url: str, base_url: str, said: set[str]) -> None:
    with at(base_url, sqlite_url) as browser:
        texts = "".join(created(browser, tool) for tool in TOOLS)
    assert {words for words in (LOCAL, UNREACHED, PLAIN) if words in texts} == said
    assert ("in somebody’s cloud can’t reach" in texts) == (UNREACHED in said)


def test_it_says_what_takes_no_key(client: Browser, maya: Member) -> None:
    for tool in TOOLS:
        assert ("(OAuth)" in created(client, tool)) == (tool != "developer")


@pytest.mark.parametrize("tool", TOOLS)
def test_one_thing_is_to_be_pressed_first(client: Browser, maya: Member, tool: str) -> None:
    steps = created(client, tool).split("Put it to work")[1].split("first-call")[0]
    assert steps.count('class="button primary') == 1
    assert "primary" in steps.split("<details")[0]


@pytest.mark.parametrize(("scope", "asks"), [("read", False), ("read_write", True)])
def test_chatgpt_asks_only_with_a_key_that_changes_things(
    client: Browser, maya: Member, scope: str, asks: bool
) -> None:
    text = created(client, "chatgpt", scope=scope)
    assert ("ChatGPT asks you before it changes anything" in text) == asks


@pytest.mark.parametrize("tool", TOOLS)
def test_the_secret_is_in_its_field_and_nowhere_else(
    client: Browser, maya: Member, tool: str
) -> None:
    text = created(client, tool)
    secrets = re.findall(r"fm_org_[0-9A-Za-z]{38}", text)
    assert len(secrets) == 1
    assert re.search(rf'id="new-key"\s+value="{secrets[0]}"', text)
    key = db.session.query(ApiKey).one()
    assert "fm_org_" not in client.get(f"/admin/api_keys/{key.id}").text.replace(key.hint, "")


@pytest.mark.parametrize("tool", TOOLS)
def test_the_keys_page_has_the_same_steps(client: Browser, maya: Member, tool: str) -> None:
    steps = copied(created(client, tool))
    key = db.session.query(ApiKey).one()
    text = client.get(f"/admin/api_keys/{key.id}").text
    assert copied(text) == steps
    assert "the key you saved" in text.lower()


def connects(client: Browser, key: ApiKey) -> str | None:
    """The tag of what holds the steps on the key's page."""
    text = client.get(f"/admin/api_keys/{key.id}").text
    found = re.search(r'<details[^>]*id="connect"[^>]*>', text)
    assert ("YOUR_KEY" in text) == (found is not None)
    return found[0] if found else None


def test_they_are_open_until_the_key_has_been_used(client: Browser, maya: Member) -> None:
    key, secret = factories.api_key(maya.organization, creator=maya, tool="claude")
    assert "open" in (connects(client, key) or "")
    assert client.get("/api/v1/admin/me", headers={"X-API-Key": secret}).status_code == 200
    tag = connects(client, key)
    assert tag
    assert "open" not in tag


@pytest.mark.parametrize("ended", ["revoked_at", "expires_at"])
def test_a_key_that_has_ended_is_not_connected(client: Browser, maya: Member, ended: str) -> None:
    now = clock.now()
    over = {ended: now, **({"released_at": now} if ended == "revoked_at" else {})}
    key, _ = factories.api_key(maya.organization, creator=maya, tool="other", **over)
    assert connects(client, key) is None


def test_a_viewer_connects_nothing(client: Browser, maya: Member) -> None:
    key, _ = factories.api_key(maya.organization, creator=maya, tool="developer")
    assert connects(client, key)
    client.sign_in(factories.member(maya.organization, "viewer"))
    assert connects(client, key) is None


@pytest.fixture(scope="module")
def served(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Flask, Server]]:
    folder = tmp_path_factory.mktemp("connect")
    database = folder / "served.db"
    database.write_bytes(sqlite_template.read_bytes())
    with Server(f"sqlite:///{database}", folder / "log", workers=1) as server:
        yield create_app(environ(f"sqlite:///{database}", BASE_URL=server.url)), server


def steps_of(served: tuple[Flask, Server], tool: str) -> tuple[str, dict[str, str]]:
    """A new organization's page of a key, and what it has to copy with the key filled in."""
    with manager_of(served[0]) as browser:
        text = created(browser, tool)
    secret = re.findall(r"fm_org_[0-9A-Za-z]{38}", text)[0]
    return text, {name: part.replace("YOUR_KEY", secret) for name, part in copied(text).items()}


def run(*command: str, given: str = "", **environment: str) -> str:
    done = subprocess.run(
        command,
        input=given,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        check=False,  # what it said on its way out is worth reading
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("tool", ["developer", "other"])
def test_the_commands_work_in_a_shell(served: tuple[Flask, Server], tool: str) -> None:
    _, steps = steps_of(served, tool)
    lines = [steps[name] for name in ("connect-env", "connect-curl") if name in steps]
    answer = json.loads(run("bash", "-euc", "\n".join(lines)))
    assert answer["organization"]["name"] == "Riverside Market"


def test_the_python_works_as_it_stands(served: tuple[Flask, Server]) -> None:
    _, steps = steps_of(served, "developer")
    secret = steps["connect-env"].partition("=")[2]
    printed = run(sys.executable, "-I", "-", given=steps["connect-python"], CONVENE_API_KEY=secret)
    assert json.loads(printed)["organization"]["name"] == "Riverside Market"


def test_the_configuration_starts_a_server_that_answers(
    served: tuple[Flask, Server], tmp_path: Path
) -> None:
    """As somebody would who sets it up by hand: download, unpack, paste, start."""
    text, steps = steps_of(served, "claude")
    link = re.search(r'<a class="button primary"\s+href="([^"]+)"\s+download>', text)
    assert link
    with urlopen(served[1].url + link[1]) as answer:  # noqa: S310  our own server
        zipfile.ZipFile(io.BytesIO(answer.read())).extractall(tmp_path)
    configured = steps["connect-json"].replace("/path/to", str(tmp_path))
    entry = json.loads(configured)["mcpServers"]["convene-keys"]
    messages: list[dict[str, Any]] = [
        {
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        },
        {"id": 2, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}},
    ]
    lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
    printed = run(entry["command"], *entry["args"], given=lines, **entry["env"])
    answers = {one["id"]: one["result"] for one in map(json.loads, printed.splitlines())}
    assert answers[1]["serverInfo"]
    assert answers[2]["structuredContent"]["organization"]["name"] == "Riverside Market"

"""The desktop extension as it is downloaded: what is in it, for whom, and what is not."""

import json
import re
import struct
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.mcp import bundle
from convene_keys.mcp.catalogue import PROMPTS
from convene_keys.mcp.methods import VERSION
from convene_keys.operations.table import OPERATIONS
from tests.conftest import Browser, new_browser
from tests.databases import environ

HERE = Path(__file__).parent
ADDRESS = "/connect/convene-keys.mcpb"
# From the npm package @anthropic-ai/mcpb 2.1.2, which `mcpb validate` judges by.
SCHEMA = json.loads((HERE / "mcpb" / "manifest-v0.2.schema.json").read_text())
SITES = [
    "https://keys.example.org",
    "http://127.0.0.1:8000",
    "http://[::1]:8000",
    "https://xn--mrkte-gra.example:8443",
]


def opened(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.testzip() is None
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def test_everybody_may_download_it(client: Browser) -> None:
    answer = client.get(ADDRESS)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="convene-keys.mcpb"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert "Set-Cookie" not in answer.headers
    assert "Cookie" not in answer.headers.get("Vary", "")
    assert opened(answer.data).keys() == {"manifest.json", "server/index.js", "icon.png"}
    again = client.get(ADDRESS, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert client.head(ADDRESS).headers["Content-Length"] == str(len(answer.data))
    assert client.post(ADDRESS).status_code == 405


@pytest.mark.parametrize("site", SITES)
def test_address_is_baked_in(site: str, sqlite_url: str) -> None:
    """Whatever BASE_URL may be, in any case and with a slash or not."""
    app = create_app(environ(sqlite_url, BASE_URL=f"{site.upper()}/"))
    with app.app_context():
        told = json.loads(opened(new_browser(app).get(ADDRESS).data)["manifest.json"])
        db.engine.dispose()
    assert told["server"]["mcp_config"]["env"] == {
        "CONVENE_URL": site,
        "CONVENE_API_KEY": "${user_config.api_key}",
    }
    assert told["homepage"] == site
    assert f"{site}/admin/api_keys" in told["user_config"]["api_key"]["description"]


@pytest.mark.parametrize("site", SITES)
def test_manifest_is_valid(site: str) -> None:
    Draft7Validator(SCHEMA, format_checker=Draft7Validator.FORMAT_CHECKER).validate(
        json.loads(opened(bundle.bundle(site))["manifest.json"])
    )


def test_manifest_says_what_claude_needs() -> None:
    told = bundle.manifest(SITES[0])
    assert told["server"]["type"] == "node"
    assert told["server"]["mcp_config"]["command"] == "node"
    assert told["server"]["mcp_config"]["args"] == ["${__dirname}/" + told["server"]["entry_point"]]
    asked = told["user_config"]["api_key"]
    assert (asked["type"], asked["sensitive"], asked["required"]) == ("string", True, True)
    assert "default" not in asked
    assert {"darwin", "win32"} <= set(told["compatibility"]["platforms"])
    assert [(t["name"], t["description"]) for t in told["tools"]] == [
        (operation.name, operation.description) for operation in OPERATIONS
    ]
    assert [prompt["name"] for prompt in told["prompts"]] == [*PROMPTS]
    assert told["prompts"][0]["text"].startswith("What’s pending today?")


def test_one_version_everywhere() -> None:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    files = opened(bundle.bundle(SITES[0]))
    assert json.loads(files["manifest.json"])["version"] == VERSION == project["version"]
    assert f'const VERSION = "{VERSION}";' in files["server/index.js"].decode()


def test_same_bytes_for_the_same_site() -> None:
    first = bundle.bundle(SITES[0])
    bundle.bundle.cache_clear()
    assert bundle.bundle(SITES[0]) == first != bundle.bundle(SITES[1])
    with zipfile.ZipFile(BytesIO(first)) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert (entry.create_system, entry.external_attr >> 16) == (3, 0o644)
    assert len(first) < 32_000


def test_no_key_and_no_dependency_is_in_it() -> None:
    for content in opened(bundle.bundle(SITES[0])).values():
        assert not tokens.PATTERN.search(content.decode("latin-1"))
    bridge = opened(bundle.bundle(SITES[0]))["server/index.js"].decode()
    assert not re.search(r"\b(require|import)\b\s*[(\"'{*]", bridge)


def test_icon_is_a_square_png() -> None:
    icon = opened(bundle.bundle(SITES[0]))["icon.png"]
    assert icon.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", icon[16:24]) == (512, 512)

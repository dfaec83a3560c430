"""The reference page: for everybody, whole, and its examples work as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from flask import Flask

from convene_keys import create_app
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.markets import sample
from convene_keys.operations import reference
from convene_keys.operations.table import OPERATIONS
from convene_keys.web.docs import words
from tests import factories
from tests.conftest import Browser, new_browser
from tests.databases import environ
from tests.reference import NOON, request_of
from tests.servers import Server

pytestmark = pytest.mark.on_sqlite

PAGE = "/docs/api"


def section(text: str, name: str) -> list[str]:
    """The curl, the Python and the answer of an operation, as a reader copies them."""
    part = text.split(f'id="{name}"')[1].split("</section>")[0]
    return [unescape(pre) for pre in re.findall(r"<pre>(.*?)</pre>", part, re.DOTALL)]


def test_it_is_read_without_signing_in(client: Browser) -> None:
    answer = client.get(PAGE)
    assert answer.status_code == 200
    assert len(answer.data) <= 60_000
    assert 'href="/api/openapi.json"' in answer.text
    assert "600 times in 60 seconds" in answer.text
    client.sign_in(factories.member(factories.organization(), name="Maya"))
    assert "Maya" in client.get(PAGE).text


def test_whatever_a_problem_links_to_is_on_the_page(client: Browser) -> None:
    text = client.get(PAGE).text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {code.code for code in reference.CODES} <= set(ids)
    links = re.findall(r'href="#([^"]+)"', text)
    assert len(links) > 40
    assert set(links) <= set(ids)


def test_its_addresses_are_those_of_the_installation(app: Flask, sqlite_url: str) -> None:
    there = create_app(environ(sqlite_url, BASE_URL="https://keys.riverside.example"))
    text = new_browser(there).get(PAGE).text
    assert "https://keys.riverside.example/api/v1/admin/bookings/123/approve" in text
    assert "keys.example.org" not in text


@pytest.mark.parametrize("path", ["/login", "/help/keys", "/admin/api_keys"])
def test_other_pages_lead_to_it(client: Browser, path: str) -> None:
    if path.startswith("/admin"):
        client.sign_in(factories.member(factories.organization()))
    assert f'href="{PAGE}"' in client.get(path).text


def test_curl_sends_what_the_example_says(client: Browser) -> None:
    text = client.get(PAGE).text
    for operation in OPERATIONS:
        curl, _, _ = section(text, operation.name)
        name, *words_ = shlex.split(curl.replace("\\\n", ""))
        assert name == "curl"
        options: dict[str, list[str]] = {"-X": ["GET"], "-H": [], "-d": []}
        addresses = []
        while words_:
            word = words_.pop(0)
            if word in options:
                options[word].append(words_.pop(0))
            else:
                addresses.append(urlsplit(word))
        (address,) = addresses
        expected = request_of(operation, reference.describe(operation).given)
        assert options["-X"][-1] == operation.method
        assert address.path == expected["path"]
        with client.application.test_request_context(
            "?" + address.query, data="".join(options["-d"]), content_type="application/json"
        ) as context:
            given = context.request
            assert given.args.to_dict() == {k: str(v) for k, v in expected["query_string"].items()}
            body = given.get_json() if options["-d"] else None
            assert body == expected.get("json")
        kinds = ["Content-Type: application/json"] * bool(options["-d"])
        assert options["-H"] == ["Authorization: Bearer $CONVENE_API_KEY", *kinds]


def test_python_works_as_it_stands(app: Flask, database_url: str, tmp_path: Path) -> None:
    """Against the real server, with the sample season: one program of all the page's pieces."""
    organization = factories.organization()
    sample.make(Actor.system(organization.id), NOON.date())
    _, secret = factories.api_key(organization, creator=factories.member(organization))
    db.session.remove()
    with Server(database_url, tmp_path / "log", workers=1) as server:
        there = create_app(environ(database_url, BASE_URL=server.url))
        text = new_browser(there).get(PAGE).text
        start, paging = (
            unescape(text.split(f'<pre id="{name}">')[1].split("</pre>")[0])
            for name in ("python", "paging")
        )
        pieces = [section(text, operation.name)[1] for operation in OPERATIONS]
        shown = [f"print(sorted({piece}))" for piece in pieces]
        counted = 'print(len(list(every("vendors", limit=7))))'
        done = subprocess.run(
            [sys.executable, "-c", "\n".join([start, paging, *shown, counted])],
            env=os.environ | {"CONVENE_API_KEY": secret},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    *answers, vendors = done.stdout.splitlines()
    assert answers == [
        str(sorted(reference.describe(operation).answer)) for operation in OPERATIONS
    ]
    assert vendors == "60"


def test_answers_are_shown_as_they_are(client: Browser) -> None:
    text = client.get(PAGE).text
    for operation in OPERATIONS:
        shown = section(text, operation.name)[2]
        assert reference.describe(operation).answer == json.loads(shown)


def test_what_a_field_may_hold_is_said_in_words() -> None:
    for schema, said in (
        ({"type": "integer", "minimum": 1, "maximum": 100}, "whole number, 1 to 100"),
        ({"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, "whole number from 1"),
        ({"type": "string", "maxLength": 2000}, "text of up to 2,000 characters"),
        ({"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}, "day, YYYY-MM-DD or null"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Booking"}}, "list of Booking"),
        ({"$ref": "#/components/schemas/Scope"}, "one of read, read_write"),
    ):  # fmt: skip
        assert words(schema) == said

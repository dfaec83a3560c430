"""Stylesheet, scripts, icons and font, as a browser gets them."""

import gzip
from pathlib import Path

import pytest
from flask import Flask

from convene_keys.web import static
from tests import factories
from tests.conftest import Browser
from tests.servers import ROOT

pytestmark = pytest.mark.on_sqlite

FILES = {path.relative_to(ROOT / "static") for path in (ROOT / "static").rglob("*.*")}
TEXT = sorted(str(path) for path in FILES if path.suffix in (".css", ".js", ".svg"))


@pytest.mark.parametrize("name", TEXT)
def test_text_is_compressed_for_whoever_takes_it(client: Browser, name: str) -> None:
    plain = (ROOT / "static" / name).read_bytes()
    address = f"/static/{name}"
    for accepted in (None, "identity", "br", "gzip;q=0", "*;q=0"):
        headers = {"Accept-Encoding": accepted} if accepted else {}
        answer = client.get(address, headers=headers)
        assert (answer.data, answer.headers.get("Content-Encoding")) == (plain, None), accepted
        assert answer.headers["Vary"] == "Accept-Encoding"
    packed = client.get(address, headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain
    assert len(packed.data) < 0.75 * len(plain)
    assert packed.content_type == answer.content_type
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert packed.headers["ETag"] != answer.headers["ETag"]
    for response in (packed, answer):
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"


def test_what_is_still_good_is_not_sent_again(client: Browser) -> None:
    for accepted in ("gzip", "identity"):
        headers = {"Accept-Encoding": accepted}
        first = client.get("/static/app.css", headers=headers)
        headers["If-None-Match"] = first.headers["ETag"]
        again = client.get("/static/app.css", headers=headers)
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == first.headers["ETag"]
        assert again.headers["Vary"] == "Accept-Encoding"


def test_a_file_that_changed_is_served_as_it_is_now(tmp_path: Path) -> None:
    app, style = (
        Flask(__name__, static_folder=tmp_path, static_url_path="/static"),
        tmp_path / "app.css",
    )
    style.write_text("a{color:red}")
    static.init_app(app)
    for text in (b"a{color:red}", b"a{color:blue}"):
        style.write_bytes(text)
        answer = app.test_client().get("/static/app.css", headers={"Accept-Encoding": "gzip"})
        assert gzip.decompress(answer.data) == text


def test_only_files_of_the_folder_are_served(client: Browser) -> None:
    for name in ("nothing.css", "../wsgi.py", "..%2fwsgi.py", "vendor", "%2e%2e/wsgi.py"):
        answer = client.get(f"/static/{name}", headers={"Accept-Encoding": "gzip"})
        assert answer.status_code == 404, name
        assert "Content-Encoding" not in answer.headers


def test_no_page_is_compressed(client: Browser) -> None:
    client.sign_in(factories.member(factories.organization()))
    for path in ("/login", "/admin/api_keys", "/api/v1/admin/me", "/nothing"):
        answer = client.get(path, headers={"Accept-Encoding": "gzip, br"})
        assert "Content-Encoding" not in answer.headers, path

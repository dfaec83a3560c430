"""A body that is too large or not wanted is answered, never cut off: real gunicorn, real sockets."""

from pathlib import Path

import pytest
from flask import Flask

from convene_keys.db.session import db
from convene_keys.operations.table import ROOT, VERIFY
from tests import factories
from tests.servers import Server

BODY = b"x" * 5_000_000
JSON, FORM = "application/json", "application/x-www-form-urlencoded"


@pytest.mark.on_sqlite
@pytest.mark.parametrize("times", [2, pytest.param(200, marks=pytest.mark.soak)])
def test_a_body_of_5_mb_is_answered_every_time(
    app: Flask, database_url: str, tmp_path: Path, times: int
) -> None:
    organization = factories.organization()
    _, secret = factories.api_key(organization, creator=factories.member(organization))
    db.session.remove()
    # The status by length and in chunks; 429 once a stranger has come too often.
    expected = {
        ("/login", FORM, ""): (413, 411),
        ("/login", "multipart/form-data; boundary=b", ""): (413, 411),
        ("/login", JSON, ""): (413, 400),  # it is no form
        ("/nothing", FORM, ""): (413, 411),
        ("/nothing", JSON, ""): (404, 404),
        (f"{ROOT}/bookings/1/decline", JSON, secret): (413, 413),
        (f"{ROOT}/bookings/1/decline", JSON, ""): (401, 401),
        (f"{ROOT}/bookings/1/nothing", JSON, secret): (404, 404),
        ("/mcp", JSON, secret): (413, 413),
        ("/api/v1/leaks", JSON, ""): (400, 400),  # it is not signed
    }
    with Server(
        database_url, tmp_path / "log", LEAK_REPORT_KEYS_URL="http://127.0.0.1:9/keys"
    ) as server:
        for _ in range(times):
            for (path, kind, key), statuses in expected.items():
                headers = {"Content-Type": kind} | ({"X-API-Key": key} if key else {})
                for chunked, status in zip((False, True), statuses, strict=True):
                    answer = server.send("POST", path, headers, BODY, chunked)
                    assert answer in {status, status if key else 429}, (path, kind, chunked)
        # A proxy tells of a body that it kept: nobody waits for it.
        told = {"X-API-Key": secret, "X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/"}
        assert server.send("GET", VERIFY, told | {"Content-Length": "5000000"}) == 204

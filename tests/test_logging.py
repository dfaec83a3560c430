"""No key reaches a log line, nobody else writes one, and every refusal leaves one."""

import hashlib
import io
import logging
import logging.config
import re
import socket
from pathlib import Path

import pytest

from convene_keys import logging as logging_
from convene_keys.accounts import links, sign_in
from convene_keys.db.session import alone
from convene_keys.keys import tokens
from tests import factories
from tests.conftest import Browser
from tests.servers import Server


def _handler(output: io.StringIO) -> logging.Handler:
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging_.SafeFormatter("%(levelname)s %(message)s"))
    return handler


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(output: io.StringIO) -> logging.Logger:
    logger = logging.getLogger("tests.redacted")
    logger.propagate = False
    logger.handlers = [_handler(output)]
    return logger


def test_key_is_cut_from_message_and_arguments(logger: logging.Logger, output: io.StringIO) -> None:
    token = tokens.mint()
    logger.warning("%s and %r in " + token, token, {"key": token})
    assert token not in output.getvalue()
    assert output.getvalue().count(tokens.hint(token) + "…") == 3


def test_key_is_cut_from_a_traceback(logger: logging.Logger, output: io.StringIO) -> None:
    token = tokens.mint()
    try:
        raise ValueError(f"bad key {token}")
    except ValueError:
        logger.exception("failed", stack_info=True)
    assert "Traceback" in output.getvalue()
    assert "ValueError: bad key fm_org_" in output.getvalue()
    assert token not in output.getvalue()


def test_configure_gives_every_handler_the_safe_formatter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(logging.config, "dictConfig", seen.append)
    logging_.configure()
    assert seen == [logging_.CONFIG]
    for handler in logging_.CONFIG["handlers"].values():
        made = logging_.CONFIG["formatters"][handler["formatter"]]
        assert made["()"] == "convene_keys.logging.SafeFormatter"


def test_configuration_is_one_that_logging_takes() -> None:
    logging.config.DictConfigurator(logging_.CONFIG)
    names = ("root", *logging_.CONFIG["loggers"])
    assert names == ("root", "gunicorn.error", "gunicorn.access")


BAD = "\x1b[2J\r\n2026 WARNING forged\u202e\x9b"


def test_control_characters_are_escaped_and_what_follows_is_indented(
    logger: logging.Logger, output: io.StringIO
) -> None:
    logger.warning("asked for %s", BAD)
    try:
        raise ValueError(BAD)
    except ValueError:
        logger.exception("é failed")
    lines = output.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0] == r"WARNING asked for \x1b[2J\r\n2026 WARNING forged\u202e\x9b"
    assert lines[1] == "ERROR é failed"
    assert all(line.startswith("  ") for line in lines[2:])
    assert len(lines) > 4


@pytest.mark.slow
def test_access_log_of_a_real_server_has_one_plain_line_a_request(
    sqlite_url: str, tmp_path: Path
) -> None:
    with Server(sqlite_url, tmp_path / "server.log", workers=1) as server:
        for agent in (b"plain", b'forged" 200 \xc2\x9b\xe2\x80\xae'):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
                path = b"/%1b%5b2J%0d%0aforged%c2%9b%e2%80%ae%7f"
                client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nUser-Agent: ")
                client.sendall(agent + b"\r\nConnection: close\r\n\r\n")
                while client.recv(65_536):
                    pass
    lines = server.log.read_text().splitlines()
    assert all(line.isprintable() for line in lines)
    asked = [line for line in lines if "forged" in line]
    assert len(asked) == 2
    assert all(r'"GET /\x1b[2J\r\nforged' in line for line in asked)
    assert r"forged\" 200 " in asked[1]


def _refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [
        each.getMessage() for each in caplog.records if each.name == "convene_keys.http.access"
    ]
    caplog.clear()
    return found


def _sign_in(browser: Browser, email: str) -> int:
    form = {"email": email, "password": "not the password at all"}
    status: int = browser.post("/login", data=form).status_code
    return status


def test_sign_in_that_failed_or_was_throttled_leaves_a_line_that_tells_no_email(
    client: Browser, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_in, "TRIES_PER_ACCOUNT_AND_NETWORK", 1)
    for email, status in (
        ("who@example.org", 422),
        (" WHO@example.org", 429),
        ("else@example.org", 422),
    ):
        assert _sign_in(client, email) == status
    lines = _refusals(caplog)
    known = [re.search(r"email ([0-9a-f]{16}), network 127\.0\.0\.1$", line) for line in lines]
    first, again, other = (found[1] for found in known if found)
    assert first == again != other
    assert lines[1].startswith("refused: sign-in, after too many tries,")
    assert "example.org" not in "".join(lines)
    for plain in ("who@example.org", "email who@example.org"):
        assert not hashlib.sha256(plain.encode()).hexdigest().startswith(first)


def test_refusal_by_role_or_csrf_token_leaves_a_line(
    strict_client: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    viewer = factories.member(factories.organization(), "viewer")
    strict_client.sign_in(viewer)
    for headers in ({}, {"X-API-Key": "x"}):
        assert strict_client.get("/admin/settings/billing", headers=headers).status_code == 403
        [line] = _refusals(caplog)
        told = r"refused: forbidden at settings\.\w+, email [0-9a-f]{16}, network 127"
        assert re.match(told, line)
    assert strict_client.post("/logout").status_code == 400
    [line] = _refusals(caplog)
    assert line.startswith("refused: no CSRF token that fits at auth.logout, email ")
    assert strict_client.get("/admin/api_keys").status_code == 200
    assert _refusals(caplog) == []


def test_refusal_after_too_many_tries_leaves_a_line(
    client: Browser, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = factories.member(factories.organization())
    client.sign_in(admin)
    with alone(f"export-{admin.id}"):
        assert client.get("/admin/audit_log.csv").status_code == 429
    monkeypatch.setattr(links, "PER_HOUR", 1)
    for status in (200, 429):
        assert client.post(f"/admin/team/{admin.id}/link").status_code == status
    found = [re.match(r"refused: too_many at (\S+), email", line) for line in _refusals(caplog)]
    assert [line and line[1] for line in found] == ["audit.export_csv", "team.make_link"]

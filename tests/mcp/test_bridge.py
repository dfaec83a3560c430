"""The desktop extension, unpacked and started as Claude does it, against the real server."""

import base64
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from flask import Flask
from mcp import MCPError, StdioServerParameters
from mcp.client.client import Client
from mcp_types import Implementation
from sqlalchemy import select

from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Booking
from convene_keys.operations.table import OPERATIONS
from tests import factories
from tests.databases import environ
from tests.mcp.bridges import (
    NODE,
    Answer,
    Asked,
    Bridge,
    Json,
    Site,
    call,
    echo,
    environment,
    request,
    sentence,
    talk,
    unpack,
)
from tests.mcp.conftest import Market
from tests.mcp.test_official_client import ERAS, WRITES, Test, in_a_thread, innermost, text_of
from tests.servers import Server, free_port

NEW = "Make a new key at {site}/admin/api_keys and enter it in Claude’s settings for Convene Keys."
A_KEY = "fm_org_" + "0" * 38
META = "io.modelcontextprotocol/"
STATELESS = {
    f"{META}protocolVersion": "2026-07-28",
    f"{META}clientCapabilities": {},
    f"{META}clientInfo": {"name": "Näme (of) it", "version": "2"},
}


@pytest.fixture(scope="session")
def unpacked(served: tuple[Flask, Server], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(served[1].url, tmp_path_factory.mktemp("extension"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def at(site: str, **more: str) -> dict[str, str]:
    """The environment of a bridge that runs by itself."""
    return {"CONVENE_URL": site, "CONVENE_API_KEY": A_KEY, **more}


def session(folder: Path, secret: str, test: Test, mode: str) -> None:
    @asynccontextmanager
    async def connected() -> AsyncIterator[Client]:
        bridge = StdioServerParameters(
            command=NODE,
            args=[str(folder / "server" / "index.js")],
            env=environment(folder, secret),
        )
        who = Implementation(name="test-assistant", version="9.9")
        async with Client(bridge, mode=mode, client_info=who, read_timeout_seconds=20) as client:
            yield client

    async def run() -> None:
        async with connected() as client:
            await test(client)

    in_a_thread(run)


# With the official client.


@pytest.mark.parametrize("mode", ERAS)
def test_pending_today_and_approve_a_booking(market: Market, unpacked: Path, mode: str) -> None:
    async def test(client: Client) -> None:
        assert client.protocol_version == ERAS[mode]
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == [operation.name for operation in OPERATIONS]
        dashboard = await client.call_tool("dashboard", {})
        assert dashboard.structured_content["pending_bookings"] == 3
        pending = await client.call_tool("list_bookings", {"status": "pending"})
        assert [b["id"] for b in pending.structured_content["data"]] == [3, 2, 1]
        approved = await client.call_tool("approve_booking", {"id": 2})
        assert approved.structured_content["status"] == "approved"
        held = (await client.read_resource("convene://pending")).contents
        assert [b["id"] for b in json.loads(held[0].text)["bookings"]["data"]] == [3, 1]
        prompt = await client.get_prompt("pending_today")
        assert prompt.messages[0].content.text.startswith("What’s pending today?")

    session(unpacked, market.key(), test, mode)
    with market.reading():
        assert db.session.get_one(Booking, (market.organization_id, 2)).status == "approved"
        event = db.session.scalars(
            select(AuditEvent).where(
                AuditEvent.organization_id == market.organization_id,
                AuditEvent.action == "booking.approved",
            )
        ).one()
        assert event.key_name == "Claude on laptop"
        assert event.user_agent == "convene-keys-extension/0.1.0 (test-assistant 9.9)"


@pytest.mark.parametrize("mode", ERAS)
def test_key_that_only_reads(market: Market, unpacked: Path, mode: str) -> None:
    async def test(client: Client) -> None:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {operation.name for operation in OPERATIONS} - WRITES
        refused = await client.call_tool("approve_booking", {"id": 1})
        assert refused.is_error
        assert "Ask an organizer for a key that may read and change" in text_of(refused)

    session(unpacked, market.key(scope="read"), test, mode)


@pytest.mark.parametrize("mode", ERAS)
def test_key_revoked_in_the_middle(market: Market, unpacked: Path, mode: str) -> None:
    told = f"This key no longer works. {NEW.format(site=market.server.url)}"

    async def test(client: Client) -> None:
        assert not (await client.call_tool("whoami", {})).is_error
        market.revoke_keys()
        refused = await client.call_tool("approve_booking", {"id": 1})
        assert refused.is_error
        assert text_of(refused) == told
        with pytest.raises(MCPError) as error:
            await client.read_resource("convene://dashboard")
        assert error.value.error.message == told
        assert error.value.error.data["code"] == "key_revoked"

    session(unpacked, market.key(), test, mode)
    with market.reading():
        assert db.session.get_one(Booking, (market.organization_id, 1)).status == "pending"


@pytest.mark.parametrize("mode", ERAS)
def test_fifty_calls_at_once(market: Market, unpacked: Path, mode: str) -> None:
    async def test(client: Client) -> None:
        async def one(number: int) -> None:
            answer = await client.call_tool("get_booking", {"id": number % 3 + 1})
            assert answer.structured_content["id"] == number % 3 + 1

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(one, number)

    session(unpacked, market.key(), test, mode)
    assert market.calls().count(("booking.viewed", "ok", "booking 1")) == 17


@pytest.mark.parametrize("mode", ERAS)
def test_key_that_was_never_good(market: Market, unpacked: Path, mode: str) -> None:
    async def test(client: Client) -> None:
        await client.list_tools()  # the first that a stateless client asks for
        raise AssertionError("nobody gets in")

    for secret, told in (
        (A_KEY, "This key no longer works."),
        ("", "There is no key yet."),
        ("${user_config.api_key}", "There is no key yet."),
        ("my password", "What was entered is no key of Convene Keys."),
    ):
        with pytest.raises(BaseException) as refused:  # noqa: PT011  a group of the client's
            session(unpacked, secret, test, mode)
        assert told in str(innermost(refused.value))


# Line by line.


def test_each_answer_has_its_own_id(market: Market, unpacked: Path) -> None:
    """Of fifty calls at once, with numbers and texts for ids, and then it ends by itself."""
    ids: list[object] = [*range(25), *(f"{number}" for number in range(25))]
    lines = [call(id, "get_booking", id=n % 3 + 1) for n, id in enumerate(ids)]
    answers, err = talk(unpacked, environment(unpacked, market.key()), *lines)
    assert err == ""
    found = {(type(a["id"]), a["id"]): a["result"]["structuredContent"]["id"] for a in answers}
    assert len(answers) == 50
    assert found == {(type(id), id): n % 3 + 1 for n, id in enumerate(ids)}


def test_handshake_is_remembered(stack: ExitStack, unpacked: Path) -> None:
    """A notification is passed on and answered with nothing."""

    def answer(asked: Asked) -> Answer:
        if "id" not in asked.message:
            return 202, {}, b""
        result = {"protocolVersion": "2025-11-25"}
        return 200, {}, json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()

    site = stack.enter_context(Site(answer).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    who = {"name": "Claude", "version": "1.2"}
    bridge.send(request(1, "initialize", {"protocolVersion": "2025-11-25", "clientInfo": who}))
    assert bridge.read()["result"]["protocolVersion"] == "2025-11-25"
    bridge.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
    site.wait(2)
    answers, err = bridge.end(request(2, "ping"))
    assert [answer["id"] for answer in answers] == [2]
    assert err == ""
    said = [asked.headers["MCP-Protocol-Version"] for asked in site.asked]
    assert said == [None, "2025-11-25", "2025-11-25"]
    for asked in site.asked:
        assert asked.path == "/mcp"
        assert asked.headers["Authorization"] == f"Bearer {A_KEY}"
        assert asked.headers["Content-Type"] == "application/json"
        assert asked.headers["Accept"] == "application/json, text/event-stream"
        assert asked.headers["User-Agent"] == "convene-keys-extension/0.1.0 (Claude 1.2)"
        assert not any(name.startswith("Mcp-") for name in asked.headers)


def test_no_connection_is_used_twice(stack: ExitStack, unpacked: Path) -> None:
    """The site may end one that is kept at any moment, and with it a call that was never read."""
    site = stack.enter_context(Site(echo).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    for id in range(5):
        bridge.send(request(id, "ping"))
        assert bridge.read()["id"] == id
    assert len({asked.port for asked in site.asked}) == 5


NAMES = [
    "plain name",
    "Käse",
    " x ",
    "",
    "=?base64?eA==?=",
    "a\tb",
    "line\nbreak",
    "\u2028",
    "\x7f",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_stateless_headers_repeat_the_body(market: Market, unpacked: Path, name: str) -> None:
    """Whatever the name is, the server finds it in the header again and says what it thinks."""
    answers, _ = talk(
        unpacked,
        environment(unpacked, market.key()),
        request(1, "prompts/get", {"name": name, "_meta": STATELESS}),
        request(2, "resources/read", {"uri": f"x:{name}", "_meta": STATELESS}),
        request(3, "tools/call", {"name": name, "arguments": {}, "_meta": STATELESS}),
    )
    assert {a["id"]: (a["error"]["code"], a["error"]["message"]) for a in answers} == {
        1: (-32602, "There is no such prompt."),
        2: (-32602, "There is no such resource."),
        3: (-32602, "There is no such tool."),
    }


def test_stateless_headers_as_sent(stack: ExitStack, unpacked: Path) -> None:
    site = stack.enter_context(Site(echo).serving())
    talk(unpacked, at(site.url), request(1, "tools/call", {"name": "é", "_meta": STATELESS}))
    sent = site.asked[0].headers
    assert sent["MCP-Protocol-Version"] == "2026-07-28"
    assert sent["Mcp-Method"] == "tools/call"
    assert sent["Mcp-Name"] == f"=?base64?{base64.b64encode('é'.encode()).decode()}?="
    assert sent["User-Agent"] == "convene-keys-extension/0.1.0 (Nme of it 2)"


def test_certificate_that_is_not_trusted_is_told_as_such(
    stack: ExitStack, unpacked: Path, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    path, tls = certificate
    site = stack.enter_context(Site(echo, tls).serving())
    trusting = {"NODE_EXTRA_CA_CERTS": str(path)}
    wrong = site.url.replace("localhost", "127.0.0.1")
    for address, more, told in (
        (
            site.url,
            {},
            f"This computer doesn’t trust the certificate of Convene Keys at {site.url}",
        ),
        (wrong, trusting, f"The certificate of Convene Keys at {wrong} is not valid."),
    ):
        [answer], _ = talk(unpacked, at(address, **more), call(1, "whoami"))
        assert sentence(answer).startswith(told)
        assert ("NODE_EXTRA_CA_CERTS" in sentence(answer)) is not bool(more)
    assert site.asked == []
    [answer], err = talk(unpacked, at(site.url, **trusting), request(1, "ping"))
    assert (answer["result"], err) == ("ping", "")


def test_lines_in_any_shape(stack: ExitStack, unpacked: Path) -> None:
    """Cut anywhere, with CRLF, blank lines, a mark in front, and none at the very end."""
    site = stack.enter_context(Site(echo).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    message = request(1, "ping", {"q": "Käse \u2028 🧀 \ufeff"}).strip()
    for cut in range(1, len(message)):
        bridge.send(message[:cut], message[cut:] + b"\r\n")
        assert bridge.read()["id"] == 1
    answers, err = bridge.end(b"\n\r\n  \n" + b"\xef\xbb\xbf" + request(2, "ping") + message)
    assert sorted(answer["id"] for answer in answers) == [1, 2]
    assert err == ""
    bodies = [asked.body for asked in site.asked]
    assert bodies.count(message) == len(message)
    assert len(bodies) == len(message) + 1


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        (b"{", -32700, None),
        (b"hello", -32700, None),
        (b'"\xff', -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"1", -32600, None),
        (b"null", -32600, None),
        (b"[]", -32600, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600, None),
        (b'{"jsonrpc":"2.0","id":7}', -32600, 7),
        (b'{"jsonrpc":"2.0","id":7,"method":1}', -32600, 7),
    ],
    ids=ascii,
)
def test_what_is_no_message(
    stack: ExitStack, unpacked: Path, line: bytes, code: int, id: int | None
) -> None:
    """It is told so, nothing is sent, and the next line counts again."""
    site = stack.enter_context(Site(echo).serving())
    (first, second), _ = talk(unpacked, at(site.url), line[:99_999] + b"\n", request(8, "ping"))
    assert (first["error"]["code"], first["id"]) == (code, id)
    assert second["id"] == 8
    assert len(site.asked) == 1


def test_answers_to_nothing_are_let_go(stack: ExitStack, unpacked: Path) -> None:
    site = stack.enter_context(Site(echo).serving())
    answer = b'{"jsonrpc":"2.0","id":1,"result":{}}\n'
    assert talk(unpacked, at(site.url), answer) == ([], "")
    assert site.asked == []


def test_endless_line_is_cut(stack: ExitStack, unpacked: Path) -> None:
    site = stack.enter_context(Site(echo).serving())
    line = request(1, "ping", {"q": "x" * 9_000_000})
    (first, second), _ = talk(unpacked, at(site.url), line, request(2, "ping"))
    assert first["error"]["code"] in (-32700, -32010)  # as it may be cut
    assert second == {"jsonrpc": "2.0", "id": 2, "result": "ping"}
    assert len(site.asked) == 1


def test_what_the_site_would_not_take_is_not_sent(market: Market, unpacked: Path) -> None:
    """The bridge's limit is the server's own, to the byte."""
    base = len(call(1, "list_vendors", q="").strip())
    fits, long = (call(id, "list_vendors", q="x" * (65_536 - base + id - 1)) for id in (1, 2))
    assert (len(fits.strip()), len(long.strip())) == (65_536, 65_537)
    answers, _ = talk(unpacked, environment(unpacked, market.key()), fits, long)
    said = {answer["id"]: sentence(answer) for answer in answers}
    assert "(code: invalid)" in said[1]
    assert said[2] == "This is too long to send: 64 KiB is the most."
    assert len(market.events()) == 1


# Several at once, some of them never mind.


def test_eight_at_once_and_the_others_wait(stack: ExitStack, unpacked: Path) -> None:
    go_on = threading.Event()

    def answer(asked: Asked) -> Answer:
        go_on.wait(60)
        return echo(asked)

    site = stack.enter_context(Site(answer).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    bridge.send(*(request(id, "ping") for id in range(20)))
    site.wait(8)  # none of which has its answer yet
    with site.news:
        assert not site.news.wait_for(lambda: len(site.asked) > 8, 0.5)
    assert {asked.message["id"] for asked in site.asked} == set(range(8))
    go_on.set()
    answers, _ = bridge.end()
    assert sorted(answer["id"] for answer in answers) == list(range(20))


def test_cancelled_call_is_let_go(stack: ExitStack, unpacked: Path) -> None:
    """It is not answered any more, its place is free, and one that still waits is never sent."""
    go_on = threading.Event()

    def answer(asked: Asked) -> Answer:
        if asked.message["id"] != "free":
            go_on.wait(60)
        return echo(asked)

    def cancel(id: int) -> bytes:
        told: Json = {"method": "notifications/cancelled", "params": {"requestId": id}}
        return json.dumps({"jsonrpc": "2.0", **told}).encode() + b"\n"

    site = stack.enter_context(Site(answer).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    bridge.send(*(request(id, "ping") for id in range(9)))
    site.wait(8)
    bridge.send(cancel(8), request("free", "ping"), cancel(99), cancel(3))
    assert bridge.read()["id"] == "free"
    go_on.set()
    answers, err = bridge.end()
    assert sorted(answer["id"] for answer in answers) == [0, 1, 2, 4, 5, 6, 7]
    assert {asked.message["id"] for asked in site.asked} == {*range(8), "free"}
    assert err == ""


# When the site is not as it should be.


def test_site_that_does_not_answer_in_time(stack: ExitStack, unpacked: Path) -> None:
    go_on = threading.Event()
    stack.callback(go_on.set)

    def answer(asked: Asked) -> Answer:
        go_on.wait(60)
        return echo(asked)

    site = stack.enter_context(Site(answer).serving())
    stack.callback(go_on.set)  # before the site is closed
    env = at(site.url, CONVENE_TIMEOUT_SECONDS="0.5")
    answers, _ = talk(unpacked, env, call(1, "approve_booking", id=1), request(2, "ping"))
    assert {answer["id"]: sentence(answer) for answer in answers} == dict.fromkeys(
        (1, 2),
        f"Convene Keys at {site.url} didn’t answer within 0.5 seconds. "
        "Look whether it was done before you try again.",
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_key_does_not_go_where_a_redirect_leads(
    stack: ExitStack, unpacked: Path, status: int
) -> None:
    elsewhere = stack.enter_context(Site(echo).serving())
    site = Site(lambda _: (status, {"Location": f"{elsewhere.url}/mcp"}, b""))
    stack.enter_context(site.serving())
    (answer,), _ = talk(unpacked, at(site.url), call(1, "whoami"))
    assert sentence(answer) == (
        f"Convene Keys at {site.url} gave no proper answer (HTTP {status}). "
        "Try again later, or ask who runs the site."
    )
    assert len(site.asked) == 1
    assert elsewhere.asked == []


def test_site_that_is_not_there(unpacked: Path) -> None:
    site = f"http://127.0.0.1:{free_port()}"
    told = b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
    answers, err = talk(unpacked, at(site), call(1, "whoami"), told, request(2, "tools/list"))
    unreachable = (
        f"Convene Keys at {site} can’t be reached. "
        "Check the internet connection, or ask who runs the site."
    )
    assert {answer["id"]: sentence(answer) for answer in answers} == {
        1: unreachable,
        2: unreachable,
    }
    assert "ECONNREFUSED" in err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "gave no proper answer (HTTP 200)"),
        (200, b"[]", "gave no proper answer (HTTP 200)"),
        (200, b"null", "gave no proper answer (HTTP 200)"),
        (502, b"<html>", "gave no proper answer (HTTP 502)"),
        (404, b"", "gave no proper answer (HTTP 404)"),
        (401, b"<html>", "This key no longer works."),
        (429, b"", "Too many calls for now. Try again in 60 seconds."),
        (503, b"<html>", "can’t answer just now. Try again in 60 seconds."),
        (200, b" " * 4_200_000, "is too long to read."),
    ],
)
def test_answers_that_make_no_sense(
    stack: ExitStack, unpacked: Path, status: int, body: bytes, said: str
) -> None:
    site = stack.enter_context(Site(lambda _: (status, {}, body)).serving())
    answers, _ = talk(unpacked, at(site.url), call(1, "whoami"), request(2, "ping"))
    assert sorted(answer["id"] for answer in answers) == [1, 2]
    for answer in answers:
        assert said in sentence(answer)
        assert "result" in answer if answer["id"] == 1 else answer["error"]["code"] == -32010


def test_answer_is_passed_on_as_it_came(stack: ExitStack, unpacked: Path) -> None:
    """Numbers too long for JavaScript included; only line breaks go, and a foreign id."""
    bodies = iter(
        [
            b'{"jsonrpc": "2.0",\r\n "id": 1, "result": {"n": 12345678901234567890, "m": 1.0}}',
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}',
        ]
    )
    site = stack.enter_context(Site(lambda _: (200, {}, next(bodies))).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    bridge.send(request(1, "ping"))
    assert bridge.read()["result"] == {"n": 12345678901234567890, "m": 1.0}
    bridge.send(request(2, "ping"))
    assert bridge.read()["id"] == 2


def test_too_many_calls(sqlite_url: str, tmp_path: Path) -> None:
    with Server(sqlite_url, tmp_path / "server.log", workers=1, KEY_RATE_LIMIT="1/day") as server:
        from convene_keys import create_app

        app = create_app(environ(sqlite_url))
        with app.app_context():
            _, secret = factories.api_key(factories.organization())
            db.session.remove()
            db.engine.dispose()
        folder = unpack(server.url, tmp_path)
        lines = [call(id, "whoami") for id in range(5)]
        answers, _ = talk(folder, environment(folder, secret), *lines)
    refused = [answer for answer in answers if answer["result"].get("isError")]
    assert refused
    for answer in refused:
        assert sentence(answer).startswith("Too many calls for now. Try again in ")


# What it is started with.


@pytest.mark.parametrize(
    "path",
    ["ftp://127.0.0.1", "{site}/path", "{site}?a=1", "http://a@127.0.0.1", "{site}.example.org"]
    + ["http://keys.example.org", "http://localhost.example.org", "https://a@example.org", ""],
)
def test_key_goes_to_no_address_in_the_open(stack: ExitStack, unpacked: Path, path: str) -> None:
    site = stack.enter_context(Site(echo).serving())
    address = path.format(site=site.url)
    (answer,), err = talk(unpacked, at(address), call(1, "whoami"))
    assert sentence(answer) == (
        "CONVENE_URL must be the https address of Convene Keys, such as https://keys.example.org."
    )
    assert sentence(answer) in err
    assert site.asked == []


@pytest.mark.parametrize("slash", ["", "/"])
def test_key_may_have_spaces_around_and_the_address_a_slash(
    stack: ExitStack, unpacked: Path, slash: str
) -> None:
    site = stack.enter_context(Site(echo).serving())
    env = at(site.url + slash, CONVENE_API_KEY=f" {A_KEY}\n")
    (answer,), _ = talk(unpacked, env, request(1, "ping"))
    assert answer["result"] == "ping"
    assert site.asked[0].headers["Authorization"] == f"Bearer {A_KEY}"


@pytest.mark.parametrize(
    "secret", [None, "", "${user_config.api_key}", "fm_org_short", "Passwort ü"]
)
def test_missing_key_is_told(stack: ExitStack, unpacked: Path, secret: str | None) -> None:
    site = stack.enter_context(Site(echo).serving())
    env = {"CONVENE_URL": site.url} | ({} if secret is None else {"CONVENE_API_KEY": secret})
    told = "What was entered is no key of Convene Keys." if secret and secret[0] != "$" else ""
    with Bridge(unpacked, {**env}) as bridge:
        answers, _ = bridge.end(call(1, "whoami") + request(2, "initialize"))
    expected = f"{told or 'There is no key yet.'} {NEW.format(site=site.url)}"
    assert {answer["id"]: sentence(answer) for answer in answers} == {1: expected, 2: expected}
    assert site.asked == []


def test_it_ends_when_nobody_listens(stack: ExitStack, unpacked: Path) -> None:
    site = stack.enter_context(Site(echo).serving())
    bridge = stack.enter_context(Bridge(unpacked, at(site.url)))
    assert bridge.process.stdout is not None
    bridge.process.stdout.close()
    bridge.send(request(1, "ping"))
    assert bridge.process.wait(60) == 0

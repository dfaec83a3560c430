"""Clients that neither read nor send hold nobody up: real gunicorn, and nginx in front of it."""

import http.client
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Self

import pytest
from flask import Flask

from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.db.session import db, transaction
from tests import factories
from tests.conftest import new_browser, wait_for
from tests.proxies import Front
from tests.servers import Server

CLIENTS = 14  # more than the eight threads of two workers
AT_ONCE = 1.0  # seconds in which others are answered meanwhile
EXPORT = "/admin/audit_log.jsonl"
MIB = 1 << 20


@dataclass
class Market:
    """An organization with a log of 17 MiB, a key, and the cookies of its members."""

    secret: str
    cookies: list[str]


@pytest.fixture
def market(app: Flask) -> Market:
    organization = factories.organization()
    members = [factories.member(organization, name=f"Member {n}") for n in range(CLIENTS)]
    _, secret = factories.api_key(organization, creator=members[0])
    actor = Actor.of_member(members[0], Origin())
    with transaction() as session:
        for _ in range(17 * 64):
            record(session, actor, Action.KEY_RENAMED, detail={"before": "x" * (MIB // 64)})
    cookies = []
    for member in members:
        browser = new_browser(app)
        browser.sign_in(member)
        cookie = browser.get_cookie("convene")
        assert cookie is not None
        cookies.append(f"convene={cookie.value}")
    db.session.remove()
    return Market(secret, cookies)


class Client:
    """One connection that sends what it is told to, and reads when it is told to."""

    def __init__(self, port: int, tls: Path | None = None) -> None:
        self.socket = socket.socket()
        # As over the internet, and not as between processes of one machine, which buffer megabytes.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1_200)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        if tls:
            context = ssl.create_default_context(cafile=tls)
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def get(self, path: str, **headers: str) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.send(f"GET {path} HTTP/1.1\r\nHost: keys.example.org\r\n{lines}\r\n")

    def answer(self) -> http.client.HTTPResponse:
        """The beginning of the answer."""
        answer = http.client.HTTPResponse(self.socket)
        answer.begin()
        return answer


@contextmanager
def clients(port: int, count: int = CLIENTS, tls: Path | None = None) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Client(port, tls)) for _ in range(count)]


def slowest(port: int, secret: str) -> float:
    """Seconds that the slowest of some calls of a key and some pages takes."""
    took = []
    for path in ("/api/v1/admin/me", "/login") * 4:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Authorization": f"Bearer {secret}"} if path.startswith("/api") else {}
        try:
            connection.request("GET", path, headers=headers)
            assert connection.getresponse().status == 200
        finally:
            connection.close()
        took.append(time.monotonic() - began)
    return max(took)


@contextmanager
def serving(url: str, market: Market, tmp_path: Path, **settings: str) -> Iterator[Server]:
    """The product with both workers warm: their first pages have to be put together first."""
    with Server(url, tmp_path / "server.log", **settings) as server:
        for _ in range(2):
            slowest(server.port, market.secret)
        yield server


def exports(of: list[Client], cookies: list[str]) -> Counter[int]:
    """How many of the clients are answered what, when each asks for the whole log."""
    for client, cookie in zip(of, cookies, strict=True):
        client.get(EXPORT, Cookie=cookie)
    answers = [client.answer() for client in of]
    assert all(answer.headers["Retry-After"] for answer in answers if answer.status != 200)
    return Counter(answer.status for answer in answers)


def test_exports_that_nobody_reads_hold_nobody_up(
    market: Market, database_url: str, tmp_path: Path
) -> None:
    half = CLIENTS // 2
    mine, others = market.cookies[:1] * half, market.cookies[half:]
    with serving(database_url, market, tmp_path) as server, ExitStack() as waiting:
        told = exports(waiting.enter_context(clients(server.port, half)), mine)
        assert told == {200: 1, 429: half - 1}, "one a member"
        told = exports(waiting.enter_context(clients(server.port, half)), others)
        assert (told[200] <= 1, set(told) <= {200, 503}) == (True, True), "one a worker"
        assert slowest(server.port, market.secret) < AT_ONCE
        for worker in server.workers():
            server.kill_worker(worker)
        wait_for(lambda: len(server.workers()) == 2)
        with Client(server.port) as again:
            assert exports([again], mine[:1]) == {200: 1}, "a worker that died holds none"


ONE = pytest.mark.parametrize("shared", ["sqlite"], indirect=True)


@ONE
def test_clients_that_do_not_read_hold_nobody_up(
    market: Market,
    database_url: str,
    tmp_path: Path,
    certificate: tuple[Path, ssl.SSLContext],
) -> None:
    tls = certificate[0]
    with serving(database_url, market, tmp_path, TRUSTED_PROXIES="1") as server:
        with (
            Front(tmp_path / "nginx", tls, server.port) as front,
            clients(front.port, tls=tls) as some,
        ):
            told = exports(some, market.cookies)
            assert (told[200] >= 1, set(told) <= {200, 503}) == (True, True)
            assert slowest(server.port, market.secret) < AT_ONCE
        for headers in ({}, {"Connection": "close"}):
            with clients(server.port) as some:
                for client in some:
                    client.get("/api/openapi.json", **headers)
                assert slowest(server.port, market.secret) < AT_ONCE, headers
        with clients(server.port):  # and send nothing
            assert slowest(server.port, market.secret) < AT_ONCE


@ONE
def test_clients_that_come_at_once_are_shared_out(
    app: Flask, database_url: str, tmp_path: Path
) -> None:
    db.session.remove()
    with Server(database_url, tmp_path / "server.log") as server, clients(server.port, 8) as some:
        for client in some:
            client.send("GET /healthz HTTP/1.1\r\nHost: x\r\n")  # a thread waits for the rest
        ports = {client.socket.getsockname()[1] for client in some}
        wait_for(lambda: ports <= server.connections().keys())
        assert sorted(Counter(map(server.worker_of, ports)).values()) == [4, 4]
        with Client(server.port) as another:
            another.get("/healthz")
            for client in some:
                client.send("\r\n")
            assert {client.answer().status for client in [*some, another]} == {200}


# Always with more requests under way than are answered; a dot once it goes on quickly.
ASK_AGAIN = """
import socket, sys, threading

client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))

def ask():
    while True:
        client.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" * 100)

threading.Thread(target=ask, daemon=True).start()
answers = 0
while more := client.recv(65536):
    before, answers = answers, answers + more.count(b"HTTP/1.1 200")
    if before < 100 <= answers:
        sys.stdout.write(".")
        sys.stdout.flush()
sys.exit("cut off")
"""


@pytest.fixture
def one_worker(app: Flask, database_url: str, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A port, and a key. There is no other worker that could take what this one leaves waiting."""
    organization = factories.organization()
    _, secret = factories.api_key(organization, creator=factories.member(organization))
    db.session.remove()
    with Server(database_url, tmp_path / "server.log", workers=1) as server:
        slowest(server.port, secret)
        yield server.port, secret


@ONE
def test_busy_clients_keep_no_thread_from_another(one_worker: tuple[int, str]) -> None:
    port, secret = one_worker
    asking = [
        subprocess.Popen([sys.executable, "-c", ASK_AGAIN, str(port)], stdout=PIPE)
        for _ in range(4)
    ]
    try:
        for each in asking:
            assert each.stdout is not None
            assert each.stdout.read(1) == b"."
        slowest(port, secret)  # else it would wait until they end, and give up
        assert [each.poll() for each in asking] == [None] * 4
    finally:
        for each in asking:
            each.kill()
            each.communicate()


@ONE
def test_client_that_keeps_its_side_open_holds_nobody_up(one_worker: tuple[int, str]) -> None:
    port, secret = one_worker
    with Client(port) as client:
        client.get("/healthz", Connection="close")
        assert client.answer().read() == b"ok"
        assert client.socket.recv(1) == b"", "the server has closed its side"
        assert slowest(port, secret) < AT_ONCE


@ONE
def test_client_that_stops_to_send_or_read_is_cut_off_with_a_line_in_the_log(
    market: Market, database_url: str, tmp_path: Path
) -> None:
    options = {"GUNICORN_CMD_ARGS": "--graceful-timeout 1"}
    with (
        Server(database_url, tmp_path / "server.log", **options) as server,
        Client(server.port) as header,
        Client(server.port) as body,
        Client(server.port) as reader,
    ):
        header.send("GET /healthz HTTP/1.1\r\nHost: x")
        key = f"Authorization: Bearer {market.secret}\r\nContent-Length: 9\r\n\r\n{{"
        body.send(f"POST /api/v1/admin/bookings/1/decline HTTP/1.1\r\nHost: x\r\n{key}")
        reader.get(EXPORT, Cookie=market.cookies[0])
        assert header.socket.recv(1) == b""
        assert body.answer().status == 400
        wait_for(lambda: f'"GET {EXPORT} HTTP/1.1" 200' in server.log.read_text())
    log = server.log.read_text()
    assert log.count("neither read nor sent") == 2
    assert "Traceback" not in log

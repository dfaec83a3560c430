"""The product as it runs in earnest: gunicorn, several workers, a database on disk."""

import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

from tests.databases import environ

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """gunicorn with the product's own configuration, on a port of its own."""

    def __init__(self, database_url: str, log: Path, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("COV_CORE")},
            **environ(database_url, PORT=str(self.port), BASE_URL=self.url),
            "KEY_RATE_LIMIT": "9999999/minute",  # most tests of a server are meant to press it
            **settings,
        }

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"),
                    *("--bind", f"127.0.0.1:{self.port}", "wsgi:app"),
                ],
                cwd=ROOT,
                env=self._environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while not self._ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def kill(self) -> None:
        """End all of it at once, as if the machine had lost its power."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        """The process ids of the workers that are alive now."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(number) for number in children.read_text().split()]

    def kill_worker(self, number: int) -> None:
        os.kill(number, signal.SIGKILL)
        while number in self.workers():
            time.sleep(0.01)

    def send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None = None,
        chunked: bool = False,
    ) -> int:
        """The status of one request on a connection of its own, its body in one piece or chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            parts = [body] if chunked else body
            connection.request(method, path, parts, headers, encode_chunked=chunked)
            return connection.getresponse().status
        finally:
            connection.close()

    def _ready(self) -> bool:
        try:
            with Visitor(self.port) as visitor:
                return visitor.get("/readyz")[0] == 200
        except OSError:
            return False


class Visitor:
    """A plain HTTP client that keeps its connection and its cookies."""

    def __init__(self, port: int, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._cookies: dict[str, str] = {}
        self._headers = headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> tuple[int, str]:
        return self._send("GET", path, None)

    def post(self, path: str, **form: str) -> tuple[int, str]:
        return self._send("POST", path, urlencode(form))

    def csrf_token(self, path: str) -> str:
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.get(path)[1])
        assert found, f"no form on {path}"
        return found[1]

    def _send(self, method: str, path: str, body: str | None) -> tuple[int, str]:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self._cookies.items())
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            text = answer.read().decode()
        except ConnectionError:  # RemoteDisconnected is one as well
            # gunicorn closes a kept connection when its worker has served its share.
            self._connection.close()
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            text = answer.read().decode()
        for header in answer.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(header).items():
                self._cookies[name] = morsel.value
        return answer.status, text


class Load:
    """Clients that call the API without a pause, and what became of their calls."""

    def __init__(self, port: int, token: str, clients: int = 4) -> None:
        self.acknowledged: set[str] = set()  # the request ids of calls that were answered with 200
        self.refused: set[tuple[int, str | None]] = set()  # status and Retry-After of the others
        self._port, self._token = port, token
        self._news = threading.Condition()
        self._over = threading.Event()
        self._clients = [threading.Thread(target=self._call, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for client in self._clients:
            client.join(timeout=60)
            assert not client.is_alive()

    def go_on(self, calls: int = 25) -> set[str]:
        """Wait until `calls` more have been acknowledged; return all of them so far."""
        with self._news:
            goal = len(self.acknowledged) + calls
            assert self._news.wait_for(lambda: len(self.acknowledged) >= goal, timeout=60)
            return set(self.acknowledged)

    def _call(self) -> None:
        while not self._over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                for method, path in itertools.cycle(
                    [("GET", "bookings?limit=1"), ("POST", "bookings/1/approve")]
                ):
                    headers = {"Authorization": f"Bearer {self._token}"}
                    connection.request(method, f"/api/v1/admin/{path}", headers=headers)
                    answer = connection.getresponse()
                    answer.read()
                    with self._news:
                        if answer.status == 200:
                            self.acknowledged.add(answer.headers["X-Request-Id"])
                        else:
                            self.refused.add((answer.status, answer.headers["Retry-After"]))
                        self._news.notify_all()
                    if self._over.is_set():
                        break
            except (OSError, http.client.HTTPException):
                self._over.wait(0.02)  # the server is gone, or its worker has served its share
            finally:
                connection.close()

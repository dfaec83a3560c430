"""The product as it runs in earnest: gunicorn, several workers, a database on disk."""

import http.client
import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

from flask import cli
from gunicorn.app import wsgiapp

from tests.databases import environ

ROOT = Path(__file__).resolve().parent.parent


# Starts what forks of it are wanted for, once; importing the product takes longer than most tests.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.warm"])


def _become(
    program: Callable[[], object],
    argv: Sequence[str],
    settings: Mapping[str, str],
    out: Path,
    errors: Path,
    given: Path = Path(os.devnull),
) -> None:
    """Be this program from here on, in a session of its own, with files for what it reads and writes."""
    os.setsid()
    for number, file in ((0, given), (1, out), (2, errors)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  multiprocessing has put nothing in its place
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(settings)
    sys.argv = [*argv]
    program()


def flask(
    database_url: str, *args: str, typed: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """What a command that runs as a process of its own ends with."""
    with tempfile.TemporaryDirectory() as folder:
        out, err, stdin = (Path(folder) / name for name in ("out", "err", "in"))
        stdin.write_text(typed)
        argv = ["flask", "--app", "wsgi", *args]
        values = {**os.environ, **environ(database_url), **settings}
        process = forks.Process(target=_become, args=(cli.main, argv, values, out, err, stdin))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """gunicorn with the product's own configuration, on a port of its own."""

    def __init__(self, database_url: str, log: Path, *, workers: int = 2, **settings: str) -> None:
        self._number = workers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._environ = {
            **os.environ,
            **environ(database_url, PORT=str(self.port), BASE_URL=self.url),
            "KEY_RATE_LIMIT": "9999999/minute",  # most tests of a server are meant to press it
            **settings,
        }

    def __enter__(self) -> Self:
        argv = ["gunicorn", "-c", "deploy/gunicorn.conf.py", f"--bind=127.0.0.1:{self.port}"]
        argv += [f"--workers={self._number}", "wsgi:app"]
        self.log.unlink(missing_ok=True)
        self._process = forks.Process(
            target=_become, args=(wsgiapp.run, argv, self._environ, self.log, self.log)
        )
        self._process.start()
        assert self._process.pid
        self._pid: int = self._process.pid
        end = time.monotonic() + 30
        try:
            while not self._ready():
                assert self.ended() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.05)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._process.join(timeout=60)
        if self.ended() is None:
            self.kill()
            raise TimeoutError("the server did not stop")

    def kill(self) -> None:
        """End all of it at once, as if the machine had lost its power."""
        os.killpg(self._pid, signal.SIGKILL)
        self._process.join()

    def stop(self) -> None:
        """Ask it to finish what is under way and to end."""
        self._process.terminate()

    def ended(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.exitcode

    def answers(self) -> bool:
        """Whether a stranger is served."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=0.5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:  # refused, cut off, or left to wait
            return False
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """The process ids of the workers that are alive now."""
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children")
        return [int(number) for number in children.read_text().split()]

    def kill_worker(self, number: int) -> None:
        os.kill(number, signal.SIGKILL)
        while number in self.workers():
            time.sleep(0.01)

    def connections(self) -> dict[int, str]:
        """Connections of which a worker has read all that was sent: the client's port, the inode.

        One that no worker has taken yet has no inode.
        """
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        here = f":{self.port:04X}"
        return {
            int(remote[-4:], 16): inode
            for _, local, remote, state, queues, _, _, _, _, inode, *_ in rows
            if local.endswith(here)
            and state == "01"
            and inode != "0"
            and queues.endswith(":00000000")
        }

    def worker_of(self, client_port: int) -> int:
        """The process id of the worker that serves this client's connection."""
        socket_of = f"socket:[{self.connections()[client_port]}]"
        for worker in self.workers():
            for file in Path(f"/proc/{worker}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed since it was listed
                    if file.readlink() == Path(socket_of):
                        return worker
        raise AssertionError("no worker has it")

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


@contextmanager
def serving_demo(**settings: str) -> Iterator[tuple[Server, str, str]]:
    """What `make demo` serves, and the email and password to sign in with."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/demo.db"
        for command in (["db", "upgrade"], ["demo"]):
            done = flask(url, *command)
            done.check_returncode()
        found = re.search(r"with (\S+) and the password (\S+)", done.stdout)
        assert found, done.stdout
        with Server(url, Path(folder) / "server.log", **settings) as server:
            yield server, found[1], found[2]


class Visitor:
    """A plain HTTP client that keeps its connection and its cookies."""

    def __init__(self, port: int, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._cookies: dict[str, str] = {}
        self.headers = headers  # of every request
        self.sent_again = 0  # requests whose connection was lost

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def port(self) -> int:
        """Its own end of the connection."""
        port: int = self._connection.sock.getsockname()[1]
        return port

    @property
    def cookies(self) -> str:
        """All of them, as the header carries them."""
        return "; ".join(f"{name}={value}" for name, value in self._cookies.items())

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self.send("GET", path, None, headers)

    def post(self, path: str, **form: str) -> tuple[int, str]:
        return self.send("POST", path, urlencode(form), {})

    def csrf_token(self, path: str) -> str:
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.get(path)[1])
        assert found, f"no form on {path}"
        return found[1]

    def send(
        self, method: str, path: str, body: str | bytes | None, more: dict[str, str]
    ) -> tuple[int, str]:
        headers = self.headers | more
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if self._cookies:
            headers["Cookie"] = self.cookies
        try:
            answer, text = self._exchange(method, path, body, headers)
        except (ConnectionError, http.client.HTTPException):
            # gunicorn closes a kept connection when its worker has served its share.
            self._connection.close()
            self.sent_again += 1
            answer, text = self._exchange(method, path, body, headers)
        for header in answer.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(header).items():
                self._cookies[name] = morsel.value
        return answer.status, text

    def _exchange(
        self, method: str, path: str, body: str | bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, str]:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer, answer.read().decode()


_networks = itertools.count()


def from_elsewhere() -> dict[str, str]:
    """A header by which a server with `TRUSTED_PROXIES` 1 takes a call for one of a new network.

    Calls of keys that have ended are limited by network.
    """
    number = next(_networks)
    return {"X-Forwarded-For": f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"}


Call = tuple[str, str]  # a method and a path below /api/v1/admin/
USUAL: list[Call] = [("GET", "bookings?limit=1"), ("POST", "bookings/1/approve")]


class Load:
    """Clients that call the API again and again, and what became of their calls.

    They share `calls`, of which each is made once; by default the same two for ever. Each waits for
    `pause` seconds after an answer.
    """

    def __init__(
        self,
        port: int,
        token: str,
        clients: int = 4,
        calls: Iterator[Call] | None = None,
        *,
        pause: float = 0,
    ) -> None:
        self.acknowledged: dict[str, Call] = {}  # what was answered with 200, by its request id
        self.refused: set[tuple[int, str | None]] = set()  # status and Retry-After of the others
        self.cut_off = 0  # calls that got no answer
        self._port, self._token, self._pause = port, token, pause
        self._calls = calls or itertools.cycle(USUAL)
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
                connection.connect()
            except OSError:
                self._over.wait(0.02)  # the server is gone
                continue
            try:
                self._call_on(connection)
            except (OSError, http.client.HTTPException):
                with self._news:  # the server is gone, or its worker has served its share
                    self.cut_off += 1
            finally:
                connection.close()

    def _call_on(self, connection: http.client.HTTPConnection) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        while not self._over.is_set():
            call = next(self._calls, None)
            if call is None:  # all of them were made
                self._over.wait()
                return
            method, path = call
            connection.request(method, f"/api/v1/admin/{path}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            with self._news:
                if answer.status == 200:
                    self.acknowledged[answer.headers["X-Request-Id"]] = method, path
                else:
                    self.refused.add((answer.status, answer.headers["Retry-After"]))
                self._news.notify_all()
            self._over.wait(self._pause if answer.status == 200 else max(self._pause, 0.02))

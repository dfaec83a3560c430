"""What the benchmarks start: databases, installations of the product, and gunicorn."""

import contextlib
import http.client
import os
import re
import runpy
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import psycopg

ROOT = Path(__file__).resolve().parent.parent
BENCH_PYTHON = ROOT / ".venv-bench/bin/python"
FLASK = (ROOT / ".venv/bin/flask", "--app", "wsgi")
CLIENTS = 8
EMAIL, PASSWORD = "maya@example.org", "a password for one benchmark only"
BOOKINGS = "/api/v1/admin/bookings?limit=10"


def run(*command: object, stdin: str = "", **environ: str) -> str:
    """What a program prints. Ends the benchmark when it fails."""
    done = subprocess.run(  # noqa: S603
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL server with its own settings, without the database's name."""
    command = [str(BENCH_PYTHON), "bench/postgres.py", str(folder)]
    with subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None  # noqa: S101
        address = server.stdout.readline().strip()
        if not address:
            sys.exit("PostgreSQL does not start.")
        yield address  # then its stdin is closed, and it stops


def create_database(address: str, name: str) -> str:
    """A new database on that server; its DATABASE_URL."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return address.replace("postgresql://", "postgresql+psycopg://").replace(
        "/postgres?", f"/{name}?"
    )


@dataclass(frozen=True)
class Installation:
    """The product on one database: organization 1 with a season, member 1, and key 1."""

    environ: dict[str, str]
    key: str

    @property
    def database_url(self) -> str:
        return self.environ["DATABASE_URL"]

    @property
    def sqlite_file(self) -> str | None:
        kind, _, file = self.database_url.partition(":///")
        return file if kind == "sqlite" else None

    def flask(self, *command: str, stdin: str = "") -> str:
        return run(*FLASK, *command, stdin=stdin, **self.environ)


def install(database_url: str) -> Installation:
    environ = {
        "DATABASE_URL": database_url,
        "SECRET_KEY": secrets.token_hex(32),
        "KEY_PEPPER": secrets.token_hex(32),
        "AUDIT_KEY": secrets.token_hex(32),
        "KEY_RATE_LIMIT": "9999999/minute",  # calls are counted as ever, and none is refused
    }
    made = Installation(environ, "")
    made.flask("db", "upgrade")
    organization = ("organization", "create", "--name", "Bench", "--admin-name", "Maya")
    made.flask(*organization, "--admin-email", EMAIL, "--password-stdin", stdin=PASSWORD)
    made.flask("sample-data", "--organization", "1")
    key = ("keys", "create", "--organization", "1", "--name", "Bench", "--created-by", EMAIL)
    return Installation(environ, made.flask(*key))


def gunicorn_options(**changes: object) -> list[str]:
    """The product's own settings of gunicorn, for whomever it serves, but for its kind of worker.

    Each answer has its line in an access log, which goes nowhere. Workers live on: else the
    quickest, which has served its 10,000 soonest, would start afresh every other second.
    """
    deployed = runpy.run_path(str(ROOT / "deploy/gunicorn.conf.py"))
    options = {
        "workers": deployed["workers"],
        "threads": deployed["threads"],
        "worker-tmp-dir": deployed["worker_tmp_dir"],
        "access-logformat": deployed["access_log_format"],
        "access-logfile": os.devnull,
        "max-requests": 0,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in options.items()]


@dataclass(frozen=True)
class Memory:
    """A process's pages in MiB: `rss` all of them, `pss` each shared out among who has it."""

    rss: float
    pss: float


@dataclass(frozen=True)
class Server:
    port: int
    process: int
    starting: float  # seconds until it first answered

    def memory(self) -> Memory:
        """Of its one worker."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text()
        told = Path(f"/proc/{int(children)}/smaps_rollup").read_text()
        pages = {name: int(kib) / 1_024 for name, kib in re.findall(r"(\w+): +(\d+) kB", told)}
        return Memory(pages["Rss"], pages["Pss"])


@contextlib.contextmanager
def serving(command: list[str], **environ: str) -> Iterator[Server]:
    """gunicorn with `command`, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603
        [*command, f"--bind=127.0.0.1:{port}"],
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/")
                connection.getresponse().close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > began + 30:
                    sys.exit(f"It does not start: {' '.join(command)}")
                time.sleep(0.01)
        yield Server(port, process.pid, time.monotonic() - began)
    finally:
        process.terminate()
        process.wait()


def serving_product(
    installation: Installation, **changes: object
) -> contextlib.AbstractContextManager[Server]:
    """The product with its own configuration, the thread that seals included."""
    gunicorn = [str(ROOT / ".venv/bin/gunicorn"), "-c", "deploy/gunicorn.conf.py"]
    command = [*gunicorn, *gunicorn_options(**changes), "wsgi:app"]
    return serving(command, **installation.environ)


@contextlib.contextmanager
def loaded(port: int, path: str, *wrk: str, **environ: str) -> Iterator[None]:
    """Eight clients that ask for `path`, or for what wrk's script says, without a pause."""
    command = ["wrk", "-t1", f"-c{CLIENTS}", "-d1h", *wrk, f"http://127.0.0.1:{port}{path}"]
    sender = subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, env=os.environ | environ, stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        yield
    finally:
        sender.terminate()
        sender.wait()


class Visitor:
    """An HTTP client that keeps its connection and its cookies; every answer must be a good one."""

    def __init__(self, port: int, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> str:
        return self._ask("GET", path).read().decode()

    def open(self, path: str) -> http.client.HTTPResponse:
        """An answer that is still to be read."""
        return self._ask("GET", path)

    @property
    def cookies(self) -> str:
        """All of them, as the header carries them."""
        return self._headers.get("Cookie", "")

    def csrf_token(self, path: str = "/login") -> str:
        """What a page's forms need, from whoever has the cookies."""
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.get(path))
        assert found is not None  # noqa: S101
        return found[1]

    def sign_in(self) -> None:
        self.post("/login", csrf_token=self.csrf_token(), email=EMAIL, password=PASSWORD)

    def post(self, path: str, **form: str) -> None:
        self._ask("POST", path, urlencode(form)).read()

    def _ask(self, method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        form = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        try:
            self._connection.request(method, path, body, self._headers | form)
            answer = self._connection.getresponse()
        except ConnectionError:  # gunicorn closes one that nothing came over for 2 seconds
            self._connection.close()
            self._connection.request(method, path, body, self._headers | form)
            answer = self._connection.getresponse()
        if answer.status >= 400:
            sys.exit(f"{method} {path} was answered {answer.status}: {answer.read()[:300]!r}")
        cookies = SimpleCookie(answer.headers.get("Set-Cookie", ""))
        if cookies:
            self._headers["Cookie"] = "; ".join(f"{k}={v.value}" for k, v in cookies.items())
        return answer

"""Real proxies, as `deploy/` configures them, and a small site behind them."""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from tests.servers import ROOT, free_port

SITE = "reports.example.org"
Headers = Iterable[tuple[str, str]]


class Site(ThreadingHTTPServer):
    """A site that answers with what it was asked, and remembers that it was."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.port = self.server_address[1]
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Echo(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = {"method": self.command, "path": self.path, "body": body.decode()}
        text = json.dumps(told | {"headers": self.headers.items()}).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_OPTIONS = do_POST = do_PUT = do_PATCH = do_DELETE = _answer


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def body(self) -> str:
        """What the site was sent."""
        body: str = json.loads(self.text)["body"]
        return body

    def seen(self, name: str) -> list[str]:
        """The values of a header as the site was sent it, however its name is written."""
        plain = name.lower().replace("_", "-")
        headers: list[tuple[str, str]] = json.loads(self.text)["headers"]
        return [value for given, value in headers if given.lower().replace("_", "-") == plain]


class Proxy:
    """One proxy on a port of its own, as an example configures it.

    `ports` are the real ones of what stands behind it, in place of the example's `upstreams`.
    """

    example = ""
    host = SITE
    upstreams: tuple[int, ...] = (9000, 8000)  # a site, and Convene Keys

    def __init__(self, folder: Path, *ports: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.port, self.ports = folder, free_port(), ports
        self._log = folder / "output.log"
        example = (ROOT / "deploy" / self.example).read_text()
        config = re.sub(r"(?m)^\s*#.*\n", "", example)
        for port, real in zip(self.upstreams, ports, strict=True):
            config = _replaced(config, rf"127\.0\.0\.1:{port}\b", f"127.0.0.1:{real}")
        self._command = self._prepare(config)

    def _prepare(self, config: str) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        environ = os.environ | {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=environ, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + 20
        try:
            while True:
                assert self._process.poll() is None, self._log.read_text()
                try:
                    socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                    return self
                except OSError:
                    assert time.monotonic() < end, self._log.read_text()
                    time.sleep(0.02)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def logs(self) -> str:
        """All that it has written about requests."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        chunked: bool = False,
    ) -> Answer:
        """One request on a connection of its own; `headers` may hold one more than once."""
        given = [] if token is None else [("Authorization", f"Bearer {token}")]
        connection = self._connect()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if body is not None:
                length = ("Transfer-Encoding", "chunked") if chunked else None
                given.append(length or ("Content-Length", str(len(body))))
            for name, value in [("Host", self.host), *given, *headers]:
                connection.putheader(name, value)
            connection.endheaders([body] if chunked and body else body, encode_chunked=chunked)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode(errors="replace"))
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)


class Nginx(Proxy):
    example = "forward-auth/nginx.conf"

    def _here(self, config: str) -> str:
        config = _replaced(config, "listen 443 ssl;", f"listen 127.0.0.1:{self.port};")
        return _replaced(config, r" *ssl_certificate(_key)? .*;\n", "")

    def _prepare(self, config: str) -> list[str]:
        config = _replaced(self._here(config), "/var/log/nginx", str(self.folder))
        (self.folder / "site.conf").write_text(config)
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = self.folder / "main.conf"
        main.write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1;\n"
            f"pid {self.folder}/pid; error_log {self.folder}/error.log;\n"
            f"events {{}} http {{ gzip on; {temporary} include {self.folder}/site.conf; }}\n"
        )
        # Where only root has it in the path.
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        return [str(nginx), "-e", f"{self.folder}/error.log", "-c", str(main)]


class Front(Nginx):
    """nginx in front of Convene Keys itself, with TLS; on `plain_port` without."""

    example = "nginx.conf"
    host = "keys.example.org"
    upstreams = (8000,)

    def __init__(self, folder: Path, certificate: Path, port: int) -> None:
        self.plain_port, self._certificate = free_port(), certificate
        super().__init__(folder, port)

    def _here(self, config: str) -> str:
        config = _replaced(config, r" *listen \[::]:.*\n", "")  # not every machine has IPv6
        for port, real in ((80, self.plain_port), (443, self.port)):
            config = _replaced(config, rf"listen {port}\b", f"listen 127.0.0.1:{real}")
        live = f"/etc/letsencrypt/live/{self.host}"
        config = _replaced(config, f"{live}/fullchain.pem", str(self._certificate))
        config = _replaced(config, f"{live}/privkey.pem", f"{self._certificate.parent}/key.pem")
        return _replaced(config, "/opt/convene-keys", str(ROOT))

    def _connect(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context(cafile=self._certificate)
        context.check_hostname = False
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)


class Caddy(Proxy):
    example = "forward-auth/Caddyfile"

    def _prepare(self, config: str) -> list[str]:
        config = _replaced(config, rf"{SITE} {{", f"http://{SITE}:{self.port} {{")
        config = _replaced(config, r"(?m)^{\n", "{\nadmin off\ndefault_bind 127.0.0.1\n")
        file = self.folder / "Caddyfile"
        file.write_text(config)
        return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


PROXIES: dict[str, type[Proxy]] = {"nginx": Nginx, "caddy": Caddy}


def _replaced(text: str, pattern: str, by: str) -> str:
    """`text` with every match replaced, of which there is at least one."""
    replaced, count = re.subn(pattern, lambda _: by, text)
    assert count, f"{pattern} is not in the example"
    return replaced

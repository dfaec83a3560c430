"""The desktop extension's bridge as a process, and sites that behave as no good one would."""

import fcntl
import json
import shutil
import ssl
import subprocess
import termios
import threading
import zipfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

NODE = shutil.which("node") or "node is missing: install Node 18 or newer (apt-get install nodejs)"
PATIENCE = 60  # seconds; generous, since a busy machine is no fault
Json = dict[str, Any]


def unpack(url: str, folder: Path) -> Path:
    """Download the extension of the site at `url` and unpack it, as Claude does; its folder."""
    with urlopen(f"{url}/connect/convene-keys.mcpb", timeout=PATIENCE) as answer:  # noqa: S310
        zipfile.ZipFile(BytesIO(answer.read())).extractall(folder)
    return folder


def environment(folder: Path, secret: str | None, **more: str) -> dict[str, str]:
    """What Claude starts the extension with: the manifest's variables, the key filled in."""
    told = json.loads((folder / "manifest.json").read_text())["server"]["mcp_config"]["env"]
    if secret is not None:
        told["CONVENE_API_KEY"] = told["CONVENE_API_KEY"].replace("${user_config.api_key}", secret)
    return {**told, **more}


def request(id: object, method: str, params: Json | None = None) -> bytes:
    message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


def call(number: object, tool: str, /, **arguments: object) -> bytes:
    return request(number, "tools/call", {"name": tool, "arguments": arguments})


def sentence(message: Json) -> str:
    """What went wrong, as a tool's result or as an error of the protocol."""
    if "error" in message:
        return str(message["error"]["message"])
    assert message["result"]["isError"] is True
    (content,) = message["result"]["content"]
    assert content["type"] == "text"
    return str(content["text"])


class Bridge:
    """The bridge while it runs. Whatever it says is JSON-RPC, and never the key."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._secret = env.get("CONVENE_API_KEY", "").strip()
        self.process = subprocess.Popen(
            [NODE, str(folder / "server" / "index.js")],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def send(self, *pieces: bytes) -> None:
        """Each of them alone, once it has read the one before."""
        assert self.process.stdin is not None
        for piece in pieces:
            self.process.stdin.write(piece)
            self.process.stdin.flush()
            unread = array("i", [1])
            while unread[0]:
                fcntl.ioctl(self.process.stdin, termios.FIONREAD, unread)

    def read(self) -> Json:
        assert self.process.stdout is not None
        return self._checked(self.process.stdout.readline())

    def end(self, last: bytes = b"") -> tuple[list[Json], str]:
        """Close its input; what it says until it ends, and what is on stderr."""
        out, err = self.process.communicate(last, timeout=PATIENCE)
        assert self.process.returncode == 0, err
        if self._secret:
            assert self._secret.encode() not in err
        assert out == b"" or out.endswith(b"\n")
        return [self._checked(line) for line in out.splitlines(keepends=True)], err.decode()

    def _checked(self, line: bytes) -> Json:
        message: Json = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        assert ("result" in message) is not ("error" in message)
        assert not self._secret or self._secret.encode() not in line
        return message


def talk(folder: Path, env: dict[str, str], *lines: bytes) -> tuple[list[Json], str]:
    """Start it, say all of `lines` at once, and hear it to its end."""
    with Bridge(folder, env) as bridge:
        return bridge.end(b"".join(lines))


class Asked:
    """One request as a site has got it."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.path, self.headers = handler.path, handler.headers
        self.port: int = handler.client_address[1]
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))

    @property
    def message(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, dict[str, str], bytes]


def echo(asked: Asked) -> Answer:
    """A site that answers each request with its own method."""
    answer = {"jsonrpc": "2.0", "id": asked.message.get("id"), "result": asked.message["method"]}
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


class Site:
    """A site on loopback that answers as it is told to, and remembers what it was asked."""

    def __init__(
        self, answer: Callable[[Asked], Answer], tls: ssl.SSLContext | None = None
    ) -> None:
        self.asked: list[Asked] = []
        self.news = threading.Condition()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or the body waits 40 ms for its headers to arrive

            def do_POST(self) -> None:
                asked = Asked(self)
                with site.news:
                    site.asked.append(asked)
                    site.news.notify_all()
                status, headers, body = answer(asked)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # which is what a redirect of the wrong kind would make of it

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # who asked is gone
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://localhost:{self._server.server_port}"

    def wait(self, number: int) -> None:
        """Until it has been asked `number` times."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.asked) >= number, PATIENCE)

    @contextmanager
    def serving(self) -> Iterator[Self]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

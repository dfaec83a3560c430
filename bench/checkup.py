"""How long the whole check-up takes, at 1,000 keys and a million events, and its number on each page.

In this process, without a server: the time is the check-up's own.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import create_engine, text

from bench import fill
from bench.report import Figure
from bench.servers import create_database, install
from convene_keys import create_app
from convene_keys.checkup import findings
from convene_keys.db.session import db

KEYS, EVENTS, ROUNDS = 1_000, 1_000_000, 15
# Every key is shared by two kinds of client.
USES = """
INSERT INTO key_use (key_id, place, client, first_at, last_at, returned_at)
SELECT id, '203.0.113.1', client, created_at, :now, :now
FROM api_key, (SELECT 'claude-desktop' AS client UNION SELECT 'curl') AS clients"""


def measure(folder: Path, postgres: str) -> list[Figure]:
    kinds = {
        "SQLite": f"sqlite:///{folder}/checkup.db",
        "PostgreSQL": create_database(postgres, "checkup"),
    }
    return [figure for kind, url in kinds.items() for figure in _measured(kind, url)]


def _measured(kind: str, database_url: str) -> Iterator[Figure]:
    installed = install(database_url)
    fill.keys(database_url, 2, KEYS)
    fill.events(database_url, EVENTS)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        now = time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime())
        connection.execute(text(USES), {"now": now})
    engine.dispose()
    app = create_app(installed.environ)
    walls, processor = [], []
    with app.app_context():
        for _ in range(ROUNDS + 1):
            db.session.remove()  # as each request begins
            start, worked = time.perf_counter(), time.process_time()
            found = findings.run(db.session(), 1)
            walls.append((time.perf_counter() - start) * 1_000)
            processor.append((time.process_time() - worked) * 1_000)
        assert found.keys > KEYS * 0.9, found.keys  # noqa: S101
        db.session.remove()
        db.engine.dispose()
    what = f"{kind}: the whole check-up of {KEYS:,} keys and {EVENTS:,} events"
    yield Figure(what, walls[1:], "ms", 300)  # the first prepares the statements
    yield Figure(f"{what}: processor time", processor[1:], "ms")

"""What grows with the audit log and the keys: pages, memory, exports, the disk.

Each database is filled twice, with little and with much, and both are asked in turn, over HTTP.
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, text

from bench import fill
from bench.report import Figure
from bench.servers import (
    BOOKINGS,
    Installation,
    Server,
    Visitor,
    create_database,
    install,
    serving_product,
)

FEW, MANY, EXPORTED = 10_000, 10_000_000, 1_000_000
FEW_KEYS, MANY_KEYS = 100, 10_000
ROUNDS, PAGES, REQUESTS = 9, 10, 10_000
LOG, KEYS = "/admin/audit_log?key=1", "/admin/api_keys"
# What has to be looked through, or to be found in what nobody counted on.
SEARCHES = {
    "a search for a word that is not there": "q=nowhere",
    "a search for a booking": "q=booking+20",
    "a search for a key": "q=Stall+17",
    "a search for an address that is not there": "q=198.51.100.1",
    "a search for a request of another log": "q=00000000000f4240",
    "a search by a path that is not there": "q=/nowhere",
    "a key and an action it never did": "key=1&action=key.revoked",
    "a key and an outcome it never had": "key=3&outcome=denied",
    "an action and an outcome it never had": "action=booking.listed&outcome=failed",
    "an outcome and an address that is not there": "outcome=denied&q=198.51.100.1",
}
# What a worker is asked for over and over: pages by a member, calls by a key.
MIXED = (KEYS, BOOKINGS, LOG, BOOKINGS, "/admin/bookings", BOOKINGS, "/admin/api_keys/1", BOOKINGS)


@dataclass(frozen=True)
class Site:
    """An installation that is filled, its one worker, and a member and the key who ask it."""

    installed: Installation
    server: Server
    member: Visitor
    key: Visitor

    def seconds(self, path: str) -> float:
        """How long a page takes: the median of some."""
        return statistics.median(self.once(path) for _ in range(PAGES))

    def once(self, path: str) -> float:
        start = time.perf_counter()
        self.member.get(path)
        return time.perf_counter() - start

    def ask(self, path: str) -> str:
        return (self.key if path == BOOKINGS else self.member).get(path)


def measure(folder: Path, postgres: str) -> list[Figure]:
    kinds: dict[str, Callable[[str], str]] = {
        "SQLite": lambda name: f"sqlite:///{folder}/{name}.db",
        "PostgreSQL": lambda name: create_database(postgres, name),
    }
    found: list[Figure] = []
    with ThreadPoolExecutor() as both:
        filled = list(both.map(_filled, kinds.values()))
        for kind, (small, large, figures) in zip(kinds, filled, strict=True):
            found += [_named(kind, figure) for figure in figures]
            with _site(small) as little, _site(large) as much:
                found += [_named(kind, figure) for figure in _pages(little, much)]
        # With few other servers about: what many share counts for little in PSS.
        workers = both.map(_worker, [small for small, _, _ in filled])
        for kind, figures in zip(kinds, workers, strict=True):
            found += [_named(kind, figure) for figure in figures]
        for kind, (_, large, _) in zip(kinds, filled, strict=True):
            found += [_named(kind, figure) for figure in _export(large)]
    return found


def _named(kind: str, figure: Figure) -> Figure:
    return Figure(f"{kind}: {figure.what}", figure.values, figure.unit, figure.bar)


def _filled(url_of: Callable[[str], str]) -> tuple[Installation, Installation, list[Figure]]:
    """A database with few events and one with many, sealed; and how much of the disk one takes."""
    small, large = install(url_of("small")), install(url_of("large"))
    for each, events in ((small, FEW), (large, MANY)):
        fill.keys(each.database_url, 2, FEW_KEYS)
        empty = _size(each)
        fill.events(each.database_url, events)
        start = time.perf_counter()
        each.flask("audit", "seal")
        seconds = time.perf_counter() - start
    figures = [
        Figure("disk for an audit event", [(_size(large) - empty) / MANY], "bytes"),
        Figure("events sealed", [MANY / seconds], "a second"),
    ]
    return small, large, figures


def _size(installation: Installation) -> int:
    """The bytes of the database, its indices included."""
    if installation.sqlite_file:
        return Path(installation.sqlite_file).stat().st_size
    size: int = _scalar(installation, "SELECT pg_database_size(current_database())")
    return size


def _scalar(installation: Installation, query: str) -> Any:
    engine = create_engine(installation.database_url)
    with engine.connect() as connection:
        found = connection.execute(text(query)).scalar_one()
    engine.dispose()
    return found


@contextlib.contextmanager
def _site(installed: Installation) -> Iterator[Site]:
    with (
        serving_product(installed, workers=1) as server,
        Visitor(server.port) as member,
        Visitor(server.port, Authorization=f"Bearer {installed.key}") as key,
    ):
        member.sign_in()
        for _ in range(300):  # as many events as the audit page checks, and more, with good macs
            key.get(BOOKINGS)
        installed.flask("audit", "seal")
        assert "Sealed up to" in member.get(LOG)  # noqa: S101
        yield Site(installed, server, member, key)


def _pages(small: Site, large: Site) -> Iterator[Figure]:
    """The pages' times with much, and against those with little."""
    events = f"at {MANY:,} events"
    yield from _compared(f"a key's audit page {events}", f"{FEW:,}", 1.3, small, LOG, large, LOG)
    older = _older(small, 50), _older(large, 1_000)  # there are no more pages in the small one
    against = f"page 50 at {FEW:,}"
    yield from _compared(f"its page 1,000 {events}", against, 1.3, small, older[0], large, older[1])
    fill.keys(large.installed.database_url, FEW_KEYS + 1, MANY_KEYS)
    what = f"the key list at {MANY_KEYS:,} keys"
    yield from _compared(what, f"{FEW_KEYS}", 1.5, small, KEYS, large, KEYS)
    yield Figure(
        f"a key's audit page {events} and {MANY_KEYS:,} keys", [large.seconds(LOG) * 1_000], "ms"
    )
    for what, query in SEARCHES.items():
        took = [large.once(f"/admin/audit_log?{query}") * 1_000 for _ in range(PAGES)]
        yield Figure(f"{what}, {events}", took, "ms", 250)


def _compared(
    what: str, against: str, bar: float, small: Site, little: str, large: Site, much: str
) -> Iterator[Figure]:
    rounds = [(small.seconds(little), large.seconds(much)) for _ in range(ROUNDS + 1)]
    rounds = rounds[1:]  # the first warms both up
    yield Figure(f"{what}, against {against}", [many / few for few, many in rounds], bar=bar)
    yield Figure(what, [many * 1_000 for _, many in rounds], "ms")


def _older(site: Site, page: int) -> str:
    """The address of a page of the key's events, by the cursor that the one before it gives."""
    cursor = _scalar(
        site.installed,
        "SELECT id FROM audit_event WHERE organization_id = 1 AND key_id = 1 "  # noqa: S608
        f"ORDER BY at DESC, id DESC LIMIT 1 OFFSET {(page - 1) * 50 - 1}",
    )
    return f"{LOG}&before={cursor}"


def _worker(small: Installation) -> list[Figure]:
    """The memory of a new worker that pages and calls are asked of."""
    memory = []
    with _site(small) as site:
        for number in range(REQUESTS):
            site.ask(MIXED[number % len(MIXED)])
            if number + 1 in (REQUESTS // 2, REQUESTS):
                memory.append(site.server.memory())
    half, full = memory
    return [
        Figure(f"a worker's memory after {REQUESTS:,} requests (PSS)", [full.pss], "MiB", 60),
        Figure("the same with all that it shares (RSS)", [full.rss], "MiB"),
        Figure("of that, grown in the second half of them", [full.rss - half.rss], "MiB", 1),
    ]


def _export(large: Installation) -> list[Figure]:
    """The memory of a new worker while it streams a million events, against just before."""
    first: str = _scalar(
        large,
        "SELECT CAST(at AS text) FROM audit_event WHERE organization_id = 1 "  # noqa: S608
        f"ORDER BY at DESC, id DESC LIMIT 1 OFFSET {EXPORTED - 1}",
    )
    since = datetime.fromisoformat(first)
    since = since if since.tzinfo else since.replace(tzinfo=UTC)  # SQLite keeps no zone
    memory, over = [0.0], threading.Event()
    with serving_product(large, workers=1) as server, Visitor(server.port) as member:

        def watch() -> None:
            while not over.wait(0.05):
                memory.append(server.memory().rss)

        member.sign_in()
        member.get(KEYS)
        idle, watcher = server.memory().rss, threading.Thread(target=watch)
        watcher.start()
        start, lines = time.perf_counter(), 0
        answer = member.open(f"/admin/audit_log.csv?since={quote(since.isoformat())}")
        while chunk := answer.read(65_536):
            lines += chunk.count(b"\n")
        seconds = time.perf_counter() - start
        over.set()
        watcher.join()
    assert lines > EXPORTED, lines  # noqa: S101
    return [
        Figure(
            f"memory for an export of {EXPORTED:,} events (RSS)", [max(memory) - idle], "MiB", 20
        ),
        Figure("events exported", [lines / seconds], "a second"),
    ]

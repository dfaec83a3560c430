"""How long a key's call takes while strangers send the worst forms that are let through.

Eight connections that send without a pause fill two cores whatever they send. So the call is timed
in turn beside nobody, beside eight who open the sign-in page, and beside eight who attack.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlencode

from bench.report import Figure
from bench.servers import CLIENTS, Visitor, create_database, install, loaded, serving_product
from tests.test_attack import RAW, WORST

ME = "/api/v1/admin/me"
ROUNDS, SECONDS = 8, 5
BAR = 50  # ms
RATIO_BAR = 1.5


def measure(folder: Path, postgres: str) -> list[Figure]:
    databases = {
        "SQLite": f"sqlite:///{folder}/attack.db",
        "PostgreSQL": create_database(postgres, "attack"),
    }
    return [figure for name, url in databases.items() for figure in _measured(name, url, folder)]


def _measured(name: str, database_url: str, folder: Path) -> Iterator[Figure]:
    made = install(database_url)
    with (
        serving_product(made) as server,
        Visitor(server.port, Authorization=f"Bearer {made.key}") as caller,
    ):
        attack = _attack(server.port, folder / "forms.txt")
        with loaded(server.port, "/login", "-s", "bench/attack.lua", **attack):
            time.sleep(20)  # tries are made before there are too many
        alone, visited, attacked = [], [], []
        for _ in range(ROUNDS):
            alone.append(_p99(caller))
            with loaded(server.port, "/login"):
                visited.append(_p99(caller))
            with loaded(server.port, "/login", "-s", "bench/attack.lua", **attack):
                attacked.append(_p99(caller))
    what = f"{name}: the slowest 1 % of a key's calls"
    yield Figure(f"{what}, nobody else there", alone, "ms")
    yield Figure(f"{what} beside {CLIENTS} who open the sign-in page", visited, "ms")
    yield Figure(f"{what} beside {CLIENTS} who attack", attacked, "ms", BAR)
    ratios = [theirs / its for theirs, its in zip(attacked, visited, strict=True)]
    yield Figure(f"{what}: attackers against visitors", ratios, bar=RATIO_BAR)


def _attack(port: int, forms: Path) -> dict[str, str]:
    """The environment of bench/attack.lua: forms with a token, and the cookie that it goes with."""
    with Visitor(port) as visitor:
        token = {"csrf_token": visitor.csrf_token()}
    bodies = [urlencode(form | token).encode() for form in WORST]
    bodies += [urlencode(token).encode() + b"&" + raw for raw in RAW]
    forms.write_bytes(b"\n".join(bodies))
    return {"BENCH_FORMS": str(forms), "BENCH_COOKIE": visitor.cookies}


def _p99(caller: Visitor) -> float:
    took, end = [], time.monotonic() + SECONDS
    while (began := time.monotonic()) < end:
        caller.get(ME)
        took.append((time.monotonic() - began) * 1_000)
        time.sleep(0.01)
    return quantiles(took, n=100)[98]
